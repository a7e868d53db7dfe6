"""Objects by URI, wherever they live: the protocol that S3 and local folders share."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError

READ_LIMIT = 64 * 1024 * 1024
CHUNK = 4 * 1024 * 1024
LISTED_MOST = 200_000

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One object under a prefix; `key` is relative to it.

    `etag` changes with the content where the store tells one, and so does `sha256`, which is that of the content.
    """

    key: str
    size: int
    etag: str = ""
    sha256: str | None = None


class Storage(Protocol):
    """What the trainer asks of storage. `on_bytes` is told each transferred part's size and may raise to stop.

    Raises StorageDenied, StorageUnavailable, or ObjectMissing where something that was asked for does not exist.
    """

    def pin(self, uri: str, revision: str | None = None) -> str:
        """The URI of exactly what a revision is now, where the store knows revisions; else the URI itself."""

    def probe(self, uri: str) -> None:
        """Fail fast where the prefix cannot be listed: wrong keys, no such bucket, nobody at the endpoint."""

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one object to a local file."""

    def download_folder(
        self,
        uri: str,
        directory: Path,
        on_bytes: OnBytes | None = None,
        accept: Callable[[str], bool] = lambda _key: True,
    ) -> list[Path]:
        """Copy the accepted objects under a prefix into a local folder; returns their paths there."""

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        """Copy one local file to an object."""

    def put(self, uri: str, data: bytes) -> None:
        """Write a small object, replacing what was there."""

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write a small object unless one exists; returns whether this call wrote it. Atomic between writers."""

    def remove(self, uri: str) -> None:
        """Remove one object; one that is not there is as good as removed."""

    def read(self, uri: str, limit: int = READ_LIMIT) -> bytes | None:
        """A small object's content, or None where there is none; above `limit` bytes it is an error."""

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer at the object's end."""

    def list(self, uri: str, limit: int = LISTED_MOST) -> list[Entry]:
        """Every object under a prefix, in order of the keys; more than `limit` are an error."""

    def first(self, uri: str) -> Entry | None:
        """One object under a prefix, or None where there is none."""

    def size(self, uri: str) -> int | None:
        """Size of one object; None where there is none."""

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        """SHA-256 (hex) of one object's content, read through once."""


def join(uri: str, key: str) -> str:
    """The URI of `key` under the prefix `uri`."""
    return f"{uri.rstrip('/')}/{key}"


def sha256_file(path: Path, on_bytes: OnBytes | None = None) -> str:
    """SHA-256 (hex) of a local file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def confined(directory: Path, key: str) -> Path:
    """The path of `key` inside `directory`; a key that would leave it is refused."""
    path = directory / key
    if not path.resolve().is_relative_to(directory.resolve()):
        raise TrainerError(ExitCode.INVALID_CONFIG, f"the object key {key!r} would be written outside its folder")
    return path


def too_large(uri: str, limit: int) -> TrainerError:
    """The error for a small document that is not small."""
    return TrainerError(ExitCode.INTERNAL_ERROR, f"{uri} is larger than the {limit} bytes that are read of it")


def too_many(uri: str, limit: int) -> TrainerError:
    """The error for a prefix under which the objects do not end."""
    return TrainerError(
        ExitCode.INVALID_CONFIG, f"there are more than {limit:,} objects under {uri}: name a narrower one"
    )
