from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.routed import RoutedStore

HUB = "hf://acme/tiny"


def no_store() -> Any:
    raise AssertionError("a store was connected to")


@pytest.fixture
def storage(tmp_path: Path) -> RoutedStore:
    return RoutedStore(lambda: LocalStore({"s3://bucket": tmp_path}), no_store)


def test_s3_uris_are_written_and_read_without_a_hub(storage: RoutedStore, tmp_path: Path) -> None:
    uri = "s3://bucket/x"
    storage.put(uri, b"abc")
    assert not storage.put_if_absent(uri, b"other")
    assert (storage.read(uri), storage.read_range(uri, 1, 1), storage.size(uri)) == (b"abc", b"b", 3)
    storage.upload(tmp_path / "x", "s3://bucket/y")
    assert [entry.key for entry in storage.list("s3://bucket")] == ["x", "y"]
    assert storage.sha256("s3://bucket/y") == storage.sha256(uri)
    storage.remove(uri)
    assert storage.first("s3://bucket") == storage.list("s3://bucket")[0]
    assert storage.size(uri) is None


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("put", (b"",)), ("put_if_absent", (b"",)), ("remove", ())],
)
def test_a_hub_is_never_written_to(storage: RoutedStore, method: str, arguments: tuple[bytes, ...]) -> None:
    with pytest.raises(TrainerError, match="a hub is read-only; write results to s3://"):
        getattr(storage, method)(HUB, *arguments)


def test_nothing_is_uploaded_to_a_hub(storage: RoutedStore, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="a hub is read-only; write results to s3://"):
        storage.upload(tmp_path, HUB)


def test_a_hub_uri_is_read_from_the_hub(storage: RoutedStore) -> None:
    with pytest.raises(AssertionError, match="a store was connected to"):
        storage.pin(HUB)


def test_a_mapped_uri_is_local_whatever_its_scheme_and_any_other_is_routed(tmp_path: Path) -> None:
    storage = RoutedStore(no_store, no_store, LocalStore({HUB: tmp_path, "s3://bucket/out": tmp_path / "out"}))
    storage.put(f"{HUB}/x", b"abc")
    storage.put("s3://bucket/out/y", b"y")
    assert (storage.read(f"{HUB}/x"), storage.pin(HUB, "main")) == (b"abc", HUB)
    assert [entry.key for entry in storage.list(HUB)] == ["out/y", "x"]
    assert storage.download_folder("s3://bucket/out", tmp_path / "copy") == [tmp_path / "copy" / "y"]
    with pytest.raises(AssertionError, match="a store was connected to"):
        storage.read("s3://bucket/other")
