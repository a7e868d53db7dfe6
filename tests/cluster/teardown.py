"""End the full cluster and take back what it did to the machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import network
import s3
from binaries import missing
from containers import end_containers
from daemons import is_running, log_of, recorded, stop
from layout import Layout
from node import proxy_argv

KEPT = ("containerd", "buildkit", "s3-data", "s3.json", "images.json", "logs")
CGROUPS = Path("/sys/fs/cgroup")
CONTAINER_LOGS = Path("/var/log/containers")
# What the next cluster must not find; images, builds and buckets stay.
FORGOTTEN = (
    "etcd",
    "pki",
    "etc",
    "kubelet",
    "pod-logs",
    "volume-plugins",
    "containerd-state",
    "pids",
    "kubeconfig",
    "containerd.sock.ttrpc",
)


def is_clean(layout: Layout) -> bool:
    """Whether nothing of this cluster runs or was left behind."""
    return not network.has_node_link() and not any((layout.root / name).exists() for name in FORGOTTEN)


def take_down(layout: Layout) -> None:
    """Stop the daemons, end the pods, and undo mounts, links, rules and control groups."""
    network.require_ours(layout)
    # Without our link, rules and control groups with Kubernetes' names are another one's.
    is_set_up = network.has_node_link()
    for name in ("coredns", "kube-scheduler", "kube-controller-manager", "kubelet"):
        stop(layout, name)
    namespaces = _network_namespaces(layout)
    ids = [bundle.name for bundle in _bundles(layout)]
    sockets = _shim_sockets(layout)
    if is_running(layout, "containerd"):
        end_containers(layout)
    stop(layout, "kube-proxy")
    if is_set_up and not missing(("kube-proxy",)) and layout.pki.exists():
        subprocess.run([*proxy_argv(layout), "--cleanup"], check=False, capture_output=True)
    s3.stop_server(layout, purge=False)
    stop(layout, "kube-apiserver", seconds=3)
    for name in recorded(layout):
        stop(layout, name)
    _end_left_over_processes(layout, ids)
    for namespace in namespaces:
        _unmount(namespace)
        namespace.unlink(missing_ok=True)
    for socket in sockets:
        socket.unlink(missing_ok=True)
    _unmount_below(layout.root)
    if is_set_up:
        _remove_cgroups()
    network.remove(layout, ids)
    _remove_log_links(layout)
    _delete(layout, FORGOTTEN)


def purge(layout: Layout) -> None:
    """Delete what survives a `down`."""
    _delete(layout, KEPT)


def left_over_processes(layout: Layout, ids: Sequence[str]) -> list[int]:
    """Processes of these containers, and the shims that belong to this cluster's containerd."""
    files = [file for each in ids for file in CGROUPS.glob(f"**/kubepods/**/{each}/cgroup.procs")]
    found = {int(pid) for file in files for pid in file.read_text().split()}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(layout.containerd_socket) in entry.read_bytes().decode(errors="replace").split("\0"):
                found.add(int(entry.parent.name))
    return sorted(found - {os.getpid()})


def _delete(layout: Layout, names: Sequence[str]) -> None:
    for name in names:
        path = layout.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _end_left_over_processes(layout: Layout, ids: Sequence[str]) -> None:
    for _ in range(50):
        pids = left_over_processes(layout, ids)
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    print(f"processes that do not end: {pids}; see {log_of(layout, 'containerd')}")


def _network_namespaces(layout: Layout) -> list[Path]:
    """The pods' network namespaces, as their sandboxes' bundles name them."""
    found = set()
    for bundle in _bundles(layout):
        with suppress(OSError, json.JSONDecodeError):
            for namespace in json.loads((bundle / "config.json").read_text())["linux"]["namespaces"]:
                path = namespace.get("path", "")
                if namespace["type"] == "network" and Path(path).name.startswith("cni-"):
                    found.add(Path(path))
    return sorted(found)


def _shim_sockets(layout: Layout) -> list[Path]:
    """Where the shims listen; one that was killed leaves its socket behind."""
    addresses = [bundle / "address" for bundle in _bundles(layout)]
    return [Path(each.read_text().strip().removeprefix("unix://")) for each in addresses if each.exists()]


def _bundles(layout: Layout) -> list[Path]:
    """One folder per container, named by its id."""
    return list((layout.root / "containerd-state").glob("io.containerd.runtime.v2.task/k8s.io/*"))


def _unmount_below(root: Path) -> None:
    mounts = Path("/proc/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in mounts]
    for point in sorted((Path(point) for point in points), key=lambda path: len(path.parts), reverse=True):
        if point != root and point.is_relative_to(root):
            _unmount(point)


def _unmount(point: Path) -> None:
    if subprocess.run(["umount", str(point)], check=False, capture_output=True).returncode:
        subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True)


def _remove_cgroups() -> None:
    for top in [*CGROUPS.glob("*/kubepods"), CGROUPS / "kubepods"]:
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def _remove_log_links(layout: Layout) -> None:
    for link in CONTAINER_LOGS.glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(str(layout.root)):
            link.unlink()
