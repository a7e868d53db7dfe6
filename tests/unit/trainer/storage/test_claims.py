"""Files in PersistentVolumeClaims, to which others can write while they are read."""

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_trainer.errors import ObjectMissing, ObjectReplaced, StorageDenied, StorageUnavailable, TrainerError
from finetune_trainer.storage.claims import ClaimStore
from finetune_trainer.storage.protocol import CHUNK_BYTES
from finetune_trainer.storage.routed import RoutedStore

ROWS = "pvc://data/team/rows.jsonl"


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    """A mounted claim, next to a Secret of the pod."""
    (tmp_path / "secret").write_text("the key of the storage")
    folder = tmp_path / "claims" / "data"
    (folder / "team" / "deep").mkdir(parents=True)
    (folder / "team" / "rows.jsonl").write_text('{"a": 1}\n')
    (folder / "team" / "deep" / "more.jsonl").write_text('{"a": 2}\n')
    return folder


@pytest.fixture
def store(claim: Path) -> ClaimStore:
    return ClaimStore(claim.parent)


def test_files_are_listed_read_and_copied(store: ClaimStore, tmp_path: Path) -> None:
    assert [(one.key, one.size) for one in store.list("pvc://data/team/")] == [
        ("deep/more.jsonl", 9),
        ("rows.jsonl", 9),
    ]
    assert (store.read(ROWS), store.read_range(ROWS, 2, 1), store.size(ROWS)) == (b'{"a": 1}\n', b"a", 9)
    copied: list[int] = []
    paths = store.download_folder("pvc://data", tmp_path / "copy", copied.append)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        *("copy/team/deep/more.jsonl", "copy/team/rows.jsonl"),
    ]
    assert paths[1].read_bytes() == store.read(ROWS)
    assert copied == [9, 9]
    assert store.sha256(ROWS) == hashlib.sha256(b'{"a": 1}\n').hexdigest()


def test_a_file_that_was_changed_since_it_was_listed_is_refused(store: ClaimStore, claim: Path, tmp_path: Path) -> None:
    (listed,) = [one for one in store.list("pvc://data/team") if one.key == "rows.jsonl"]
    (claim / "team" / "rows.jsonl").write_text('{"a": 9}\n')
    with pytest.raises(ObjectReplaced, match=r"rows\.jsonl was replaced while its folder was read"):
        store.download_entry("pvc://data/team", listed, tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


def test_what_is_missing_is_none_or_named(store: ClaimStore, tmp_path: Path) -> None:
    for uri in ("pvc://data/none", "pvc://data/team", "pvc://data/team/rows.jsonl/below"):
        assert (store.read(uri), store.size(uri)) == (None, None)
        with pytest.raises(ObjectMissing, match=uri):
            store.download(uri, tmp_path / "copy")
    assert store.list("pvc://data/none") == []
    assert not list(tmp_path.glob("copy*"))


def test_a_claim_that_is_not_mounted_is_named_with_the_option_of_a_local_run(store: ClaimStore) -> None:
    with pytest.raises(TrainerError, match=r"pvc://other/x: the claim is not mounted.*--map pvc://other=DIR"):
        store.probe("pvc://other/x")


@pytest.mark.parametrize("link", ["rows.jsonl", "deep", "."])
def test_a_link_out_of_the_claim_is_neither_listed_nor_read(store: ClaimStore, claim: Path, link: str) -> None:
    """A Secret of the pod must not become rows, however the path leads to it."""
    secrets = claim.parents[1] / "outside"
    secrets.mkdir()
    (secrets / "rows.jsonl").write_text("the key of the storage")
    place = claim / "evil"
    if link == "rows.jsonl":
        place.mkdir()
        (place / link).symlink_to(secrets / link)
        uri = "pvc://data/evil/rows.jsonl"
    elif link == "deep":
        place.mkdir()
        (place / link).symlink_to(secrets)
        uri = "pvc://data/evil/deep/rows.jsonl"
    else:
        place.symlink_to(secrets)
        uri = "pvc://data/evil/rows.jsonl"
    for call in (store.read, store.size, store.sha256, lambda one: store.download(one, claim / "copy")):
        with pytest.raises(StorageDenied, match="leads out of its claim"):
            call(uri)
    if link == ".":
        with pytest.raises(StorageDenied, match="leads out of its claim"):
            store.list("pvc://data/evil")
    else:
        assert store.list("pvc://data/evil") == []
    assert not (claim / "copy").exists()


def test_a_link_inside_the_claim_is_followed_as_a_hubs_cache_has_them(store: ClaimStore, claim: Path) -> None:
    (claim / "blobs").mkdir()
    (claim / "blobs" / "1f").write_text("weights")
    (claim / "snapshot").mkdir()
    (claim / "snapshot" / "model.safetensors").symlink_to("../blobs/1f")
    (claim / "current").symlink_to("snapshot")
    for folder in ("snapshot", "current"):
        assert [one.key for one in store.list(f"pvc://data/{folder}")] == ["model.safetensors"]
        assert store.read(f"pvc://data/{folder}/model.safetensors") == b"weights"


def test_a_named_pipe_neither_blocks_nor_counts_as_a_file(store: ClaimStore, claim: Path) -> None:
    os.mkfifo(claim / "team" / "pipe.jsonl")
    assert store.read("pvc://data/team/pipe.jsonl") is None
    assert "pipe.jsonl" not in [one.key for one in store.list("pvc://data/team")]


def test_the_etag_changes_with_the_file(store: ClaimStore, claim: Path) -> None:
    (before,) = [one.etag for one in store.list("pvc://data/team") if one.key == "rows.jsonl"]
    (claim / "team" / "rows.jsonl").write_text('{"b": 1}\n')
    os.utime(claim / "team" / "rows.jsonl", ns=(1, 1))
    (after,) = [one.etag for one in store.list("pvc://data/team") if one.key == "rows.jsonl"]
    assert before != after


def test_a_writer_cannot_hide_a_change_of_a_file_behind_its_size_and_time(store: ClaimStore, claim: Path) -> None:
    rows = claim / "team" / "rows.jsonl"
    before, times = store.list("pvc://data/team"), rows.stat()
    rows.write_text('{"b": 1}\n')
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.list("pvc://data/team") != before


def test_a_file_that_grows_while_it_is_copied_is_copied_as_it_was_opened(
    store: ClaimStore, claim: Path, tmp_path: Path
) -> None:
    log = claim / "team" / "log.jsonl"
    log.write_bytes(b"x" * 3 * CHUNK_BYTES)

    def append(_count: int) -> None:
        with log.open("ab") as file:
            file.write(b"y" * 2 * CHUNK_BYTES)

    store.download("pvc://data/team/log.jsonl", tmp_path / "copy", append)
    assert (tmp_path / "copy").read_bytes() == b"x" * 3 * CHUNK_BYTES


def test_a_file_that_shrinks_while_it_is_copied_is_an_error_that_is_tried_again(
    store: ClaimStore, claim: Path, tmp_path: Path
) -> None:
    log = claim / "team" / "log.jsonl"
    log.write_bytes(b"x" * 3 * CHUNK_BYTES)
    with pytest.raises(StorageUnavailable, match="was made shorter while it was read"):
        store.download("pvc://data/team/log.jsonl", tmp_path / "copy", lambda _count: os.truncate(log, CHUNK_BYTES))
    assert not list(tmp_path.glob("copy*"))


def test_a_name_that_no_report_can_hold_is_refused(store: ClaimStore, claim: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(claim / "team") + b"/caf\xe9"))
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}")
    with pytest.raises(TrainerError, match=r"a file whose name is not UTF-8.*caf.*rename it") as refused:
        store.list("pvc://data")
    refused.value.message.encode()


