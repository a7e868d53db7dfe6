"""Errors for a hub's refusals: one sentence with the fix, without tokens or signed addresses."""

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
from finetune_trainer.storage.http_client import (
    BUSY,
    ServerBusy,
    ServerUntrusted,
    connection_reason,
    is_untrusted,
    proxy_setting,
    retry_after,
)
from finetune_trainer.storage.hub.uris import Access, HubConnection, HubUri, Kind

CODES = {Kind.MODEL: ExitCode.MODEL_UNAVAILABLE, Kind.DATASET: ExitCode.DATASET_UNUSABLE}
BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - a message of the hub


def refusal_error(error: HfHubHTTPError, address: HubUri, connection: HubConnection) -> TrainerError:
    """Return the error for a response other than success."""
    where = f"{address} at {connection.endpoint}"
    status = error.response.status_code
    if isinstance(error, RemoteEntryNotFoundError):
        return ObjectMissing(f"{where} does not exist")
    if status in BUSY:
        what = "limits the rate of requests" if status == 429 else "fails"
        return ServerBusy(f"{where}: the hub {what} ({status}): try again later", retry_after(error.response))
    if status == 407:
        return StorageUnavailable(f"{where}: the proxy in HTTPS_PROXY requires a user name and a password")
    return TrainerError(CODES[address.repo.kind], f"{where}: {_why(error, address, connection)}")


def _why(error: HfHubHTTPError, address: HubUri, connection: HubConnection) -> str:
    response, what, access = error.response, address.repo.kind.value, connection.access(address.repo)
    if connection.withheld and response.status_code in {401, 403, 404} and not isinstance(error, RevisionNotFoundError):
        return f"there is no such {what}, or it needs a token: {connection.withheld}"
    if isinstance(error, GatedRepoError):
        return _gated(address, access, connection)
    if response.status_code == 401 and response.headers.get("X-Error-Message") == BAD_TOKEN:
        return f"the token is invalid or has expired: put a new one into {_holder(access, connection)}"
    if isinstance(error, DisabledRepoError):
        return f"the hub has disabled this {what}: use another one"
    if isinstance(error, RevisionNotFoundError):
        return f"the {what} has no such revision: correct {access.place}.revision"
    return _unseen(error, what, access, connection)


def _gated(address: HubUri, access: Access, connection: HubConnection) -> str:
    what = address.repo.kind.value
    if access.is_public and not access.token:
        return f"the {what} is gated, and {access.place} is read without a token: name a public one, or a copy in s3://"
    licence = f"the {what} is gated: accept its licence at {connection.endpoint}/{address.repo.page}"
    if access.token:
        return f"{licence} with the account of the token in {_holder(access, connection)}"
    return f"{licence}, and put that account's token into {_holder(access, connection)}"


def _unseen(error: HfHubHTTPError, what: str, access: Access, connection: HubConnection) -> str:
    """Explain a repository that is missing or private; a hub does not distinguish them."""
    status, holder = error.response.status_code, _holder(access, connection)
    if not isinstance(error, RepositoryNotFoundError) and status not in {401, 403, 404}:
        return f"the hub refuses the request ({status}): check {connection.endpoint_setting} and {access.place}"
    if access.is_public and not access.token:
        return (
            f"there is no such {what}, or it is not public, and {access.place} is read without a token: correct "
            f"{access.place}.uri or {connection.endpoint_setting}, or name a copy in s3://"
        )
    if status == 403:
        right = f"put a token that may read this {what} into {holder}"
        return f"access is forbidden: {right}, or correct {connection.endpoint_setting}"
    if access.token:
        return (
            f"there is no such {what}, or the account of the token in {holder} may not read it: correct "
            f"{access.place}.uri or {connection.endpoint_setting}, or give the account access"
        )
    return (
        f"there is no such {what}, or it is private: correct {access.place}.uri or {connection.endpoint_setting}, or "
        f"put a token into {holder}"
    )


def _holder(access: Access, connection: HubConnection) -> str:
    if connection.is_here:
        return "HF_TOKEN"
    name = f"the Secret {access.secret}" if access.secret else "a Secret (key HF_TOKEN)"
    return f"{name} named by {access.token_field}"


def connection_error(error: httpx2.HTTPError, address: HubUri, connection: HubConnection) -> StorageUnavailable:
    """Return the error for a missing or incomplete response."""
    where, setting = f"{address} at {connection.endpoint}", connection.endpoint_setting
    if is_untrusted(error):
        trust = "name its authority's file in SSL_CERT_FILE" if connection.is_here else "set spec.hub.caSecretRef"
        return ServerUntrusted(
            f"{where}: the certificate is not trusted or TLS fails: {trust}, or correct http/https in {setting}"
        )
    if isinstance(error, httpx2.ProxyError):
        return StorageUnavailable(f"{where}: the proxy in HTTPS_PROXY or HTTP_PROXY refuses the connection")
    return StorageUnavailable(
        f"{where}: the hub cannot be reached ({connection_reason(error)}): check {setting}, the network, and "
        f"{proxy_setting(connection.endpoint)}"
    )
