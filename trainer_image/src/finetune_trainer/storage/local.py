"""Local folders and files in place of URIs, for `finetune-trainer run`."""

# ruff: noqa: D102 - the protocol documents the methods

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from finetune_trainer.errors import InvalidConfig, ObjectMissing
from finetune_trainer.storage.hub.uris import strip_commit
from finetune_trainer.storage.protocol import (
    MAX_OBJECTS,
    MAX_READ_BYTES,
    Entry,
    OnBytes,
    Store,
    confine_path,
    sha256_file,
    size_error,
)

PART = ".part"


class LocalStore(Store):
    """A store over `maps` from URI to folder or file; raises LookupError for any other URI."""

    def __init__(self, maps: Mapping[str, Path]) -> None:
        self._maps = {uri.rstrip("/"): path for uri, path in maps.items()}

    def probe(self, uri: str) -> None:
        """Accept any folder: it may be new."""

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        self._copy(self._existing(uri), path, on_bytes)

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        self._copy(path, self._path(uri), on_bytes)

    def put(self, uri: str, data: bytes) -> None:
        """Write a small object; it appears only when complete."""
        target = self._path(uri)
        part = self._part(target)
        part.write_bytes(data)
        part.replace(target)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write a small object unless one exists; a link is atomic between writers and never exposes a partial file."""
        target = self._path(uri)
        part = self._part(target)
        part.write_bytes(data)
        try:
            os.link(part, target)
        except FileExistsError:
            return False
        finally:
            part.unlink()
        return True

    def remove(self, uri: str) -> None:
        """Remove one object and the folders that are empty then, because a store has no folders."""
        target = self._path(uri)
        target.unlink(missing_ok=True)
        roots = {path.resolve() for path in self._maps.values()}
        for folder in target.resolve().parents:
            if folder in roots or not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()

    def read(self, uri: str, limit: int = MAX_READ_BYTES) -> bytes | None:
        source = self._path(uri)
        if not source.is_file():
            return None
        if source.stat().st_size > limit:
            raise size_error(uri, limit)
        return source.read_bytes()

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        with self._existing(uri).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def list(self, uri: str, limit: int = MAX_OBJECTS) -> list[Entry]:
        """Return every file below the folder; a file in its place is the only one, under its own name."""
        folder = self._path(uri)
        if folder.is_file():
            return [Entry(folder.name, folder.stat().st_size)]
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != PART)
        return [Entry(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]

    def size(self, uri: str) -> int | None:
        source = self._path(uri)
        return source.stat().st_size if source.is_file() else None

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        return sha256_file(self._existing(uri), on_bytes)

    def file_name(self, uri: str) -> str:
        """Return the local path if a file was mapped to the URI or to its folder."""
        path = self._path(uri)
        return str(path) if path in self._maps.values() and path.is_file() else uri

    def find(self, uri: str) -> Path | None:
        """Return the local path of a URI, by the longest mapped prefix; None if no prefix is mapped."""
        uri = strip_commit(uri).rstrip("/")
        for prefix in sorted(self._maps, key=len, reverse=True):
            if uri == prefix:
                return self._maps[prefix]
            if uri.startswith(f"{prefix}/"):
                return _below(self._maps[prefix], uri[len(prefix) + 1 :])
        return None

    def _path(self, uri: str) -> Path:
        path = self.find(uri)
        if path is None:
            raise LookupError(f"{uri} is not mapped to a local folder")
        return path

    def _existing(self, uri: str) -> Path:
        path = self._path(uri)
        if not path.is_file():
            raise ObjectMissing(f"{uri} does not exist at {path}")
        return path

    def _copy(self, source: Path, target: Path, on_bytes: OnBytes | None) -> None:
        part = self._part(target)
        shutil.copyfile(source, part)
        part.replace(target)
        if on_bytes:
            on_bytes(target.stat().st_size)

    def _part(self, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.{uuid.uuid4().hex}{PART}")


def _below(path: Path, key: str) -> Path:
    """Return the path of a key in a mapped folder; in a mapped file there is only the file itself."""
    return path if key == path.name and path.is_file() else confine_path(path, key)


def parse_maps(options: Iterable[str], may_be_new: Callable[[str], bool] = lambda _uri: False) -> dict[str, Path]:
    """Parse `s3://bucket/prefix=DIR`, `hf://owner/name=DIR` and `pvc://claim/path=DIR` options.

    Raises InvalidConfig for a path that does not exist, unless `may_be_new` is true for its URI.
    """
    maps: dict[str, Path] = {}
    for option in options:
        uri, separator, path = option.partition("=")
        if not separator or not uri.startswith(("s3://", "hf://", "pvc://")) or not path:
            message = f"--map {option}: write s3://bucket/prefix=DIR, hf://owner/name=DIR or pvc://claim/path=DIR"
            raise InvalidConfig(message)
        if not Path(path).exists() and not may_be_new(uri):
            raise InvalidConfig(f"--map {option}: there is no such file or folder")
        maps[uri] = Path(path)
    return maps
