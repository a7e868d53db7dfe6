"""The two protocols of storage, for a hub (read only), S3 and local folders: objects by URI."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from finetune_api.handoff import CA_FILE, ManifestFile
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.storage.transfers import transfer_all

MAX_READ_BYTES = 64 * 1024 * 1024
MAX_OBJECTS = 200_000
CHUNK_BYTES = 4 * 1024 * 1024

OnBytes = Callable[[int], None]
"""Called with the size of each transferred part; may raise to stop the transfer."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object under a prefix; `key` is relative to it.

    `etag` changes with the content if the store returns one; `sha256` is the digest of the content, if listed.
    """

    key: str
    size: int
    etag: str = ""
    sha256: str | None = None


class ReadableStore(Protocol):
    """A store to read from.

    Raises StorageDenied, StorageUnavailable, or ObjectMissing if a requested object does not exist. Methods with a body
    are the same for most stores.
    """

    def pin(self, uri: str, revision: str | None = None) -> str:
        """Return the URI of the revision's current commit; the URI itself if the store has no revisions."""
        del revision
        return uri

    def probe(self, uri: str) -> None:
        """Fail fast if the prefix cannot be listed: wrong keys, no such bucket, no server at the endpoint."""

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one object to a local file."""

    def download_folder(
        self,
        uri: str,
        directory: Path,
        on_bytes: OnBytes | None = None,
        accept: Callable[[str], bool] = lambda _key: True,
    ) -> list[Path]:
        """Copy the accepted objects under a prefix into a local folder; return their local paths."""
        return self.download_listed(uri, [entry for entry in self.list(uri) if accept(entry.key)], directory, on_bytes)

    def download_listed(
        self, uri: str, entries: Iterable[Entry], directory: Path, on_bytes: OnBytes | None = None
    ) -> "list[Path]":
        """Copy listed objects under a prefix into a local folder; return their local paths."""
        found = {entry: confine_path(directory, entry.key) for entry in entries}
        transfer_all(
            (entry.size, partial(self.download_entry, uri, entry, path, on_bytes)) for entry, path in found.items()
        )
        return list(found.values())

    def download_entry(self, uri: str, entry: Entry, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one listed object under a prefix to a local file; raise ObjectReplaced if the store finds that it is
        not as it was listed."""
        self.download(join_uri(uri, entry.key), path, on_bytes)

    def file_name(self, uri: str) -> str:
        """Return the name by whose suffix the format of an object is chosen."""
        return uri

    def read(self, uri: str, limit: int = MAX_READ_BYTES) -> bytes | None:
        """Return a small object's content, or None if it does not exist; more than `limit` bytes are an error."""

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`; fewer at the object's end."""

    def list(self, uri: str, limit: int = MAX_OBJECTS) -> list[Entry]:
        """Return every object under a prefix, sorted by key; more than `limit` are an error."""

    def first(self, uri: str, besides: tuple[str, ...] = ()) -> Entry | None:
        """Return one object under a prefix whose key starts with none of `besides`, or None if there is none."""
        return next((entry for entry in self.list(uri) if not entry.key.startswith(besides)), None)

    def size(self, uri: str) -> int | None:
        """Return the size of one object, or None if it does not exist."""

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        """Read one object once and return its SHA-256 (hex)."""


class Store(ReadableStore, Protocol):
    """A store to read from and write to."""

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        """Copy one local file to an object."""

    def put(self, uri: str, data: bytes) -> None:
        """Write a small object and replace an existing one."""

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write a small object unless one exists; return whether this call wrote it. Atomic between writers."""

    def remove(self, uri: str) -> None:
        """Remove one object, if it exists."""


def join_uri(uri: str, key: str) -> str:
    """Return the URI of `key` under the prefix `uri`."""
    return f"{uri.rstrip('/')}/{key}"


def sha256_file(path: Path, on_bytes: OnBytes | None = None) -> str:
    """Return the SHA-256 (hex) of a local file."""
    with path.open("rb") as file:
        return sha256_blocks(iter(partial(file.read, CHUNK_BYTES), b""), on_bytes)


def sha256_blocks(blocks: Iterable[bytes], on_bytes: OnBytes | None) -> str:
    """Return the SHA-256 (hex) of what is read in blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        if on_bytes:
            on_bytes(len(block))
    return digest.hexdigest()


def describe_files(folder: Path, on_bytes: OnBytes | None = None) -> list[ManifestFile]:
    """Return path, size and digest of every file below a local folder, in order."""
    return [
        ManifestFile(
            path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_file(path, on_bytes)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def confine_path(directory: Path, key: str) -> Path:
    """Return the path of `key` inside `directory`; raise if the key leads out of it."""
    path = directory / key
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InvalidConfig(f"the object key {key!r} would be written outside its folder")
    return path


def mounted_authority(directory: Path, place: str) -> Path:
    """Return the file of the authority that `caSecretRef` of a block of the spec names, in its mounted Secret."""
    path = directory / CA_FILE
    if not path.is_file():
        raise InvalidConfig(f"the Secret named by {place}.caSecretRef needs the key {CA_FILE} (PEM)")
    return path


def size_error(uri: str, limit: int) -> TrainerError:
    """Return the error for an object that is too large to read at once."""
    return InvalidConfig(f"{uri} is larger than the limit of {limit:,} bytes: name another one")


def count_error(uri: str, limit: int) -> TrainerError:
    """Return the error for a prefix with too many objects."""
    return InvalidConfig(f"there are more than {limit:,} objects under {uri}: name a narrower prefix")
