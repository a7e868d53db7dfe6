"""One storage over two: `hf://` URIs are read from the hub, all others lie in the job's S3 store."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from finetune_trainer.storage.hub.uris import is_hub_uri
from finetune_trainer.storage.protocol import LISTED_MOST, READ_LIMIT, Entry, OnBytes, Storage


class RoutedStorage:
    """Each store is connected to when its first URI comes: most jobs need no hub, and none pays for it."""

    def __init__(self, s3: Callable[[], Storage], hub: Callable[[], Storage]) -> None:
        self._connect_s3 = s3
        self._connect_hub = hub

    @cached_property
    def _s3(self) -> Storage:
        return self._connect_s3()

    @cached_property
    def _hub(self) -> Storage:
        return self._connect_hub()

    def _of(self, uri: str) -> Storage:
        return self._hub if is_hub_uri(uri) else self._s3

    def pin(self, uri: str, revision: str | None = None) -> str:
        """The URI of exactly what a revision is now."""
        return self._of(uri).pin(uri, revision)

    def probe(self, uri: str) -> None:
        """Fail fast."""
        self._of(uri).probe(uri)

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one object to a local file."""
        self._of(uri).download(uri, path, on_bytes)

    def download_folder(
        self,
        uri: str,
        directory: Path,
        on_bytes: OnBytes | None = None,
        accept: Callable[[str], bool] = lambda _key: True,
    ) -> list[Path]:
        """Copy the accepted objects under a prefix into a local folder."""
        return self._of(uri).download_folder(uri, directory, on_bytes, accept)

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        """Copy one local file to an object."""
        self._of(uri).upload(path, uri, on_bytes)

    def put(self, uri: str, data: bytes) -> None:
        """Write a small object."""
        self._of(uri).put(uri, data)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write a small object unless one exists."""
        return self._of(uri).put_if_absent(uri, data)

    def remove(self, uri: str) -> None:
        """Remove one object."""
        self._of(uri).remove(uri)

    def read(self, uri: str, limit: int = READ_LIMIT) -> bytes | None:
        """A small object's content, or None."""
        return self._of(uri).read(uri, limit)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`."""
        return self._of(uri).read_range(uri, start, length)

    def list(self, uri: str, limit: int = LISTED_MOST) -> list[Entry]:
        """Every object under a prefix."""
        return self._of(uri).list(uri, limit)

    def first(self, uri: str) -> Entry | None:
        """One object under a prefix, or None."""
        return self._of(uri).first(uri)

    def size(self, uri: str) -> int | None:
        """Size of one object; None where there is none."""
        return self._of(uri).size(uri)

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        """SHA-256 (hex) of one object's content."""
        return self._of(uri).sha256(uri, on_bytes)
