import hashlib
from pathlib import Path

import pytest

from finetune_trainer.errors import ObjectMissing, TrainerError
from finetune_trainer.storage.local import LocalStore, parse_maps
from finetune_trainer.storage.protocol import Entry, confine_path, join_uri


@pytest.fixture
def storage(tmp_path: Path) -> LocalStore:
    (tmp_path / "models" / "tiny" / "sub").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    (tmp_path / "models" / "tiny" / "sub" / "weights").write_bytes(b"0123456789")
    (tmp_path / "rows.txt").write_text("rows")
    return LocalStore(
        {
            "s3://bucket/models": tmp_path / "models",
            "s3://bucket/rows.jsonl": tmp_path / "rows.txt",
            "s3://bucket/models/other": tmp_path / "elsewhere",
        }
    )


def test_a_folder_is_listed_with_sizes(storage: LocalStore) -> None:
    assert storage.list("s3://bucket/models/tiny") == [Entry("config.json", 2), Entry("sub/weights", 10)]


def test_a_folder_is_copied_as_far_as_accepted(storage: LocalStore, tmp_path: Path) -> None:
    seen: list[int] = []
    paths = storage.download_folder(
        "s3://bucket/models/tiny", tmp_path / "copy", seen.append, accept=lambda key: key.startswith("sub")
    )
    assert paths == [tmp_path / "copy" / "sub" / "weights"]
    assert paths[0].read_bytes() == b"0123456789"
    assert seen == [10]


def test_a_file_can_replace_an_object(storage: LocalStore) -> None:
    assert storage.read("s3://bucket/rows.jsonl") == b"rows"


def test_the_longest_prefix_wins(storage: LocalStore, tmp_path: Path) -> None:
    storage.put("s3://bucket/models/other/file", b"x")
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"x"


def test_a_prefix_ends_at_a_segment(storage: LocalStore) -> None:
    with pytest.raises(LookupError, match="s3://bucket/models-too/file is not mapped"):
        storage.read("s3://bucket/models-too/file")


def test_an_absent_object_reads_as_none_and_downloads_as_missing(storage: LocalStore, tmp_path: Path) -> None:
    assert storage.read("s3://bucket/models/absent") is None
    assert storage.first("s3://bucket/models/absent") is None
    with pytest.raises(ObjectMissing, match="s3://bucket/models/absent"):
        storage.download("s3://bucket/models/absent", tmp_path / "copy")


def test_only_the_first_conditional_write_wins(storage: LocalStore) -> None:
    assert storage.put_if_absent("s3://bucket/models/owner.json", b"first")
    assert not storage.put_if_absent("s3://bucket/models/owner.json", b"second")
    assert storage.read("s3://bucket/models/owner.json") == b"first"
    assert [entry.key for entry in storage.list("s3://bucket/models") if "owner" in entry.key] == ["owner.json"]


def test_ranges_and_digests_are_of_the_content(storage: LocalStore) -> None:
    uri = "s3://bucket/models/tiny/sub/weights"
    assert storage.read_range(uri, 3, 4) == b"3456"
    assert storage.read_range(uri, 8, 10) == b"89"
    assert storage.sha256(uri) == hashlib.sha256(b"0123456789").hexdigest()


def test_a_document_above_the_limit_is_refused(storage: LocalStore) -> None:
    with pytest.raises(TrainerError, match="larger than the limit of 5 bytes"):
        storage.read("s3://bucket/models/tiny/sub/weights", limit=5)


@pytest.mark.parametrize("key", ["../up", "a/../../up", "/etc/passwd"])
def test_a_key_never_leaves_its_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(TrainerError, match="outside its folder"):
        confine_path(tmp_path / "folder", key)


def test_maps_are_read_from_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "a=b").write_text("")
    assert parse_maps(["s3://b/p=dir", "pvc://c=a=b"]) == {"s3://b/p": Path("dir"), "pvc://c": Path("a=b")}


def test_a_map_to_nothing_is_refused_unless_it_may_be_new(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"--map s3://b/p=\S+/new: there is no such file or folder"):
        parse_maps([f"s3://b/p={tmp_path}/new"])
    assert parse_maps([f"s3://b/p={tmp_path}/new"], lambda uri: uri == "s3://b/p") == {"s3://b/p": tmp_path / "new"}


@pytest.mark.parametrize("prefix", ["s3://bucket/support/", "hf://datasets/owner/rows"])
def test_a_file_in_place_of_a_prefix_is_its_only_object(tmp_path: Path, prefix: str) -> None:
    rows = tmp_path / "good.csv"
    rows.write_text("prompt,completion\n")
    storage = LocalStore({prefix: rows})
    (entry,) = storage.list(prefix)
    assert entry == Entry("good.csv", 18)
    uri = join_uri(prefix, entry.key)
    storage.download(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "prompt,completion\n"
    assert storage.file_name(uri) == storage.file_name(prefix) == str(rows)
    assert storage.read(join_uri(prefix, "README.md")) is None


def test_the_format_of_a_file_in_a_mapped_folder_is_that_of_its_key(storage: LocalStore) -> None:
    assert storage.file_name("s3://bucket/models/tiny/config.json") == "s3://bucket/models/tiny/config.json"


@pytest.mark.parametrize("option", ["dir", "s3://b/p", "s3://b/p=", "b/p=dir"])
def test_a_map_in_another_form_is_refused(option: str) -> None:
    with pytest.raises(TrainerError, match="write s3://bucket/prefix=DIR"):
        parse_maps([option])
