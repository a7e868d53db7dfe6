import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from finetune_trainer.errors import Stopped, StorageUnavailable
from finetune_trainer.models.files.cache import SPARE_BYTES, CachedModel, cached_model
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import Entry, OnBytes

URI = "s3://bucket/model"
CONTENT = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "additional/one.jinja": b"template"}


class Counting(LocalStore):
    """Lists ETags as S3 does, and remembers what was downloaded; `trouble` may raise before it is."""

    def __init__(self, folder: Path) -> None:
        super().__init__({URI: folder})
        self.folder = folder
        self.downloaded: list[str] = []
        self.trouble: Callable[[str], None] = lambda _uri: None

    def list(self, uri: str) -> list[Entry]:
        return [
            replace(entry, etag=hashlib.md5((self.folder / entry.key).read_bytes()).hexdigest())
            for entry in super().list(uri)
        ]

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        self.trouble(uri)
        self.downloaded.append(uri.removeprefix(f"{URI}/"))
        super().download(uri, path, on_bytes)


class Setting(NamedTuple):
    storage: Counting
    cache: Path

    def fetch(self, on_bytes: OnBytes = lambda _count: None) -> Path | None:
        return cached_model(URI, self.storage.list(URI), self.storage, self.cache, on_bytes)

    def model(self) -> CachedModel:
        return CachedModel(URI, tuple(self.storage.list(URI)), self.cache)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    for name, content in CONTENT.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "cache").mkdir()
    return Setting(Counting(tmp_path / "model"), tmp_path / "cache")


def contents(folder: Path | None) -> dict[str, bytes]:
    assert folder is not None
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_first_run_fills_the_cache_and_the_second_downloads_nothing(setting: Setting) -> None:
    first = setting.fetch()
    assert contents(first) == CONTENT
    assert sorted(setting.storage.downloaded) == sorted(CONTENT)
    setting.storage.downloaded.clear()
    assert setting.fetch() == first
    assert setting.storage.downloaded == []


def test_another_content_or_another_model_is_another_entry(setting: Setting) -> None:
    entries = (Entry("model.safetensors", 10, "etag-1"),)
    base = CachedModel(URI, entries, setting.cache)
    others = [
        CachedModel(f"{URI}-2", entries, setting.cache),
        CachedModel(URI, (Entry("model.safetensors", 11, "etag-1"),), setting.cache),
        CachedModel(URI, (Entry("model.safetensors", 10, "etag-2"),), setting.cache),
        CachedModel(URI, (*entries, Entry("config.json", 1)), setting.cache),
    ]
    assert len({base.key, *(other.key for other in others)}) == 5


@pytest.mark.parametrize("how", ["flipped", "shortened", "removed", "no marker", "broken marker", "marker of another"])
def test_a_damaged_entry_is_downloaded_again(setting: Setting, how: str) -> None:
    folder = setting.fetch()
    assert folder is not None
    weights, marker = folder / "model.safetensors", folder.parent / "complete.json"
    match how:
        case "flipped":
            weights.write_bytes(b"W" + weights.read_bytes()[1:])
        case "shortened":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "removed":
            weights.unlink()
        case "no marker":
            marker.unlink()
        case "broken marker":
            marker.write_text('{"sha256": [')
        case _:
            marker.write_text('{"sha256": {"model.safetensors": "0"}}')
    assert contents(setting.fetch()) == CONTENT
    assert len(list((setting.cache / "v1").glob("*.old"))) == 0


def test_weights_that_another_pod_put_into_the_cache_with_a_marker_are_not_used(setting: Setting) -> None:
    """The neighbour may write to the shared folder; the size and the marker are right."""
    folder = setting.fetch()
    assert folder is not None
    forged = b"WEIGHTS" * 1000
    (folder / "model.safetensors").write_bytes(forged)
    marker = folder.parent / "complete.json"
    content = json.loads(marker.read_text())
    content["sha256"]["model.safetensors"] = hashlib.sha256(forged).hexdigest()
    marker.write_text(json.dumps(content))
    assert contents(setting.fetch()) == CONTENT


@pytest.mark.parametrize("name", ["model-00001.safetensors", "adapter_config.json", "a/b.jinja", "linked"])
def test_a_file_that_another_pod_put_next_to_the_model_is_not_loaded_with_it(setting: Setting, name: str) -> None:
    """Transformers prefers weights in one file to those in several, and applies an adapter that lies next to them."""
    folder = setting.fetch()
    assert folder is not None
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if name == "linked":
        path.symlink_to(folder.parent, target_is_directory=True)
    else:
        path.write_bytes(b"planted")
    assert contents(setting.fetch()) == CONTENT
    assert not path.exists()


