"""How a pod reaches the repository of `spec.output.oci`: address, key and authority from the spec and mounted files."""

from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.handoff import REGISTRY_CA_DIR, REGISTRY_DIR, REGISTRY_KEY_FILE
from finetune_api.output import OciOutput
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.storage.oci.auth import DOCKER_HUB, find_key
from finetune_trainer.storage.protocol import mounted_authority

PLACE = "spec.output.oci"
DOCKER_HUB_SERVER = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class RegistryConnection:
    """How to reach a repository, and the key for it."""

    repository: str
    """As users name it: `host/path`."""
    endpoint: str
    path: str
    key: str | None = field(default=None, repr=False)
    """User and password, as a Basic header has them."""
    secret: str | None = None
    ca_file: Path | None = None

    @property
    def password(self) -> str:
        """The password in the key; empty without one."""
        return b64decode(self.key or "").decode(errors="replace").partition(":")[2]

    @property
    def is_insecure(self) -> bool:
        """Whether requests are not encrypted."""
        return self.endpoint.startswith("http://")

    @property
    def holder(self) -> str:
        """Where the key comes from, for messages."""
        return f"the Secret {self.secret}" if self.secret else f"the Secret named by {PLACE}.credentialsSecretRef"


def connect_registry(
    output: OciOutput, keys_dir: Path = Path(REGISTRY_DIR), ca_dir: Path = Path(REGISTRY_CA_DIR)
) -> RegistryConnection:
    """Return the connection; the key is the one that the Secret has at this moment, because some expire in hours."""
    endpoint, path = output.endpoint, output.repository.partition("/")[2]
    if output.host in DOCKER_HUB:
        endpoint = endpoint.replace(output.host, DOCKER_HUB_SERVER)
        path = path if "/" in path else f"library/{path}"
    secret = output.credentials_secret_ref.name if output.credentials_secret_ref else None
    key = _mounted_key(keys_dir / REGISTRY_KEY_FILE, secret, output.host, path) if secret else None
    ca_file = mounted_authority(ca_dir, PLACE) if output.ca_secret_ref else None
    return RegistryConnection(output.repository, endpoint, path, key, secret, ca_file)


def _mounted_key(file: Path, secret: str, host: str, path: str) -> str:
    where = f"the Secret {secret} named by {PLACE}.credentialsSecretRef"
    if not file.is_file():
        message = f"{where} has no key {REGISTRY_KEY_FILE}: create it with `kubectl create secret docker-registry`"
        raise InvalidConfig(message)
    try:
        key = find_key(file.read_bytes(), host, path)
    except ValueError as error:
        raise InvalidConfig(f"{where}: its {REGISTRY_KEY_FILE} {error}") from None
    if key is None:
        raise InvalidConfig(f"{where} has no entry for {host} under auths: add one")
    return key
