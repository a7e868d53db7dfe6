"""What a client error means: denied for good, unavailable for now, or an object that is not there."""

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    InvalidRegionError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from finetune_trainer.errors import StorageDenied, StorageUnavailable, TrainerError

KEYS_FIX = (
    "put valid AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the Secret named by spec.storage.credentialsSecretRef "
    "(outside a cluster: into the environment)"
)
FIXES = {
    "InvalidAccessKeyId": f"the access key is not known there: {KEYS_FIX}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key: {KEYS_FIX}",
    "ExpiredToken": f"the session token has expired: {KEYS_FIX}, or use long-lived keys",
    "InvalidToken": f"the session token is not valid: {KEYS_FIX}",
    "NoSuchBucket": "the bucket does not exist: create it, or correct the URI or spec.storage.endpoint",
    "PermanentRedirect": "the bucket is in another region: set spec.storage.region",
    "AuthorizationHeaderMalformed": "requests are signed for the wrong region: set spec.storage.region",
    "RequestTimeTooSkewed": "the node's clock is off: correct it",
    "AccessDenied": "access is denied: allow these keys to list, read and write there",
}
TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"})
MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})
NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)


def code_of(error: ClientError) -> str:
    """The error code in the answer, for example `AccessDenied`; a HEAD request only gives the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: ClientError) -> bool:
    """Whether the answer says that an object (or, after a HEAD request, its bucket) is not there."""
    return code_of(error) in MISSING_CODES


def named_error(
    error: ClientError | BotoCoreError | Boto3Error | OSError, uri: str, endpoint: str, *, bucket_only: bool = False
) -> TrainerError:
    """The error as the trainer names it; the text holds URI, endpoint and fix, never a request or a key."""
    where = f"{uri} at {endpoint}"
    if isinstance(error, ClientError):
        return _answered(error, where, bucket_only=bucket_only)
    if isinstance(error, NO_CREDENTIALS):
        return StorageDenied(f"{where}: there are no storage credentials: {KEYS_FIX}")
    if isinstance(error, InvalidRegionError):
        return StorageDenied(f"{where}: spec.storage.region is not a region")
    if isinstance(error, SSLError):
        return StorageUnavailable(
            f"{where}: the endpoint's certificate is not trusted or TLS fails: set spec.storage.caSecretRef, "
            "or correct http/https in spec.storage.endpoint"
        )
    return StorageUnavailable(
        f"{where}: storage cannot be reached ({type(error).__name__}): check spec.storage.endpoint and the network"
    )


def _answered(error: ClientError, where: str, *, bucket_only: bool) -> TrainerError:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if bucket_only and is_missing(error):
        code = "NoSuchBucket"
    if code in FIXES:
        return StorageDenied(f"{where}: {FIXES[code]}")
    if status in {301, 307, 400, 401, 403} and code not in TRANSIENT_CODES:
        fix = FIXES["AccessDenied"] if status in {401, 403} else "the store refuses the request: check spec.storage"
        return StorageDenied(f"{where}: {fix} ({code or status})")
    return StorageUnavailable(f"{where}: the store failed with {status} {code} after retries")