def test_a_store_whose_etags_are_no_digests_is_not_cached(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    listed = [replace(entry, etag="opaque") for entry in setting.storage.list(URI)]
    assert cached_model(URI, listed, setting.storage, setting.cache, lambda _count: None) is None
    assert "is no digest, so that a cached copy cannot be verified" in caplog.text


def test_an_encrypted_stores_etags_look_like_digests_and_cost_one_download(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    """With SSE-KMS an ETag has the form of an MD5."""
    listed = [replace(entry, etag=hashlib.md5(entry.key.encode()).hexdigest()) for entry in setting.storage.list(URI)]
    fetch = partial(cached_model, URI, listed, setting.storage, setting.cache, lambda _count: None)
    assert fetch() is None
    assert "is no digest of its content" in caplog.text
    assert len(setting.storage.downloaded) == 1
    assert fetch() is None
    assert len(setting.storage.downloaded) == 1, "the cache is not tried again"
    assert [path.suffix for path in (setting.cache / "v1").iterdir() if path.is_dir()] == []


def test_a_wrong_marker_is_detected_if_storage_lists_digests(setting: Setting) -> None:
    listed = [Entry("config.json", 2, "oid", sha256="44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")]
    found = cached_model(URI, listed, setting.storage, setting.cache, lambda _count: None)
    assert found is not None
    (found / "config.json").write_bytes(b"[]")
    forged = {"sha256": {"config.json": "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"}}
    (found.parent / "complete.json").write_text(json.dumps(forged))
    again = cached_model(URI, listed, setting.storage, setting.cache, lambda _count: None)
    assert again is not None
    assert (again / "config.json").read_bytes() == b"{}"


def test_a_stopped_download_is_not_an_entry_and_the_next_run_resumes_it(setting: Setting) -> None:
    def stop_at_weights(uri: str) -> None:
        if uri.endswith(".safetensors"):
            raise Stopped

    setting.storage.trouble = stop_at_weights
    with pytest.raises(Stopped):
        setting.fetch()
    assert setting.model().find(lambda _count: None) is None
    setting.storage.trouble = lambda _uri: None
    setting.storage.downloaded.clear()
    assert contents(setting.fetch()) == CONTENT
    assert setting.storage.downloaded == ["model.safetensors"]


def test_an_error_of_storage_passes_through_the_cache(setting: Setting) -> None:
    def gone(_uri: str) -> None:
        raise StorageUnavailable("no answer")

    setting.storage.trouble = gone
    with pytest.raises(StorageUnavailable, match="no answer"):
        setting.fetch()


def test_a_partial_download_counts_as_room(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_weights(uri: str) -> None:
        if uri.endswith(".safetensors"):
            raise Stopped

    setting.storage.trouble = stop_at_weights
    with pytest.raises(Stopped):
        setting.fetch()
    setting.storage.trouble = lambda _uri: None
    partial = sum(path.stat().st_size for path in setting.cache.rglob("*") if path.is_file())
    usage = shutil.disk_usage(setting.cache)
    free = setting.model().size + SPARE_BYTES - partial
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=free))
    assert partial > 0
    assert contents(setting.fetch()) == CONTENT


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_volume_that_fills_up_is_reported_and_the_run_continues_without_it(
    setting: Setting, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def full(_uri: str) -> None:
        raise OSError(code, os.strerror(code))

    setting.storage.trouble = full
    with caplog.at_level(logging.WARNING):
        assert setting.fetch() is None
    assert "its volume is full: delete folders in it, or enlarge the claim" in caplog.text


def test_a_model_that_cannot_fit_is_not_begun(
    setting: Setting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(setting.cache)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=100))
    with caplog.at_level(logging.WARNING):
        assert setting.fetch() is None
    assert "it has 100 bytes free and the model needs 7,010" in caplog.text
    assert setting.storage.downloaded == []


def test_a_read_only_cache_is_reported_and_still_read(
    setting: Setting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = setting.fetch()

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    assert setting.fetch() == folder
    assert folder is not None
    (folder / "config.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert setting.fetch() is None
    assert "it cannot be written (Read-only file system)" in caplog.text


def test_a_file_system_without_locks_still_gives_whole_entries(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert contents(setting.fetch()) == CONTENT
    assert [path.suffix for path in (setting.cache / "v1").iterdir() if path.name != setting.model().key] == [".lock"]


def test_without_locks_the_slower_of_two_runs_uses_what_the_faster_made(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.models.files.cache._wait_for_lock", lambda *_: False)
    faster = Counting(setting.storage.folder)

    def overtake(_uri: str) -> None:
        setting.storage.trouble = lambda _uri: None
        assert cached_model(URI, faster.list(URI), faster, setting.cache, lambda _count: None)

    setting.storage.trouble = overtake
    assert contents(setting.fetch()) == CONTENT
    assert list((setting.cache / "v1").glob("*.part")) == []


CACHE_USER = """
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from finetune_trainer.storage.local import LocalStore
from finetune_trainer.models.files.cache import cached_model

uri, folder, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
beats = 0


class Held(LocalStore):
    def list(self, uri):
        return [
            replace(entry, etag=hashlib.md5((folder / entry.key).read_bytes()).hexdigest())
            for entry in super().list(uri)
        ]

    def download(self, uri, path, on_bytes=None):
        print("downloads", flush=True)
        sys.stdin.readline()
        super().download(uri, path, on_bytes)


def on_bytes(_count):
    global beats
    beats += 1
    if beats == 1:
        print("waits", flush=True)


storage = Held({uri: folder})
print("has", cached_model(uri, storage.list(uri), storage, cache, on_bytes), flush=True)
"""
"""A run that downloads on a line of standard input, and reports its first heartbeat without a download."""


class CacheUser:
    """A run in a process of its own."""

    def __init__(self, setting: Setting) -> None:
        command = [sys.executable, "-c", CACHE_USER, URI, str(setting.storage.folder), str(setting.cache)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self) -> str:
        """Let it finish its downloads; return the rest of its output."""
        said, _ = self.process.communicate("\n" * len(CONTENT), timeout=60)
        assert self.process.returncode == 0
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def cache_users(setting: Setting) -> Iterator[tuple[CacheUser, CacheUser]]:
    """Two runs: one is in its first download, and the other waits for it."""
    first = CacheUser(setting)
    second = None
    try:
        assert first.says() == "downloads"
        second = CacheUser(setting)
        assert second.says() == "waits"
        yield first, second
    finally:
        for user in (first, second):
            if user and user.process.poll() is None:
                user.kill()


@pytest.mark.process
def test_of_two_runs_at_once_one_downloads_and_both_have_the_model(
    setting: Setting, cache_users: tuple[CacheUser, CacheUser]
) -> None:
    first, second = cache_users
    files = setting.model().folder / "files"
    assert first.finish().count("downloads") == len(CONTENT) - 1
    assert second.finish().splitlines() == [f"has {files}"]
    assert contents(files) == CONTENT


@pytest.mark.process
def test_when_the_run_that_downloads_is_killed_one_that_waits_resumes(
    setting: Setting, cache_users: tuple[CacheUser, CacheUser]
) -> None:
    first, second = cache_users
    first.kill()
    files = setting.model().folder / "files"
    assert second.finish().splitlines() == ["downloads"] * len(CONTENT) + [f"has {files}"]
    assert contents(files) == CONTENT


def test_what_a_killed_download_left_does_not_get_into_the_entry(setting: Setting) -> None:
    """S3 downloads start under a temporary name; a file that a kill leaves there is useless."""
    part = setting.model().folder.with_suffix(".part") / "files"
    part.mkdir(parents=True)
    (part / "model.safetensors.1F2e3D4c").write_bytes(b"half a file")
    (part / "config.json").write_bytes(CONTENT["config.json"])
    assert contents(setting.fetch()) == CONTENT
    assert "config.json" not in setting.storage.downloaded


def test_a_run_that_waits_for_another_shows_life_and_can_be_stopped(setting: Setting) -> None:
    model = setting.model()
    model.folder.parent.mkdir(parents=True)
    beats: list[int] = []

    def on_bytes(count: int) -> None:
        beats.append(count)
        if len(beats) == 2:
            raise Stopped

    with model.folder.with_suffix(".lock").open("ab") as held:
        fcntl.flock(held.fileno(), fcntl.LOCK_EX)
        with pytest.raises(Stopped):
            setting.fetch(on_bytes)
    assert beats == [0, 0]
    assert setting.storage.downloaded == []