def test_a_name_with_the_spaces_of_other_systems_is_one_like_others(store: ClaimStore, claim: Path) -> None:
    (claim / "team" / "Bild 3.04\u202fPM.jsonl").write_text("{}")
    assert "Bild 3.04\u202fPM.jsonl" in [one.key for one in store.list("pvc://data/team")]


@pytest.mark.parametrize("name", ["x" * 300, "loop", "socket"])
def test_what_can_never_be_a_file_is_missing_and_not_tried_again(store: ClaimStore, claim: Path, name: str) -> None:
    (claim / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(claim):
        listener.bind("socket")
    assert store.size(f"pvc://data/{name}") is None
    assert [one.key for one in store.list("pvc://data")] == ["team/deep/more.jsonl", "team/rows.jsonl"]


def test_a_folder_that_cannot_be_read_is_an_error_and_not_rows_that_are_missing() -> None:
    with readable_claim() as top:
        closed = top / "closed"
        closed.mkdir()
        (closed / "rows.jsonl").write_text("{}")
        for mode in (0o000, 0o444):
            closed.chmod(mode)
            with as_another_user(), pytest.raises(StorageDenied, match=r"chmod -R a\+rX"):
                ClaimStore(top.parent).list("pvc://data")
        closed.chmod(0)
        closed.rename(top / "lost+found")
        with as_another_user():
            assert ClaimStore(top.parent).list("pvc://data") == []


def test_limits_of_size_and_count_are_errors(store: ClaimStore) -> None:
    with pytest.raises(TrainerError, match="larger than the limit of 3 bytes"):
        store.read(ROWS, limit=3)
    with pytest.raises(TrainerError, match="more than 1 objects under pvc://data"):
        store.list("pvc://data", limit=1)


def test_a_file_without_the_right_to_read_is_denied_with_the_fix() -> None:
    with readable_claim() as top:
        (top / "rows.jsonl").write_text("{}")
        (top / "rows.jsonl").chmod(0)
        with as_another_user(), pytest.raises(StorageDenied, match=r"cannot be read by user .*chmod -R a\+rX"):
            ClaimStore(top.parent).read("pvc://data/rows.jsonl")


@contextmanager
def readable_claim() -> Iterator[Path]:
    """The claim `data`, below folders that every user may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        top = Path(name, "data")
        top.mkdir()
        yield top


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root reads every file, so it is nobody for a moment."""
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_claim_is_never_written_to(tmp_path: Path) -> None:
    storage = RoutedStore(pytest.fail, pytest.fail)
    with pytest.raises(TrainerError, match="a claim is read-only; write results to s3://"):
        storage.put(ROWS, b"")
    with pytest.raises(TrainerError, match="the claim is not mounted"):
        storage.list(ROWS)
