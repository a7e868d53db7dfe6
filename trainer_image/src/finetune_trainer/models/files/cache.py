"""A cache of downloaded models that runs share: only complete entries are used, after verification."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.handoff import MODEL_CACHE_DIR, JobConfig
from finetune_api.inputs.claims import is_claim_uri
from finetune_api.output import COMMIT
from finetune_trainer.errors import NO_ROOM
from finetune_trainer.models.files.base_model import pin_model
from finetune_trainer.storage.etag import is_digest, matches_etag
from finetune_trainer.storage.hub.uris import is_hub_uri, matches_entry, pinned_model_uri, strip_commit
from finetune_trainer.storage.protocol import Entry, OnBytes, ReadableStore, confine_path, sha256_file

logger = logging.getLogger(__name__)

LAYOUT = "v1"
MARKER = "complete.json"
FILES = "files"
PART = ".part"
"""Suffix of a partial download, which a later one resumes."""
WAIT_SECONDS = 1.0
NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})
SPARE_BYTES = 64 * 1024 * 1024


def pin_as_checked(config: JobConfig, checked: Mapping[str, Any], storage: ReadableStore) -> JobConfig:
    """Return the job with the model's commit from preflight's summary, because a branch may have moved since."""
    model = config.spec.model
    revision = str(checked.get("revision", ""))
    if is_hub_uri(model.uri) and checked.get("uri") == model.uri and COMMIT.fullmatch(revision):
        config = config.with_spec(model=model.model_copy(update={"revision": revision}))
    return pin_model(config, storage)


def fetch_model(
    config: JobConfig,
    entries: list[Entry],
    storage: ReadableStore,
    directory: Path,
    on_bytes: OnBytes,
    *,
    cache: Path = Path(MODEL_CACHE_DIR),
) -> Path:
    """Return the folder with the listed files of the model: in the cache, else downloaded into `directory`."""
    uri = pinned_model_uri(config.spec.model)
    shutil.rmtree(directory, ignore_errors=True)
    if config.spec.model_cache and cache.is_dir() and not is_claim_uri(uri):
        found = cached_model(uri, entries, storage, cache, on_bytes)
        if found:
            return found
    storage.download_listed(uri, entries, directory, on_bytes)
    return directory


def cached_model(uri: str, entries: list[Entry], storage: ReadableStore, root: Path, on_bytes: OnBytes) -> Path | None:
    """Return the model's folder in the cache, after filling it if needed; None, with a warning, if that fails."""
    model = CachedModel(uri, tuple(entries), root)
    try:
        model.require_digests()
        found = model.find(on_bytes)
        if found:
            logger.info("%s is in the model cache: nothing is downloaded", strip_commit(uri))
            return found
        return model.fill(storage, on_bytes)
    except CacheUnusable as unusable:
        logger.warning("the model cache is not used: %s; the model is downloaded into the workspace", unusable)
        return None


class CacheUnusable(Exception):  # noqa: N818 - a state of the cache, not an error of the run
    """The cache cannot hold the model; the run continues without it."""


