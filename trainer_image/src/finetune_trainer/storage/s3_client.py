"""A boto3 client for one job's storage: endpoint, region, addressing, CA and credentials."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    InvalidRegionError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)
from urllib3.exceptions import HTTPError

from finetune_api.endpoints import is_aws_s3
from finetune_api.handoff import CA_DIR, CREDENTIALS_DIR
from finetune_api.spec import Storage as StorageSpec
from finetune_trainer.errors import InvalidConfig, KeysRefused, StorageDenied, StorageUnavailable, TrainerError
from finetune_trainer.storage.mounted_keys import KEYS, open_session, read_credentials
from finetune_trainer.storage.own_servers import OwnKey, explain_other_server
from finetune_trainer.storage.protocol import mounted_authority

DEFAULT_REGION = "us-east-1"
FIXES = {
    "InvalidAccessKeyId": "the access key is unknown: {keys}",
    "SignatureDoesNotMatch": "the secret key does not match the access key: {keys}",
    "ExpiredToken": "the session token has expired: {keys}, or use long-lived keys",
    "InvalidToken": "the session token is not valid: {keys}",
    "NoSuchBucket": "the bucket does not exist: create it, or correct the URI or {endpoint}",
    "PermanentRedirect": "the bucket is in another region: set {region}",
    "AuthorizationHeaderMalformed": "requests are signed for the wrong region: set {region}",
    "RequestTimeTooSkewed": "the node's clock is wrong: correct it",
    "AccessDenied": "access is denied: allow these keys to list, read and write there",
    **dict.fromkeys(
        ("KeyTooLongError", "XMinioInvalidObjectName"),
        "the storage does not accept this name: shorten it, or use other characters",
    ),
}
KEY_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
QUOTA_CODES = frozenset({"XMinioAdminBucketQuotaExceeded", "QuotaExceeded"})
"""Of MinIO, with status 400, and of Ceph, with status 403."""
TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"})
MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)


@dataclass(frozen=True, slots=True)
class SettingNames:
    """The names of the settings of a store, for messages: fields of the job, or variables of this machine."""

    endpoint: str = "spec.storage.endpoint"
    region: str = "spec.storage.region"
    ca: str = "spec.storage.caSecretRef"
    keys: str = (
        "put valid AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the Secret named by "
        "spec.storage.credentialsSecretRef"
    )


KEYS_OF_THIS_MACHINE = (
    "put valid AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the environment or the AWS profile; for another store "
    "than AWS, set AWS_ENDPOINT_URL"
)


@dataclass(frozen=True)
class S3Connection:
    """How to reach a store; without `credentials` and a folder of `mounted` ones, boto3's default chain applies."""

    spec: StorageSpec
    credentials: dict[str, str] | None = None
    ca_file: Path | None = None
    names: SettingNames = SettingNames()
    mounted: Path | None = None

    @property
    def endpoint(self) -> str:
        """Return the endpoint for messages."""
        return self.spec.endpoint or f"AWS S3 ({self.spec.region or DEFAULT_REGION})"

    @cached_property
    def client(self) -> Any:
        """Return the client for transfers: long time-outs, but all attempts fit into the grace period."""
        return self._build(connect_timeout=5, read_timeout=20, attempts=3)

    @cached_property
    def quick_client(self) -> Any:
        """Return the client for the probe, which detects a dead endpoint within 30 seconds."""
        return self._build(connect_timeout=4, read_timeout=6, attempts=3)

    def _addressing_style(self) -> str:
        """Return `path` for a custom endpoint, unless the job sets otherwise; `auto` would ignore that it does."""
        is_custom = self.spec.endpoint is not None
        if is_custom if self.spec.force_path_style is None else self.spec.force_path_style:
            return "path"
        return "virtual" if is_custom else "auto"

    def _build(self, *, connect_timeout: float, read_timeout: float, attempts: int) -> Any:
        keys = {"botocore_session": open_session(self.mounted)} if self.mounted else self.credentials or {}
        session = Session(**keys, region_name=self.spec.region or DEFAULT_REGION)
        is_aws = self.spec.endpoint is None or is_aws_s3(self.spec.endpoint)
        config = Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": attempts},
            s3={"addressing_style": self._addressing_style()},
            max_pool_connections=16,
            # AWS requires a checksum in a bucket with Object Lock; some other stores refuse those of boto3.
            request_checksum_calculation="when_supported" if is_aws else "when_required",
            response_checksum_validation="when_required",
        )
        try:
            client = session.client(
                "s3",
                endpoint_url=self.spec.endpoint,
                verify=str(self.ca_file) if self.ca_file else None,
                config=config,
            )
        except ValueError as error:
            raise InvalidConfig(f"{self.names.endpoint}: {error}") from None
        client.meta.events.register("before-call.s3.HeadBucket", _follow_no_redirect)
        client.meta.events.register("after-call.s3.GetObject", _require_length)
        return client


