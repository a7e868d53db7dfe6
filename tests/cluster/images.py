"""Build the project's images where the node keeps its images, so that nothing has to be copied."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import containers
import kubectl
from base_image import ensure_base_image
from binaries import binary, build
from daemons import Daemon, ensure, run_logged, wait_until
from layout import CHECKOUT, Layout
from oci import write_archive

LIBRARY = "docker.io/library/"
# The namespace is the kubelet's: what BuildKit exports there, a pod can run.
CONFIG = """\
root = "{root}/buildkit"

[grpc]
  address = ["unix://{root}/buildkit.sock"]

[worker.oci]
  enabled = false

[worker.containerd]
  enabled = true
  address = "{socket}"
  namespace = "k8s.io"
  networkMode = "host"
  maxUsedSpace = "20GB"
  minFreeSpace = "10GB"
"""


@dataclass(frozen=True)
class Image:
    """One of the project's images and the files that make it."""

    name: str
    dockerfile: str
    sources: tuple[str, ...]
    target: str = ""
    """The stage of the Dockerfile; the last one by default."""


IMAGES = {
    "operator": Image(
        "finetune-operator",
        "operator/Dockerfile",
        ("requirements/uv.txt", "requirements/operator.txt", "crds/src", "operator/src"),
    ),
    "preflight": Image(
        "finetune-preflight",
        "trainer_image/Dockerfile",
        ("requirements/uv.txt", "requirements/preflight.txt", "crds/src", "trainer_image/src"),
        target="preflight",
    ),
    "trainer": Image(
        "finetune-trainer",
        "trainer_image/Dockerfile",
        (
            *("requirements/uv.txt", "requirements/preflight.txt", "requirements/trainer.txt"),
            *("requirements/llama-cpp.txt", "requirements/llama-cpp-build.txt", "trainer_image/llama-cpp.sh"),
            *("crds/src", "trainer_image/src"),
        ),
    ),
}


def build_all(layout: Layout) -> dict[str, str]:
    """Build what changed; the references, by the image's role."""
    base = ensure_base_image(layout)
    references = {"base": base.removeprefix(LIBRARY)}
    for role, image in IMAGES.items():
        references[role] = f"{image.name}:{_content_hash(image, base)}"
        if f"{LIBRARY}{references[role]}" not in containers.images(layout):
            _build(layout, image, references[role], base)
    layout.images_file.write_text(json.dumps(references, indent=2) + "\n")
    return references


def build_folder(layout: Layout, name: str, folder: Path) -> str:
    """Build the Dockerfile of a folder from the base image; the reference."""
    base = ensure_base_image(layout)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    reference = f"{name}:{_digest(base, folder, files)}"
    if f"{LIBRARY}{reference}" not in containers.images(layout):
        _build(layout, Image(name, "Dockerfile", ()), reference, base, folder)
    return reference


def ensure_program(layout: Layout, name: str, path: str) -> str:
    """Put one of the Go programs into the node as an image of that file; its reference."""
    build((name,))
    program = Path(binary(name))
    reference = f"finetune-{name}:{program.parent.name.rpartition('-v')[2]}"
    if f"{LIBRARY}{reference}" not in containers.images(layout):
        archive = layout.root / f"{name}.tar"
        write_archive(archive, f"{LIBRARY}{reference}", {path.removeprefix("/"): program}, entrypoint=[path])
        containers.import_archive(layout, archive)
        archive.unlink()
    return reference


def remove_old(layout: Layout, references: Mapping[str, str]) -> None:
    """Remove earlier builds that no object in the cluster names, neither by tag nor by digest."""
    named = kubectl.text_of_all(layout, "pods,jobs.batch,deployments.apps")
    jobs = kubectl.text_of_all(layout, "finetunejobs.finetune.dev") or ""
    if named is None:
        return
    digests = containers.image_digests(layout)
    current = {f"{LIBRARY}{reference}" for reference in references.values()}
    kept = {digests.get(reference) for reference in current}
    ours = tuple(f"{LIBRARY}{name}:" for name in ("finetune-base", *(image.name for image in IMAGES.values())))
    old = {
        digest
        for reference, digest in digests.items()
        if reference.startswith(ours)
        and digest not in kept
        and not any(name in named + jobs for name in (reference.removeprefix(LIBRARY), digest))
    }
    containers.remove_images(layout, [reference for reference, digest in digests.items() if digest in old])


def environment(layout: Layout) -> dict[str, str]:
    """The references of the last build, as variables."""
    if not layout.images_file.exists():
        return {}
    references = json.loads(layout.images_file.read_text())
    return {f"FINETUNE_{role.upper()}_IMAGE": reference for role, reference in references.items()}


def _build(layout: Layout, image: Image, reference: str, base: str, context: Path = CHECKOUT) -> None:
    print(f"building {reference} … ", end="", flush=True)
    begin = time.monotonic()
    _start_builder(layout)
    run_logged(
        layout,
        f"image-{image.name}",
        [
            *_buildctl(layout),
            "build",
            "--progress=plain",
            "--frontend=dockerfile.v0",
            f"--local=context={context}",
            f"--local=dockerfile={context}",
            f"--opt=filename={image.dockerfile}",
            f"--opt=build-arg:BASE_IMAGE={base}",
            *([f"--opt=target={image.target}"] if image.target else []),
            "--opt=image-resolve-mode=local",
            f"--output=type=image,name={LIBRARY}{reference},unpack=true,compression=uncompressed",
        ],
    )
    print(f"{time.monotonic() - begin:.0f} s", flush=True)


def _start_builder(layout: Layout) -> None:
    config = layout.etc / "buildkit.toml"
    config.write_text(CONFIG.format(root=layout.root, socket=layout.containerd_socket))
    ensure(layout, Daemon("buildkitd", [binary("buildkitd"), f"--config={config}"]))
    wait_until(lambda: _builder_answers(layout), 30, "the image builder", layout, "buildkitd")


def _builder_answers(layout: Layout) -> bool:
    return subprocess.run([*_buildctl(layout), "debug", "workers"], check=False, capture_output=True).returncode == 0


def _buildctl(layout: Layout) -> list[str]:
    return [binary("buildctl"), f"--addr=unix://{layout.root}/buildkit.sock"]


def _content_hash(image: Image, base: str) -> str:
    return _digest(f"{base}\n{image.target}", CHECKOUT, _files(image))


def _digest(first: str, folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(first.encode())
    for path in files:
        digest.update(f"\n{path.relative_to(folder)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _files(image: Image) -> list[Path]:
    found = {CHECKOUT / image.dockerfile, CHECKOUT / ".dockerignore"}
    for source in image.sources:
        path = CHECKOUT / source
        found |= {path} if path.is_file() else {each for each in path.rglob("*") if each.is_file()}
    return sorted(path for path in found if "__pycache__" not in path.parts and path.suffix != ".pyc")
