from pathlib import Path

import pytest

from finetune_trainer.storage.hardlinked import HardlinkedStore
from finetune_trainer.storage.local import LocalStore


@pytest.fixture
def storage(tmp_path: Path) -> HardlinkedStore:
    (tmp_path / "bucket" / "model").mkdir(parents=True)
    (tmp_path / "bucket" / "model" / "config.json").write_text("stored")
    store = LocalStore({"s3://bucket": tmp_path / "bucket"})
    return HardlinkedStore(store, tmp_path / "rank-1", tmp_path / "rank-0")


def test_files_that_the_other_folder_has_are_linked(storage: HardlinkedStore, tmp_path: Path) -> None:
    theirs = tmp_path / "rank-0" / "model" / "config.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    found = storage.download_folder("s3://bucket/model", tmp_path / "rank-1" / "model")
    assert found == [tmp_path / "rank-1" / "model" / "config.json"]
    assert found[0].samefile(theirs)
    storage.download("s3://bucket/model/config.json", found[0])
    assert found[0].samefile(theirs)


def test_files_that_the_other_folder_lacks_are_downloaded(storage: HardlinkedStore, tmp_path: Path) -> None:
    (found,) = storage.download_folder("s3://bucket/model", tmp_path / "rank-1" / "model")
    assert found.read_text() == "stored"
    storage.download("s3://bucket/model/config.json", tmp_path / "rank-1" / "config.json")
    assert (tmp_path / "rank-1" / "config.json").read_text() == "stored"


def test_everything_else_is_requested_from_the_store(storage: HardlinkedStore) -> None:
    assert [entry.key for entry in storage.list("s3://bucket/model")] == ["config.json"]
    assert storage.read("s3://bucket/model/config.json") == b"stored"


def test_files_of_the_model_cache_are_no_files_of_the_workspace(storage: HardlinkedStore, tmp_path: Path) -> None:
    """A process fills the cache if that of its neighbour found no room there."""
    (entry,) = storage.list("s3://bucket/model")
    cached = tmp_path / "cache" / "config.json"
    storage.download_entry("s3://bucket/model", entry, cached)
    assert cached.read_text() == "stored"
    (found,) = storage.download_folder("s3://bucket/model", tmp_path / "cache" / "other")
    assert found.read_text() == "stored"
