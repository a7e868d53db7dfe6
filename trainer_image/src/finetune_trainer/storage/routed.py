"""One store over several: mapped URIs are local, `hf://` is a hub, `pvc://` a mounted claim, the rest the job's S3."""

# ruff: noqa: D102 - the protocol documents the methods

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from finetune_api.handoff import CLAIMS_DIR
from finetune_api.inputs.claims import is_claim_uri
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.storage.claims import ClaimStore
from finetune_trainer.storage.hub.uris import is_hub_uri
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import MAX_OBJECTS, MAX_READ_BYTES, Entry, OnBytes, ReadableStore, Store


class RoutedStore(Store):
    """Connects to each store at its first URI: most jobs need no hub, and pay nothing for it."""

    def __init__(
        self, s3: Callable[[], Store], hub: Callable[[], ReadableStore], local: LocalStore | None = None
    ) -> None:
        self._connect_s3 = s3
        self._connect_hub = hub
        self._local = local or LocalStore({})
        self._claims = ClaimStore(Path(CLAIMS_DIR))

    @cached_property
    def _s3(self) -> Store:
        return self._connect_s3()

    @cached_property
    def _hub(self) -> ReadableStore:
        return self._connect_hub()

    def _route(self, uri: str) -> ReadableStore:
        if self._local.find(uri):
            return self._local
        if is_claim_uri(uri):
            return self._claims
        return self._hub if is_hub_uri(uri) else self._s3

    def _route_write(self, uri: str) -> Store:
        if self._local.find(uri):
            return self._local
        if is_hub_uri(uri) or is_claim_uri(uri):
            kind = "a hub" if is_hub_uri(uri) else "a claim"
            raise InvalidConfig(f"{uri}: {kind} is read-only; write results to s3://")
        return self._s3

    def pin(self, uri: str, revision: str | None = None) -> str:
        return self._route(uri).pin(uri, revision)

    def probe(self, uri: str) -> None:
        self._route(uri).probe(uri)

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        self._route(uri).download(uri, path, on_bytes)

    def download_entry(self, uri: str, entry: Entry, path: Path, on_bytes: OnBytes | None = None) -> None:
        self._route(uri).download_entry(uri, entry, path, on_bytes)

    def file_name(self, uri: str) -> str:
        return self._route(uri).file_name(uri)

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        self._route_write(uri).upload(path, uri, on_bytes)

    def put(self, uri: str, data: bytes) -> None:
        self._route_write(uri).put(uri, data)

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        return self._route_write(uri).put_if_absent(uri, data)

    def remove(self, uri: str) -> None:
        self._route_write(uri).remove(uri)

    def read(self, uri: str, limit: int = MAX_READ_BYTES) -> bytes | None:
        return self._route(uri).read(uri, limit)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        return self._route(uri).read_range(uri, start, length)

    def list(self, uri: str, limit: int = MAX_OBJECTS) -> list[Entry]:
        return self._route(uri).list(uri, limit)

    def first(self, uri: str, besides: tuple[str, ...] = ()) -> Entry | None:
        return self._route(uri).first(uri, besides)

    def size(self, uri: str) -> int | None:
        return self._route(uri).size(uri)

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        return self._route(uri).sha256(uri, on_bytes)