@dataclass(frozen=True, slots=True)
class CachedModel:
    """The files of one model, as storage lists them now, and their folder in the cache."""

    uri: str
    entries: tuple[Entry, ...]
    root: Path

    @property
    def key(self) -> str:
        """A digest of names, sizes and etags of the files; for a hub's model also of its commit."""
        lines = [f"{entry.key}\t{entry.size}\t{entry.etag}" for entry in self.entries]
        return hashlib.sha256("\n".join([self.uri, *lines]).encode()).hexdigest()[:40]

    @property
    def folder(self) -> Path:
        """The folder of the complete entry."""
        return self.root / LAYOUT / self.key

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    def find(self, on_bytes: OnBytes) -> Path | None:
        """Return the folder of the complete, undamaged model; None if there is none."""
        try:
            marker: dict[str, Any] = json.loads((self.folder / MARKER).read_bytes())
            digests = {str(name): str(digest) for name, digest in marker["sha256"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        files = self.folder / FILES
        for entry in self.entries:
            if not self._is_intact(files / entry.key, entry, digests.get(entry.key), on_bytes):
                logger.warning(
                    "the cached %s is damaged (%s): it is downloaded again", strip_commit(self.uri), entry.key
                )
                return None
        if other := self._find_other(files):
            logger.warning(
                "the cached %s has a file that storage does not list (%s): it is downloaded again",
                strip_commit(self.uri),
                other,
            )
            return None
        return files

    def _find_other(self, files: Path) -> str:
        """Return a file that is not one of the model's: its loader would read weights or an adapter from it."""
        known = {entry.key for entry in self.entries}
        found = (path for path in files.rglob("*") if path.is_symlink() or not path.is_dir())
        return next((name for path in found if (name := path.relative_to(files).as_posix()) not in known), "")

    def _is_intact(self, path: Path, entry: Entry, digest: str | None, on_bytes: OnBytes) -> bool:
        """Compare a file with the marker and with storage: a writer to the cache could have forged the marker."""
        try:
            if digest is None or path.stat().st_size != entry.size:
                return False
            if sha256_file(path, lambda _count: on_bytes(0)) != digest:
                return False
            return digest == entry.sha256 if entry.sha256 else self._is_as_listed(path, entry)
        except OSError:
            return False

    def require_digests(self) -> None:
        """Raise CacheUnusable if storage lists nothing that binds a file's content: others may write to the cache."""
        if is_hub_uri(self.uri):
            return
        unbound = [entry.key for entry in self.entries if not entry.sha256 and not is_digest(entry.etag)]
        if unbound or self._unverifiable.exists():
            named = unbound[0] if unbound else "a file"
            raise CacheUnusable(f"the ETag of {named} is no digest, so that a cached copy cannot be verified")

    @property
    def _unverifiable(self) -> Path:
        """A mark that this model was downloaded once and has ETags that are not of its content, as with SSE-KMS."""
        return self.folder.with_suffix(".unverifiable")

    def _is_as_listed(self, path: Path, entry: Entry) -> bool:
        """Compare a file with its listing: a hub lists digests, S3 an ETag made of MD5s."""
        if is_hub_uri(self.uri):
            return matches_entry(path, entry)
        return path.stat().st_size == entry.size and matches_etag(path, entry.etag)

    def fill(self, storage: ReadableStore, on_bytes: OnBytes) -> Path:
        """Download into the cache and mark the entry complete, unless another run was faster."""
        try:
            (self.root / LAYOUT).mkdir(parents=True, exist_ok=True)
            with self._alone(on_bytes) as part:
                found = self.find(on_bytes)
                if found is None:
                    self._check_room(part)
                    self._download(storage, part, on_bytes)
                    self._publish(part)
        except OSError as error:
            raise CacheUnusable(_reason(error)) from error
        found = self.find(on_bytes)
        if found is None:
            raise CacheUnusable("the entry was removed or damaged while it was filled")
        return found

    @contextmanager
    def _alone(self, on_bytes: OnBytes) -> Iterator[Path]:
        """Yield the folder to download into.

        If the file system has locks, one run at a time fills the entry, and resumes the download of a stopped run;
        otherwise each run fills a folder of its own.
        """
        lock_path = self.folder.with_suffix(".lock")
        with lock_path.open("ab") as lock:
            if _wait_for_lock(lock.fileno(), on_bytes):
                yield self.folder.with_suffix(PART)
                return
        own = self.folder.with_suffix(f".{uuid.uuid4().hex}{PART}")
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def _check_room(self, part: Path) -> None:
        used = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.root).free
        if free + used < self.size + SPARE_BYTES:
            raise CacheUnusable(f"it has {free:,} bytes free and the model needs {self.size:,}: delete folders in it")

    def _download(self, storage: ReadableStore, part: Path, on_bytes: OnBytes) -> None:
        digests = {}
        _remove_others(part / FILES, {entry.key for entry in self.entries})
        for entry in self.entries:
            path = confine_path(part / FILES, entry.key)
            if not (path.is_file() and self._is_as_listed(path, entry)):
                storage.download_entry(self.uri, entry, path, on_bytes)
            digests[entry.key] = sha256_file(path, lambda _count: on_bytes(0))
            if not entry.sha256 and not self._is_as_listed(path, entry):
                self._unverifiable.touch()
                shutil.rmtree(part, ignore_errors=True)
                raise CacheUnusable(f"the ETag of {entry.key} is no digest of its content")
        marker = {"uri": self.uri, "sha256": digests}
        (part / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")

    def _publish(self, part: Path) -> None:
        """Rename the folder, so that readers see the whole entry or none; a damaged one is removed first."""
        if self.folder.exists():
            old = self.folder.with_suffix(f".{uuid.uuid4().hex}.old")
            self.folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            part.rename(self.folder)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            shutil.rmtree(part, ignore_errors=True)  # another run without a lock was faster


def _remove_others(folder: Path, keys: Set[str]) -> None:
    """Remove files of other downloads, which a killed run may leave."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix().removesuffix(PART) not in keys:
            path.unlink()


def _wait_for_lock(descriptor: int, on_bytes: OnBytes) -> bool:
    """Wait for the run that fills the entry, with a heartbeat each second; return False if there are no locks."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_bytes(0)
            time.sleep(WAIT_SECONDS)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
        else:
            return True


def _reason(error: OSError) -> str:
    if error.errno in NO_ROOM:
        return "its volume is full: delete folders in it, or enlarge the claim"
    if error.errno in NOT_WRITABLE:
        return f"it cannot be written ({os.strerror(error.errno or 0)}): give group 65532 write access to the claim"
    return f"{error.strerror or error}: {error.filename}" if error.filename else error.strerror or str(error)
