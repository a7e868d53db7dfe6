"""A boto3 client for one job's storage: endpoint, region, addressing, CA and credentials."""

import configparser
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from boto3.session import Session
from botocore.config import Config

from finetune_api.handoff import CA_DIR, CA_FILE, CREDENTIALS_DIR, ExitCode
from finetune_api.spec import Storage as StorageSpec
from finetune_trainer.errors import StorageDenied, TrainerError

DEFAULT_REGION = "us-east-1"
INI_KEY = "credentials"
KEYS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}


@dataclass(frozen=True)
class Connection:
    """How to reach a store; `credentials` are explicit keys, or none for boto3's default chain."""

    spec: StorageSpec
    credentials: dict[str, str] | None = None
    ca_file: Path | None = None

    @property
    def endpoint(self) -> str:
        """The endpoint as messages name it."""
        return self.spec.endpoint or f"AWS S3 ({self.spec.region or DEFAULT_REGION})"

    @cached_property
    def client(self) -> Any:
        """The client for transfers: patient with a slow answer, but all its tries fit well into the grace period."""
        return self._build(connect_timeout=5, read_timeout=20, attempts=3)

    @cached_property
    def quick_client(self) -> Any:
        """The client for the first question, which must tell within 30 seconds that nobody answers."""
        return self._build(connect_timeout=4, read_timeout=6, attempts=3)

    def _build(self, *, connect_timeout: float, read_timeout: float, attempts: int) -> Any:
        session = Session(**(self.credentials or {}), region_name=self.spec.region or DEFAULT_REGION)
        path_style = (
            self.spec.endpoint is not None if self.spec.force_path_style is None else self.spec.force_path_style
        )
        config = Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": attempts},
            s3={"addressing_style": "path" if path_style else "auto"},
            max_pool_connections=16,
            # Stores that are not AWS refuse the checksums that boto3 adds by itself.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            return session.client(
                "s3",
                endpoint_url=self.spec.endpoint,
                verify=str(self.ca_file) if self.ca_file else None,
                config=config,
            )
        except ValueError as error:
            raise TrainerError(ExitCode.INVALID_CONFIG, f"spec.storage.endpoint: {error}") from None


def connect(
    spec: StorageSpec | None, credentials_dir: Path = Path(CREDENTIALS_DIR), ca_dir: Path = Path(CA_DIR)
) -> Connection:
    """The connection of a pod: credentials and CA from mounted files where the spec names a Secret."""
    spec = spec or StorageSpec()
    return Connection(
        spec=spec,
        credentials=read_credentials(credentials_dir) if spec.credentials_secret_ref else None,
        ca_file=_ca_file(ca_dir / CA_FILE) if spec.ca_secret_ref else None,
    )


def read_credentials(directory: Path) -> dict[str, str]:
    """Keys from a mounted Secret: one file for each, or an INI file `credentials` as the AWS tools write it."""
    found = {argument: _text(directory / key) for key, argument in KEYS.items()}
    if not found["aws_access_key_id"] and (directory / INI_KEY).is_file():
        found = _from_ini(directory / INI_KEY)
    given = {argument: value for argument, value in found.items() if value}
    if "aws_access_key_id" not in given or "aws_secret_access_key" not in given:
        raise StorageDenied(
            "the Secret named by spec.storage.credentialsSecretRef needs the keys AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY, or a key {INI_KEY} in INI format"
        )
    return given


def _from_ini(path: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (configparser.Error, UnicodeDecodeError):
        # Not chained: a parser error quotes the line, which may be the secret.
        raise StorageDenied(f"the Secret's key {INI_KEY} is not in INI format with a section [default]") from None
    section = "default" if parser.has_section("default") else next(iter(parser.sections()), None)
    return {} if section is None else {name: parser.get(section, name, fallback="") for name in KEYS.values()}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _ca_file(path: Path) -> Path:
    if not path.is_file():
        raise TrainerError(
            ExitCode.INVALID_CONFIG, f"the Secret named by spec.storage.caSecretRef needs the key {CA_FILE} (PEM)"
        )
    return path
