"""Write single-layer OCI image archives without an image builder."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def write_archive(target: Path, reference: str, files: Mapping[str, Path], entrypoint: Sequence[str]) -> None:
    """An image of a few executable files."""
    layer = target.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        for name, source in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = source.stat().st_size, 0o755
            with source.open("rb") as content:
                tar.addfile(info, content)
    write_archive_of_root(target, reference, layer, {"Entrypoint": list(entrypoint)})
    layer.unlink()


def write_archive_of_root(
    target: Path, reference: str, layer: Path, config: Mapping[str, object], environment: Sequence[str] = ()
) -> None:
    """An image whose only layer is the given uncompressed tar file."""
    digest = _sha256(layer)
    settings: dict[str, object] = {"Env": [f"PATH={SEARCH_PATH}", *environment], **config}
    image = _blob(
        {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [digest]},
            "history": [{"created_by": "finetune-operator tests/cluster"}],
        }
    )
    manifest = _blob(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", image),
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": digest,
                    "size": layer.stat().st_size,
                }
            ],
        }
    )
    entry = {
        **_descriptor("application/vnd.oci.image.manifest.v1+json", manifest),
        "annotations": {"io.containerd.image.name": reference},
    }
    with tarfile.open(target, "w") as tar:
        _add(tar, "oci-layout", _blob({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _blob({"schemaVersion": 2, "manifests": [entry]}))
        for blob in (image, manifest):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        tar.add(layer, f"blobs/sha256/{digest.removeprefix('sha256:')}")


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


def _blob(content: object) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _add(tar: tarfile.TarFile, name: str, blob: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(blob)
    tar.addfile(info, io.BytesIO(blob))


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
