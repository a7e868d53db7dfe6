"""Files in PersistentVolumeClaims, which the operator mounts read-only: `pvc://claim/path`."""

# ruff: noqa: D102 - the protocol documents the methods

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from finetune_api.inputs.claims import split_claim_uri
from finetune_api.text.printable import printable
from finetune_trainer.errors import (
    InvalidConfig,
    ObjectMissing,
    ObjectReplaced,
    StorageDenied,
    StorageUnavailable,
    TrainerError,
)
from finetune_trainer.storage.protocol import (
    CHUNK_BYTES,
    MAX_OBJECTS,
    MAX_READ_BYTES,
    Entry,
    OnBytes,
    ReadableStore,
    count_error,
    join_uri,
    sha256_blocks,
    size_error,
)

NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV})


class ClaimStore(ReadableStore):
    """The claims that are mounted below `root`, each in a folder of its name.

    Others can write to a claim while it is read. So a symbolic link is followed inside its claim alone, as a hub's
    cache has them: one to a Secret of the pod would make rows of it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def probe(self, uri: str) -> None:
        """Raise if the claim is not mounted."""
        self._locate(uri)

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one file; the copy appears only when complete."""
        self._copy(uri, path, "", on_bytes)

    def download_entry(self, uri: str, entry: Entry, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one listed file; raise ObjectReplaced if it was changed since."""
        self._copy(join_uri(uri, entry.key), path, entry.etag, on_bytes)

    def _copy(self, uri: str, path: Path, tag: str, on_bytes: OnBytes | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            with self._open(uri) as file, part.open("wb") as target:
                for block in _blocks(uri, file):
                    target.write(block)
                    if on_bytes:
                        on_bytes(len(block))
                if tag and _tag(os.fstat(file.fileno())) != tag:
                    raise ObjectReplaced(uri)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def read(self, uri: str, limit: int = MAX_READ_BYTES) -> bytes | None:
        try:
            data = self.read_range(uri, 0, limit + 1)
        except ObjectMissing:
            return None
        if len(data) > limit:
            raise size_error(uri, limit)
        return data

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        with self._open(uri) as file:
            return b"".join(_blocks(uri, file, start, length))

    def list(self, uri: str, limit: int = MAX_OBJECTS) -> "list[Entry]":
        """Return every regular file below a folder; links to folders are not followed."""
        top, folder = self._locate(uri)
        found: list[Entry] = []
        for path, status in _regular_files(uri, top, folder):
            if len(found) == limit:
                raise count_error(uri, limit)
            found.append(Entry(path.relative_to(folder).as_posix(), status.st_size, _tag(status)))
        return sorted(found, key=lambda one: one.key)

    def size(self, uri: str) -> int | None:
        try:
            with self._open(uri) as file:
                return os.fstat(file.fileno()).st_size
        except ObjectMissing:
            return None

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        with self._open(uri) as file:
            return sha256_blocks(_blocks(uri, file), on_bytes)

    def _locate(self, uri: str) -> tuple[Path, Path]:
        """Return the claim's folder and the path of the URI in it."""
        claim, path = split_claim_uri(uri)
        top = self._root / claim
        try:
            is_mounted = stat.S_ISDIR(top.stat().st_mode)
        except FileNotFoundError:
            is_mounted = False
        except OSError as error:
            raise _named(uri, error) from None
        if not is_mounted:
            problem = f"{uri}: the claim is not mounted; a pod has the claims that URIs of its job name"
            raise InvalidConfig(f"{problem}. For a local run, add --map pvc://{claim}=DIR")
        return Path(os.path.realpath(top)), top / path

    @contextmanager
    def _open(self, uri: str) -> Iterator[BinaryIO]:
        """Open a regular file of the claim; what is checked is what was opened, whatever the path leads to later."""
        top, path = self._locate(uri)
        try:
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe would block
        except OSError as error:
            if error.errno in NO_FILE:
                raise ObjectMissing(f"{uri} does not exist") from None
            raise _named(uri, error) from None
        try:
            if not Path(os.readlink(f"/proc/self/fd/{number}")).is_relative_to(top):
                raise StorageDenied(f"{uri} is a link that leads out of its claim: replace it by a copy of the file")
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise ObjectMissing(f"{uri} is not a file")
            with os.fdopen(number, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(number)


def _tag(status: os.stat_result) -> str:
    """Return size and times in place of an ETag, so that a change between preflight and training is found; no user can
    set back the time at which the inode changed."""
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def _blocks(uri: str, file: BinaryIO, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yield what the file has now, from `start`: one that grows while it is read would have no end."""
    left = max(0, os.fstat(file.fileno()).st_size - start)
    left = left if length is None else min(left, length)
    file.seek(start)
    while left:
        try:
            block = file.read(min(left, CHUNK_BYTES))
        except OSError as error:
            raise _named(uri, error) from None
        if not block:
            raise StorageUnavailable(f"{uri} was made shorter while it was read")
        left -= len(block)
        yield block


def _regular_files(uri: str, top: Path, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files below a folder, links to others of the claim included; a missing folder has none.

    What cannot be read raises, because rows would be missing; but for `lost+found`, which is root's.
    """

    def refuse(error: OSError) -> None:
        if error.errno not in NO_FILE and Path(error.filename).name != "lost+found":
            raise _named(uri, error)

    if not Path(os.path.realpath(folder)).is_relative_to(top):
        raise StorageDenied(f"{uri} is a link that leads out of its claim: replace it by a copy of the folder")
    for parent, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = Path(parent, name)
            key = path.relative_to(folder).as_posix()
            if printable(key) != key:
                message = f"{uri} has a file whose name is not UTF-8, or has control characters: {printable(key)}"
                raise InvalidConfig(f"{message}: rename it")
            try:
                status = path.stat()
            except OSError as error:  # a link to nothing, for example
                refuse(error)
                continue
            if stat.S_ISREG(status.st_mode) and Path(os.path.realpath(path)).is_relative_to(top):
                yield path, status


def _named(uri: str, error: OSError) -> TrainerError:
    if isinstance(error, PermissionError):
        groups = sorted({os.getegid(), *os.getgroups()})
        who = f"user {os.geteuid()} with the groups {', '.join(map(str, groups))}"
        return StorageDenied(f"{uri} cannot be read by {who}: permit it in the claim (chmod -R a+rX)")
    return StorageUnavailable(f"{uri}: {error.strerror}")
