"""Build a node image for kind, and a base for the project's images, on a machine that cannot pull any.

It needs Docker with BuildKit. kind's own files come from its Go module, packages from Debian, and the control plane is
built as for this cluster. Where even root has no CAP_SYS_RESOURCE, Docker needs tests/kind/node_image/runc as its
default runtime, as the node has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from base_image import base_archive
from binaries import binary, build
from layout import CACHE, CHECKOUT, full_cluster
from oci import write_archive

KIND = "sigs.k8s.io/kind@v0.33.0"
# The commit of the release that tests/kind/minio.yaml names.
MINIO = "github.com/minio/minio@v0.0.0-20250907161309-07c3a429bfed"
BASE = "finetune-kind-base"
NODE = "finetune-kind-node"
COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")
ON_THE_NODE = ("kubeadm", "kubelet", "kubectl", "kube-proxy")
KIND_FOLDER = CHECKOUT / "tests" / "kind"


def main() -> None:
    """Build both images, and print the command that uses them."""
    build((*COMMANDS, *ON_THE_NODE, "coredns", "pause"))
    version = _output(binary("kubeadm"), "version", "-o", "short")
    base, node = _import_base(), f"{NODE}:{version}"
    with tempfile.TemporaryDirectory() as directory:
        context = Path(directory)
        _fill(context, version)
        proxy = _required("kube-proxy", version)
        _docker_build(context, base, proxy, "--target=kube-proxy")
        _run("docker", "save", "-o", str(context / "images" / "kube-proxy.tar"), proxy)
        _docker_build(context, base, node)
    sys.stdout.write(f"make kind-demo KIND_IMAGE={node} KIND_BASE_IMAGE={base}\n")


def _import_base() -> str:
    """The base image of tests/cluster, in Docker; an image that is there is kept, with what was built from it."""
    archive = base_archive(full_cluster())
    reference = f"{BASE}:{archive.stem.removeprefix('base-')}"
    if _output("docker", "images", "--quiet", reference):
        return reference
    with tarfile.open(archive) as tar:
        manifest = _read(tar, _read(tar, "index.json")["manifests"][0]["digest"])
        settings = _read(tar, manifest["config"]["digest"])["config"]["Env"]
        changes = [f"--change=ENV {setting}" for setting in settings]
        layer = tar.extractfile(_path(manifest["layers"][0]["digest"]))
        with subprocess.Popen(["docker", "import", *changes, "-", reference], stdin=subprocess.PIPE) as process:
            assert layer
            assert process.stdin
            shutil.copyfileobj(layer, process.stdin)
    if process.returncode:
        sys.exit("`docker import` failed")
    return reference


def _read(tar: tarfile.TarFile, name: str) -> dict[str, Any]:
    content = tar.extractfile(_path(name))
    assert content
    return dict(json.load(content))


def _path(name: str) -> str:
    return f"blobs/sha256/{name.removeprefix('sha256:')}" if name.startswith("sha256:") else name


def _fill(context: Path, version: str) -> None:
    """What the Dockerfile copies."""
    module = Path(json.loads(_output("go", "mod", "download", "-json", KIND))["Dir"])
    # The Go tool keeps modules read-only.
    shutil.copytree(module / "images" / "base" / "files", context / "files", copy_function=shutil.copyfile)
    _run("chmod", "-R", "u+w", str(context / "files"))
    for name in ("10-ptp.conflist", "default-cni.yaml", "runc"):
        shutil.copy(KIND_FOLDER / "node_image" / name, context / name)
    for name in ON_THE_NODE:
        shutil.copy(binary(name), context / name)
    (context / "version").write_text(version)
    images = context / "images"
    images.mkdir()
    for name in COMMANDS:
        write_archive(images / f"{name}.tar", _required(name, version), {f"usr/bin/{name}": Path(binary(name))}, [])
    (pause,) = re.findall(r'sandbox_image = "(.+)"', (context / "files/etc/containerd/config.toml").read_text())
    (server,) = re.findall(r"image: (minio/minio:\S+)", (KIND_FOLDER / "minio.yaml").read_text())
    for name, reference, program in (
        ("coredns", _required("coredns", version), Path(binary("coredns"))),
        ("pause", pause, Path(binary("pause"))),
        ("minio", f"docker.io/{server}", _minio()),
    ):
        write_archive(images / f"{name}.tar", reference, {name: program}, [f"/{name}"])


def _required(name: str, version: str) -> str:
    """The reference under which kubeadm asks for an image."""
    images = _output(binary("kubeadm"), "config", "images", "list", "--kubernetes-version", version).splitlines()
    (found,) = (image for image in images if image.rpartition("/")[2].startswith(f"{name}:"))
    return found


def _minio() -> Path:
    folder = CACHE / f"minio-{MINIO.rpartition('@')[2]}"
    if not (folder / "minio").exists():
        settings = {"CGO_ENABLED": "0", "GOBIN": str(folder), "GOWORK": "off"}
        command = ["go", "install", "-trimpath", "-ldflags", "-s -w", MINIO]
        subprocess.run(command, check=True, env={**os.environ, **settings})
    return folder / "minio"


def _docker_build(context: Path, base: str, reference: str, *arguments: str) -> None:
    dockerfile = str(KIND_FOLDER / "node_image" / "Dockerfile")
    given = ("--build-arg", f"BASE_IMAGE={base}", "-f", dockerfile, "-t", reference)
    _run("docker", "build", *given, *arguments, str(context))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    main()
