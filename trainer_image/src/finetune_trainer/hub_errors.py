"""What a hub's refusal means, in one sentence with the fix; no token, no signed address."""

import ssl

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import ObjectMissing, StorageUnavailable, TrainerError
from finetune_trainer.hub import Access, HubUri, Kind

CODES = {Kind.MODEL: ExitCode.MODEL_UNAVAILABLE, Kind.DATASET: ExitCode.DATASET_UNUSABLE}
BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - what the hub says of one
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
OUTSIDE = "(outside a cluster: in HF_TOKEN)"


class HubBusy(StorageUnavailable):
    """The hub asks for patience: `wait` is how many seconds it named, if it did."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


def refused(error: HfHubHTTPError, address: HubUri, access: Access, endpoint: str) -> TrainerError:
    """The error for an answer that is no success."""
    where = f"{address} at {endpoint}"
    status = error.response.status_code
    if isinstance(error, RemoteEntryNotFoundError):
        return ObjectMissing(f"{where} does not exist")
    if status in BUSY:
        what = "limits the rate of requests" if status == 429 else "fails"
        return HubBusy(f"{where}: the hub {what} ({status}): try again later", _retry_after(error.response))
    if status == 407:
        return StorageUnavailable(f"{where}: the proxy in HTTPS_PROXY wants a name and a password")
    return TrainerError(CODES[address.repo.kind], f"{where}: {_why(error, address, access, endpoint)}")


def _why(error: HfHubHTTPError, address: HubUri, access: Access, endpoint: str) -> str:
    response, what = error.response, address.repo.kind.value
    if isinstance(error, GatedRepoError):
        return _gated(address, access, endpoint)
    if response.status_code == 401 and response.headers.get("X-Error-Message") == BAD_TOKEN:
        return f"the token is not valid there, it may have expired: put a new one into {_holder(access)}"
    if isinstance(error, DisabledRepoError):
        return f"the hub has disabled this {what}: use another one"
    if isinstance(error, RevisionNotFoundError):
        return f"the {what} has no such revision: correct {access.place}.revision"
    return _unseen(error, what, access)


def _gated(address: HubUri, access: Access, endpoint: str) -> str:
    licence = f"the {address.repo.kind} is gated: accept its licence at {endpoint}/{address.repo.page}"
    if access.token:
        return f"{licence} with the account of the token in {_holder(access)}"
    return f"{licence}, and put that account's token into {_holder(access)}"


def _unseen(error: HfHubHTTPError, what: str, access: Access) -> str:
    """A hub does not tell a repository that is private from one that is not there."""
    status = error.response.status_code
    if status == 403:
        right = f"put a token that may read this {what} into {_holder(access)}"
        return f"access is forbidden: {right}, or correct spec.hub.endpoint"
    if not isinstance(error, RepositoryNotFoundError) and status not in {401, 404}:
        return f"the hub refuses the request ({status}): check spec.hub.endpoint and {access.place}"
    if access.token:
        return (
            f"there is no such {what}, or the account of the token in {_holder(access)} may not read it: correct "
            f"{access.place}.uri or spec.hub.endpoint, or give the account access"
        )
    return (
        f"there is no such {what}, or it is private: correct {access.place}.uri or spec.hub.endpoint, or put a token "
        f"into {_holder(access)}"
    )


def _holder(access: Access) -> str:
    name = f"the Secret {access.secret}" if access.secret else "a Secret (key HF_TOKEN)"
    return f"{name} named by {access.place}.credentialsSecretRef {OUTSIDE}"


def unreachable(error: httpx2.HTTPError, address: HubUri, endpoint: str) -> StorageUnavailable:
    """The error where no answer came, or it broke off."""
    where = f"{address} at {endpoint}"
    if _is_distrust(error):
        return StorageUnavailable(
            f"{where}: the certificate is not trusted or TLS fails: set spec.hub.caSecretRef, or correct http/https "
            "in spec.hub.endpoint"
        )
    if isinstance(error, httpx2.ProxyError):
        return StorageUnavailable(f"{where}: the proxy in HTTPS_PROXY or HTTP_PROXY refuses the connection")
    return StorageUnavailable(
        f"{where}: the hub cannot be reached ({type(error).__name__}): check spec.hub.endpoint, the network, and "
        "HTTPS_PROXY where a proxy is needed"
    )


def _is_distrust(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _retry_after(response: httpx2.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() and len(value) < 6 else None
