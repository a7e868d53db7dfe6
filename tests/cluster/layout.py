"""Where everything of one cluster lives: addresses, ports and paths."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetune-operator"
CHECKOUT = Path(__file__).resolve().parents[2]

NODE_NAME = "finetune-node"
LOOPBACK = "127.0.0.1"
NODE_ADDRESS = "10.97.0.1"
POD_RANGE = "10.244.0.0/24"
SERVICE_RANGE = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
FAKE_GPUS = 4
FIRST_PORT, LAST_PORT = 11_000, 16_000
"""Of control planes without a node: below the ports that Linux gives to others, which could take one between its choice
and its use."""
_claims: list[socket.socket] = []
"""Of each chosen port, the UDP port of the same number, which this process holds until it ends: by then its programs
listen."""


class ClusterError(Exception):
    """Something the user has to know, with the log that explains it."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


@dataclass(frozen=True)
class Ports:
    """The control plane's ports: fixed for the node's cluster, free ones elsewhere."""

    etcd: int = 22379
    etcd_peer: int = 22380
    apiserver: int = 16443
    controller_manager: int = 20257


# Only the full cluster has these, and a machine has one full cluster.
SCHEDULER_PORT = 20259
KUBELET_PORT = 20250
KUBELET_HEALTH_PORT = 20248
PROXY_METRICS_PORT = 20249
PROXY_HEALTH_PORT = 20256
DNS_PORT = 20053
DNS_READY_PORT = 20081
S3_GRPC_PORT = 28334


@dataclass(frozen=True)
class Layout:
    """One state folder, and the address its API server answers on."""

    root: Path
    address: str
    ports: Ports

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    @property
    def images_file(self) -> Path:
        return self.root / "images.json"

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports.apiserver}"


def default_root() -> Path:
    """The folder of the full cluster: `$FINETUNE_CLUSTER_DIR` or one in the user's cache."""
    return Path(os.environ.get("FINETUNE_CLUSTER_DIR", CACHE / "cluster")).resolve()


def full_cluster() -> Layout:
    """The one cluster with a node on this machine."""
    return Layout(default_root(), NODE_ADDRESS, Ports())


def control_plane_only(root: Path) -> Layout:
    """An API server on loopback whose ports are chosen once and remembered in its folder."""
    root = root.resolve()
    record = root / "ports.json"
    if record.exists():
        return Layout(root, LOOPBACK, Ports(**json.loads(record.read_text())))
    ports = Ports(*free_ports(4))
    root.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(asdict(ports)))
    return Layout(root, LOOPBACK, ports)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, and that no other start of a control plane chooses meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind((LOOPBACK, port))
            socket.create_server((LOOPBACK, port)).close()
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        found.append(port)
    return found
