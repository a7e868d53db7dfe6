"""Models and datasets of a hub as a readable store: by commit, with resume and verification."""

# ruff: noqa: D102 - the protocol documents the methods

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from finetune_api.output import COMMIT
from finetune_trainer.errors import InvalidConfig, ObjectMissing, StorageUnavailable
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.hub.client import HubClient
from finetune_trainer.storage.hub.uris import HubConnection, HubUri, Repo, matches_entry, parse_hub_uri
from finetune_trainer.storage.protocol import (
    CHUNK_BYTES,
    MAX_OBJECTS,
    MAX_READ_BYTES,
    Entry,
    OnBytes,
    ReadableStore,
    count_error,
    sha256_blocks,
    size_error,
)

DEFAULT_REVISION = "main"
MAX_RESTARTS = 3
FIRST_PAGE = "recursive=true&expand=false"
SHORTEST_PAGE = 100
"""Entries that a page counts for at least, so that empty pages end too."""
LARGEST_FILE = 2**48


class HubStore(ReadableStore):
    """The repositories of a hub under `hf://` URIs; an unpinned URI means the newest commit of `main`."""

    def __init__(self, connection: HubConnection, retry_seconds: float = 0.0, stop: StopFlag | None = None) -> None:
        self._client = HubClient(connection, retry_seconds, stop or StopFlag())
        self._commits: dict[tuple[Repo, str], str] = {}
        self._listings: dict[tuple[Repo, str], dict[str, Entry]] = {}

    def pin(self, uri: str, revision: str | None = None) -> str:
        """Return the URI with its commit; raise if the hub refuses the repository or revision."""
        return str(self._address(uri, revision))

    def probe(self, uri: str) -> None:
        """Request the commit."""
        self.pin(uri)

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one file, with resume after a broken connection; it appears only if it matches the hub's listing."""
        address = self._address(uri)
        entry = self._existing(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        for _ in range(MAX_RESTARTS):
            self._fill(address, part, entry.size, on_bytes)
            if matches_entry(part, entry):
                part.replace(path)
                return
            part.unlink()
        raise StorageUnavailable(
            f"{address} at {self._client.endpoint}: the downloaded file differs from the hub's listing: a mirror or a "
            "proxy changes it"
        )

    def read(self, uri: str, limit: int = MAX_READ_BYTES) -> bytes | None:
        size = self.size(uri)
        if size is None:
            return None
        if size > limit:
            raise size_error(uri, limit)
        return self._client.retry(lambda: b"".join(self._blocks(self._address(uri))))

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        address = self._address(uri)
        return self._client.retry(lambda: self._range(address, start, length))

    def list(self, uri: str, limit: int = MAX_OBJECTS) -> "list[Entry]":
        address = self._address(uri)
        prefix = f"{address.path}/" if address.path else ""
        found = [
            Entry(key[len(prefix) :], entry.size, entry.etag, entry.sha256)
            for key, entry in sorted(self._listing(address).items())
            if key.startswith(prefix)
        ]
        if len(found) > limit:
            raise count_error(uri, limit)
        return found

    def size(self, uri: str) -> int | None:
        address = self._address(uri)
        entry = self._listing(address).get(address.path)
        return entry.size if entry else None

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        return self._client.retry(lambda: sha256_blocks(self._blocks(self._address(uri)), on_bytes))

    def _fill(self, address: HubUri, part: Path, size: int, on_bytes: OnBytes | None) -> None:
        """Download the rest of a file. Each received part resets the retry time; a server without ranges may start
        over `MAX_RESTARTS` times."""
        starts = 0
        while not part.is_file() or part.stat().st_size < size:
            starts += self._client.retry(partial(self._append, address, part, size, on_bytes))
            if starts > MAX_RESTARTS:
                message = "the connection breaks repeatedly, and the server does not support resume"
                raise StorageUnavailable(f"{address} at {self._client.endpoint}: {message}")

    def _append(self, address: HubUri, part: Path, size: int, on_bytes: OnBytes | None) -> bool:
        """Append what one connection delivers; return whether it began at the start of the file."""
        with part.open("ab") as file:
            begin = file.tell()
            came = 0
            try:
                with self._client.stream(address, f"bytes={begin}-" if begin else None) as response:
                    if begin and response.status_code != 206:
                        file.truncate(0)
                        begin = 0
                    for block in response.iter_bytes():
                        file.write(block)
                        came += len(block)
                        if on_bytes:
                            on_bytes(len(block))
                        if begin + came > size:
                            break
            except StorageUnavailable:
                if not came:
                    raise
        if not came and size:
            raise StorageUnavailable(f"{address} at {self._client.endpoint}: the response has no content")
        return not begin

    def _range(self, address: HubUri, start: int, length: int) -> bytes:
        with self._client.stream(address, f"bytes={start}-{start + length - 1}") as response:
            skip = 0 if response.status_code == 206 else start
            found = bytearray()
            for block in response.iter_bytes(min(CHUNK_BYTES, skip + length)):
                found += block
                if len(found) >= skip + length:
                    break
        return bytes(found[skip : skip + length])

    def _blocks(self, address: HubUri) -> Iterator[bytes]:
        left = size = self._existing(address).size
        with self._client.stream(address) as response:
            for block in response.iter_bytes(CHUNK_BYTES):
                left -= len(block)
                if left < 0:
                    where = f"{address} at {self._client.endpoint}"
                    raise StorageUnavailable(
                        f"{where}: the file is longer than the {size:,} bytes of the hub's listing"
                    )
                yield block

    def _address(self, uri: str, revision: str | None = None) -> HubUri:
        address = parse_hub_uri(uri)
        return HubUri(address.repo, self._commit(address, revision), address.path)

    def _commit(self, address: HubUri, revision: str | None) -> str:
        if address.commit and not revision:
            return address.commit
        asked = HubUri(address.repo, revision, address.path)  # for messages
        revision = revision or DEFAULT_REVISION
        key = (address.repo, revision)
        if key not in self._commits:
            path = f"{address.repo.kind}s/{address.repo.name}/revision/{quote(revision, safe='')}"
            content, _ = self._client.get_json(asked, path)
            commit = content.get("sha") if isinstance(content, dict) else None
            if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
                self._not_a_hub(address, "returns no commit")
            self._commits[key] = commit
        return self._commits[key]

    def _existing(self, address: HubUri) -> Entry:
        entry = self._listing(address).get(address.path)
        if entry is None:
            raise ObjectMissing(f"{address} does not exist at {self._client.endpoint}")
        return entry

    def _listing(self, address: HubUri) -> dict[str, Entry]:
        """Return every file of the commit; requested once, because a commit does not change."""
        key = (address.repo, str(address.commit))
        if key not in self._listings:
            self._listings[key] = {entry.key: entry for entry in self._listed(address)}
        return self._listings[key]

    def _listed(self, address: HubUri) -> Iterator[Entry]:
        """Yield the files, page by page. Only the query of the next page is used: requests stay at this endpoint."""
        query: str | None = FIRST_PAGE
        count = 0
        while query:
            path = f"{address.repo.kind}s/{address.repo.name}/tree/{address.commit}?{query}"
            page, query = self._client.get_json(address, path)
            try:
                entries = [_entry(item) for item in page if item["type"] == "file"]
            except (KeyError, TypeError, ValueError, AttributeError):
                self._not_a_hub(address, "lists its files in an unknown format")
            count += max(len(page), SHORTEST_PAGE)
            if count > MAX_OBJECTS:
                place = self._client.connection.access(address.repo).place
                message = f"{place}.uri is {address}, which has more than {MAX_OBJECTS:,} files"
                raise InvalidConfig(f"{message}: name a smaller repository, or a copy in s3://")
            yield from entries

    def _not_a_hub(self, address: HubUri, why: str) -> NoReturn:
        check = f"check {self._client.connection.endpoint_setting}"
        raise StorageUnavailable(f"{address}: the server at {self._client.endpoint} {why}: {check}")


def _entry(item: dict[str, Any]) -> Entry:
    large = item.get("lfs") or {}
    digest = large.get("oid")
    path, size, etag = item["path"], large.get("size") or item["size"], digest or item["oid"]
    if not (isinstance(path, str) and isinstance(etag, str) and type(size) is int and 0 <= size < LARGEST_FILE):
        raise ValueError(item)
    return Entry(path, size, etag, digest)
