"""The node's own containerd: its configuration, its images, and the end of its containers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from binaries import binary
from daemons import Daemon, ensure, run_logged, wait_until
from layout import ClusterError, Layout
from oci import write_archive

PAUSE_IMAGE = "docker.io/library/finetune-pause:v1"

CONFIG = """\
version = 2
root = "{root}/containerd"
state = "{root}/containerd-state"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE an OOM score cannot be lowered, and no container would start.
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{etc}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
  snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def start_containerd(layout: Layout) -> bool:
    """containerd, answering, with the image every pod's sandbox needs."""
    layout.etc.mkdir(parents=True, exist_ok=True)
    config = layout.etc / "containerd.toml"
    config.write_text(
        CONFIG.format(root=layout.root, socket=layout.containerd_socket, etc=layout.etc, pause=PAUSE_IMAGE)
    )
    started = ensure(layout, Daemon("containerd", ["/usr/bin/containerd", "--config", str(config)]))
    wait_until(lambda: _ctr(layout, "version").returncode == 0, 30, "containerd", layout, "containerd")
    if PAUSE_IMAGE not in images(layout):
        _import_pause(layout)
    return started


def images(layout: Layout) -> set[str]:
    """The references of the images in the node."""
    return set(_ctr(layout, "images", "list", "--quiet").stdout.split())


def image_digests(layout: Layout) -> dict[str, str]:
    """The manifest's digest of each reference; the kubelet's own references are digests too."""
    rows = [line.split() for line in _ctr(layout, "images", "list").stdout.splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


def remove_images(layout: Layout, references: Sequence[str]) -> None:
    """Forget these references; containerd then frees what no other reference needs."""
    if references:
        _ctr(layout, "images", "remove", *references)


def import_archive(layout: Layout, archive: Path) -> None:
    """Put an image archive (OCI or `docker save`) into the node."""
    run_logged(layout, "image-import", [*_ctr_argv(layout), "images", "import", str(archive)])


def import_from_docker(layout: Layout, reference: str) -> None:
    """Stream an image from the machine's Docker into the node."""
    if shutil.which("docker") is None:
        raise ClusterError(f"{reference} is no file, and there is no docker here to ask for an image of that name")
    saving = subprocess.Popen(["docker", "save", reference], stdout=subprocess.PIPE)
    importing = subprocess.run(
        [*_ctr_argv(layout), "images", "import", "-"], stdin=saving.stdout, check=False, capture_output=True, text=True
    )
    if saving.wait() or importing.returncode:
        raise ClusterError(f"image {reference} could not be loaded: {importing.stderr.strip()}")


def end_containers(layout: Layout) -> None:
    """End every container of the node and forget it; the images stay."""
    tasks = _ctr(layout, "tasks", "list", "--quiet").stdout.split()
    if tasks:
        _ctr(layout, "tasks", "delete", "--force", *tasks)
    containers = _ctr(layout, "containers", "list", "--quiet").stdout.split()
    if containers:
        _ctr(layout, "containers", "delete", *containers)


def _import_pause(layout: Layout) -> None:
    archive = layout.root / "pause.tar"
    write_archive(archive, PAUSE_IMAGE, {"pause": Path(binary("pause"))}, entrypoint=["/pause"])
    import_archive(layout, archive)
    archive.unlink()


def _ctr_argv(layout: Layout) -> list[str]:
    return ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io"]


def _ctr(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_ctr_argv(layout), *arguments], check=False, capture_output=True, text=True)
