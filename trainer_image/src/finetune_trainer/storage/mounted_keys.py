"""The keys of a mounted Secret, read again for each request: the kubelet replaces the files when the Secret changes."""

import configparser
import logging
from pathlib import Path

from botocore.credentials import CredentialProvider, CredentialResolver, Credentials, ReadOnlyCredentials
from botocore.session import Session

from finetune_trainer.errors import StorageDenied

logger = logging.getLogger(__name__)

INI_KEY = "credentials"
KEYS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}
CURRENT = "..data"
"""The link to the current files of a mounted Secret; the kubelet replaces it."""


def read_credentials(directory: Path) -> dict[str, str]:
    """Return the keys from a mounted Secret: one file each, or an INI file `credentials` as written by AWS tools."""
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


def open_session(directory: Path) -> Session:
    """Return a botocore session whose clients sign each request with the keys that the folder has at that time."""
    session = Session()
    session.register_component("credential_provider", CredentialResolver([_Provider(directory)]))
    return session


class _Provider(CredentialProvider):  # type: ignore[misc]
    METHOD = CANONICAL_NAME = "mounted-secret"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def load(self) -> Credentials:
        return _MountedKeys(self._directory)


class _MountedKeys(Credentials):  # type: ignore[misc]
    """The keys in the folder; while it has no valid ones, the last valid ones."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last = _read_current(directory)
        super().__init__(*self._last[:3], method=_Provider.METHOD)

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the current keys; botocore asks for them whenever it signs a request."""
        try:
            found = _read_current(self._directory)
        except (StorageDenied, OSError, ValueError):
            return self._last
        if found != self._last:
            logger.info("the storage keys in the Secret have changed: the new ones are used")
            self._last = found
        return found


def _read_current(directory: Path) -> ReadOnlyCredentials:
    """Read all keys from the same version of the Secret."""
    while True:
        version = (directory / CURRENT).resolve()
        found = read_credentials(directory)
        if (directory / CURRENT).resolve() == version:
            return ReadOnlyCredentials(*(found.get(name) for name in KEYS.values()))