def _follow_no_redirect(context: dict[str, Any], **_: Any) -> None:
    """Make botocore ask for a bucket's region once: it asks by HEAD, and again if HEAD is redirected too."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _require_length(parsed: dict[str, Any], **_: Any) -> None:
    """Refuse an object of unknown length, for which the transfer manager waits forever; storage names the object."""
    if "Body" in parsed and "ContentLength" not in parsed:
        raise KeyError("Content-Length")


def connect_s3(
    spec: StorageSpec | None, credentials_dir: Path = Path(CREDENTIALS_DIR), ca_dir: Path = Path(CA_DIR)
) -> S3Connection:
    """Return the connection of a pod: credentials and CA from mounted files if the spec names a Secret."""
    spec = spec or StorageSpec()
    if spec.credentials_secret_ref:
        read_credentials(credentials_dir)  # keys that are missing are reported before any request
    return S3Connection(
        spec=spec,
        ca_file=mounted_authority(ca_dir, "spec.storage") if spec.ca_secret_ref else None,
        mounted=credentials_dir if spec.credentials_secret_ref else None,
    )


def find_own_endpoint() -> str:
    """Return the endpoint that this machine's AWS keys belong to: that of the environment or profile, else AWS S3."""
    try:
        # boto3 finds it without a request; the keys only keep it from looking for the real ones.
        client = Session().client("s3", DEFAULT_REGION, **dict.fromkeys(KEYS.values(), "none"))
    except (ValueError, BotoCoreError) as error:
        raise InvalidConfig(f"AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the AWS profile: {error}") from None
    return str(client.meta.endpoint_url)


def connect_s3_here(spec: StorageSpec | None, named: Collection[str] = (), option: str = "") -> S3Connection:
    """Return the connection outside a pod, with boto3's chain of credentials: the manifest's store, else their own.

    Requests are signed only for the store that the credentials belong to, or one that the user `named`. `option` is
    that of the command which gives the endpoint in place of a manifest.
    """
    spec = spec or StorageSpec()
    own, names = find_own_endpoint(), _name_settings(spec, option)
    key = OwnKey("the AWS key of this machine", own, "AWS_ENDPOINT_URL")
    if spec.endpoint and (problem := explain_other_server(key, names.endpoint, spec.endpoint, named)):
        raise InvalidConfig(problem)
    changes = {
        "endpoint": spec.endpoint or (None if is_aws_s3(own) else own),
        "region": spec.region or Session().region_name,
        "credentials_secret_ref": None,
        "ca_secret_ref": None,
    }
    return S3Connection(spec.model_copy(update=changes), names=names)


def _name_settings(spec: StorageSpec, option: str) -> SettingNames:
    """Return the names outside a pod: the manifest's fields if it gives an endpoint, else those of this machine."""
    known = {"ca": "AWS_CA_BUNDLE", "keys": KEYS_OF_THIS_MACHINE}
    if spec.endpoint and not option:
        return SettingNames(**known)
    endpoint = option if spec.endpoint else " or ".join(filter(None, ("AWS_ENDPOINT_URL", option)))
    return SettingNames(endpoint=endpoint, region="AWS_DEFAULT_REGION", **known)


def error_code(error: ClientError) -> str:
    """Return the error code, for example `AccessDenied`; after a HEAD request, only the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def http_status(error: ClientError) -> int:
    """Return the HTTP status of the response; 0 if there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def is_missing(error: ClientError) -> bool:
    """Return whether an object (or, after a HEAD request, its bucket) does not exist."""
    return error_code(error) in MISSING_CODES


def storage_error(
    error: ClientError | BotoCoreError | Boto3Error | OSError | HTTPError,
    uri: str,
    connection: S3Connection,
    *,
    bucket_only: bool = False,
) -> TrainerError:
    """Return the trainer's error with URI, endpoint and fix, never with a request or a key."""
    where, names = f"{uri} at {connection.endpoint}", connection.names
    if isinstance(error, ClientError):
        return _response_error(error, where, names, bucket_only=bucket_only)
    if isinstance(error, NO_CREDENTIALS):
        return KeysRefused(f"{where}: there are no storage credentials: {names.keys}")
    if isinstance(error, InvalidRegionError):
        return StorageDenied(f"{where}: {names.region} is not a region")
    if isinstance(error, SSLError):
        return StorageUnavailable(
            f"{where}: the endpoint's certificate is not trusted or TLS fails: set {names.ca}, or correct http/https "
            f"in {names.endpoint}"
        )
    return StorageUnavailable(
        f"{where}: storage cannot be reached ({type(error).__name__}): check {names.endpoint} and the network"
    )


def _response_error(error: ClientError, where: str, names: SettingNames, *, bucket_only: bool) -> TrainerError:
    code, status = error_code(error), http_status(error)
    if bucket_only and is_missing(error):
        code = "NoSuchBucket"
    if code in FIXES:
        denied = KeysRefused if code in KEY_CODES else StorageDenied
        return denied(f"{where}: {FIXES[code].format_map(asdict(names))}")
    if status == HTTPStatus.INSUFFICIENT_STORAGE or code in QUOTA_CODES:
        fix = "delete objects there, or raise the bucket's quota"
        return StorageUnavailable(f"{where}: the storage is full: {fix} ({code or status})")
    if status in REDIRECTS:
        fix = f"redirects the request elsewhere: correct {names.endpoint} or {names.region}"
        return StorageDenied(f"{where}: the storage {fix} ({status})")
    if status in {400, 401, 403} and code not in TRANSIENT_CODES:
        rejected = f"the storage rejects the request: check {names.endpoint} and the other settings of the storage"
        fix = FIXES["AccessDenied"] if status in {401, 403} else rejected
        return StorageDenied(f"{where}: {fix} ({code or status})")
    return StorageUnavailable(f"{where}: the storage failed with {status} {code} after retries")
