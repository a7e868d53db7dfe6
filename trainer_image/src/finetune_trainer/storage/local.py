"""Local folders mapped to URIs, for `finetune-trainer run`; an unmapped URI goes to the real store."""

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import ObjectMissing, TrainerError
from finetune_trainer.storage.hub.uris import strip_commit
from finetune_trainer.storage.protocol import (
    MAX_OBJECTS,
    MAX_READ_BYTES,
    Entry,
    OnBytes,
    Store,
    confine_path,
    join_uri,
    sha256_file,
    size_error,
)

PART = ".part"


class LocalStore:
    """A store over `maps` from URI to folder or file; `elsewhere` connects to the store for all other URIs."""

    def __init__(self, maps: Mapping[str, Path], elsewhere: Callable[[], Store]) -> None:
        self._maps = {uri.rstrip("/"): path for uri, path in maps.items()}
        self._connect = elsewhere

    @cached_property
    def _elsewhere(self) -> Store:
        return self._connect()

    def pin(self, uri: str, revision: str | None = None) -> str:
        """Return a mapped URI unchanged; local folders have no revisions."""
        return self._elsewhere.pin(uri, revision) if self._local(uri) is None else uri

    def probe(self, uri: str) -> None:
        """Probe the real store of an unmapped URI; a local folder may be new."""
        if self._local(uri) is None:
            self._elsewhere.probe(uri)

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one object to a local file."""
        source = self._local(uri)
        if source is None:
            self._elsewhere.download(uri, path, on_bytes)
            return
        self._copy(self._existing(source, uri), path, on_bytes)

    def download_folder(
        self,
        uri: str,
        directory: Path,
        on_bytes: OnBytes | None = None,
        accept: Callable[[str], bool] = lambda _key: True,
    ) -> list[Path]:
        """Copy the accepted objects under a prefix into a local folder."""
        if self._local(uri) is None:
            return self._elsewhere.download_folder(uri, directory, on_bytes, accept)
        keys = [entry.key for entry in self.list(uri) if accept(entry.key)]
        for key in keys:
            self.download(join_uri(uri, key), confine_path(directory, key), on_bytes)
        return [directory / key for key in keys]

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        """Copy one local file to an object."""
        target = self._local(uri)
        if target is None:
            self._elsewhere.upload(path, uri, on_bytes)
            return
        self._copy(path, target, on_bytes)

    def put(self, uri: str, data: bytes) -> None:
        """Write a small object; it appears only when complete."""
        target = self._local(uri)
        if target is None:
            self._elsewhere.put(uri, data)
            return
        part = self._part(target)
        part.write_bytes(data)
        part.replace(target)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write a small object unless one exists; a link is atomic between writers and never exposes a partial file."""
        target = self._local(uri)
        if target is None:
            return self._elsewhere.put_if_absent(uri, data)
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
        target = self._local(uri)
        if target is None:
            self._elsewhere.remove(uri)
            return
        target.unlink(missing_ok=True)
        roots = {path.resolve() for path in self._maps.values()}
        for folder in target.resolve().parents:
            if folder in roots or not folder.is_dir() or any(folder.iterdir()):
                return
            folder.rmdir()

    def read(self, uri: str, limit: int = MAX_READ_BYTES) -> bytes | None:
        """Return a small object's content, or None."""
        source = self._local(uri)
        if source is None:
            return self._elsewhere.read(uri, limit)
        if not source.is_file():
            return None
        if source.stat().st_size > limit:
            raise size_error(uri, limit)
        return source.read_bytes()

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`."""
        source = self._local(uri)
        if source is None:
            return self._elsewhere.read_range(uri, start, length)
        with self._existing(source, uri).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def list(self, uri: str, limit: int = MAX_OBJECTS) -> list[Entry]:
        """Return every file below the folder."""
        folder = self._local(uri)
        if folder is None:
            return self._elsewhere.list(uri, limit)
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != PART)
        return [Entry(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]

    def first(self, uri: str) -> Entry | None:
        """Return one file below the folder, or None."""
        return self._elsewhere.first(uri) if self._local(uri) is None else next(iter(self.list(uri)), None)

    def size(self, uri: str) -> int | None:
        """Return the size of one object, or None if it does not exist."""
        source = self._local(uri)
        if source is None:
            return self._elsewhere.size(uri)
        return source.stat().st_size if source.is_file() else None

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        """Return the SHA-256 (hex) of one object's content."""
        source = self._local(uri)
        if source is None:
            return self._elsewhere.sha256(uri, on_bytes)
        return sha256_file(self._existing(source, uri), on_bytes)

    def _local(self, uri: str) -> Path | None:
        """Return the local path of a URI, by the longest mapped prefix."""
        uri = strip_commit(uri).rstrip("/")
        for prefix in sorted(self._maps, key=len, reverse=True):
            if uri == prefix:
                return self._maps[prefix]
            if uri.startswith(f"{prefix}/"):
                return confine_path(self._maps[prefix], uri[len(prefix) + 1 :])
        return None

    def _existing(self, path: Path, uri: str) -> Path:
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


def parse_maps(options: list[str]) -> dict[str, Path]:
    """Parse `s3://bucket/prefix=DIR` and `hf://owner/name=DIR` options."""
    maps: dict[str, Path] = {}
    for option in options:
        uri, separator, path = option.partition("=")
        if not separator or not uri.startswith(("s3://", "hf://")) or not path:
            message = f"--map {option}: write s3://bucket/prefix=DIR or hf://owner/name=DIR"
            raise TrainerError(ExitCode.INVALID_CONFIG, message)
        maps[uri] = Path(path)
    return maps
