"""Files as an OCI manifest and its blobs: an image that can be mounted, or a ModelPack artifact.

The same files give the same digests, on any machine and at any time: a repeated push moves no byte.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_api.output import PackageFormat
from finetune_trainer.storage.protocol import CHUNK_BYTES, OnBytes

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
TAR_LAYER = "application/vnd.oci.image.layer.v1.tar"
MODEL_PACK = "application/vnd.cncf.model.manifest.v1+json"
MODEL_PACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHTS, SETTINGS, DOCUMENT = (
    f"application/vnd.cncf.model.{kind}.v1.raw" for kind in ("weight", "weight.config", "doc")
)
TITLE = "org.opencontainers.image.title"
"""The name under which `oras pull` writes a layer, and CRI-O mounts one."""
FILE_PATH = "org.cncf.model.filepath"
FOLDER = "models"
"""Where KServe looks for the files in an image."""
WEIGHT_SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf"}
MAX_WEIGHT_LAYERS = 100
"""Layers of weights in an image: overlayfs mounts about 120 folders at once."""
BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Blob:
    """A blob as pieces of bytes and files, which are read when it is sent."""

    media_type: str
    pieces: tuple[bytes | Path, ...]
    digest: str
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in small parts."""
        return _read(self.pieces)

    def describe(self, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return the descriptor by which a manifest names the blob."""
        found = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return found | ({"annotations": dict(annotations)} if annotations else {})


@dataclass(frozen=True)
class Package:
    """A manifest and the blobs that it names."""

    manifest: bytes
    blobs: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        """Return the digest of the manifest, which names everything in it."""
        return f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"


def build_package(
    kind: PackageFormat, files: Mapping[str, Path], title: str, annotations: Mapping[str, str], on_bytes: OnBytes
) -> Package:
    """Build a package of files, by their relative path; each is read once."""
    build = _build_image if kind is PackageFormat.IMAGE else _build_model_pack
    return build(dict(sorted(files.items())), title, {TITLE: title, **annotations}, on_bytes)


def _build_image(files: Mapping[str, Path], _title: str, annotations: Mapping[str, str], on_bytes: OnBytes) -> Package:
    layers = [
        _blob(TAR_LAYER, tuple(tar_pieces({name: files[name] for name in names})), on_bytes)
        for names in group_layers(files)
    ]
    digests = [layer.digest for layer in layers]
    config = {
        # The files suit every processor; a runtime that mounts a volume does not compare this.
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": [{"created_by": "finetune-trainer"} for _ in layers],
    }
    return _package(_json_blob(IMAGE_CONFIG, config), [(layer, {}) for layer in layers], annotations)


def group_layers(names: Sequence[str] | Mapping[str, Path]) -> list[list[str]]:
    """Return the names of the files of each layer: weights one by one if they are not too many, then the rest in one.

    So two results share the layers of what they have in common, and a node loads several at once.
    """
    weights = [name for name in names if PurePosixPath(name).suffix in WEIGHT_SUFFIXES]
    each = -(-len(weights) // MAX_WEIGHT_LAYERS) or 1
    groups = [weights[start : start + each] for start in range(0, len(weights), each)]
    rest = [name for name in names if name not in set(weights)]
    return groups + ([rest] if rest else [])


def _build_model_pack(
    files: Mapping[str, Path], title: str, annotations: Mapping[str, str], on_bytes: OnBytes
) -> Package:
    layers = [
        (_blob(model_pack_type(name), (path,), on_bytes), {FILE_PATH: name, TITLE: name})
        for name, path in files.items()
    ]
    formats = sorted({found for name in files if (found := WEIGHT_SUFFIXES.get(PurePosixPath(name).suffix))})
    config = {
        "descriptor": {"name": title},
        "config": {"format": ",".join(formats)} if formats else {},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer, _ in layers]},
    }
    return _package(_json_blob(MODEL_PACK_CONFIG, config), layers, annotations, {"artifactType": MODEL_PACK})


def model_pack_type(name: str) -> str:
    """Return the media type of a file by its name: weights, documents, or what belongs to the weights."""
    path = PurePosixPath(name)
    if path.suffix in WEIGHT_SUFFIXES:
        return WEIGHTS
    return DOCUMENT if path.suffix == ".md" or path.name.upper().startswith(("LICENSE", "NOTICE")) else SETTINGS


def _package(
    config: Blob,
    layers: Sequence[tuple[Blob, Mapping[str, str]]],
    annotations: Mapping[str, str],
    more: Mapping[str, str] | None = None,
) -> Package:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        **(more or {}),
        "config": config.describe(),
        "layers": [layer.describe(own) for layer, own in layers],
        "annotations": dict(annotations),
    }
    return Package(_json(manifest), (*(layer for layer, _ in layers), config))


def tar_pieces(files: Mapping[str, Path]) -> Iterator[bytes | Path]:
    """Yield the pieces of a tar archive of the files below the folder; times, owners and rights are always the same."""
    folders = {f"{FOLDER}/{parent}" for name in files for parent in PurePosixPath(name).parents}
    for folder in sorted(one.removesuffix("/.") for one in folders):
        entry = tarfile.TarInfo(folder)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        yield entry.tobuf(tarfile.PAX_FORMAT)
    for name, path in files.items():
        entry = tarfile.TarInfo(f"{FOLDER}/{name}")
        entry.size = path.stat().st_size
        yield entry.tobuf(tarfile.PAX_FORMAT)
        yield path
        yield bytes(-entry.size % BLOCK)
    yield END


def _blob(media_type: str, pieces: tuple[bytes | Path, ...], on_bytes: Callable[[int], None]) -> Blob:
    digest, size = hashlib.sha256(), 0
    for block in _read(pieces):
        digest.update(block)
        size += len(block)
        on_bytes(len(block))
    return Blob(media_type, pieces, f"sha256:{digest.hexdigest()}", size)


def _json_blob(media_type: str, content: Mapping[str, Any]) -> Blob:
    return _blob(media_type, (_json(content),), lambda _size: None)


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _read(pieces: Sequence[bytes | Path]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        with piece.open("rb") as file:
            while block := file.read(CHUNK_BYTES):
                yield block
