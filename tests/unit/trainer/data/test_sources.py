import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.inputs.sources import DataSource
from finetune_trainer.data.patterns import pattern_to_regex
from finetune_trainer.data.readers.rows_of_file import RowFile
from finetune_trainer.data.sources import MAX_OBJECTS, fetch_source, resolve_source
from finetune_trainer.data.split_names import detect_split
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import Store

Bucket = Callable[..., LocalStore]
QA = "hf://datasets/acme/qa"


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    def make(*keys: str) -> LocalStore:
        for key in keys:
            path = tmp_path / "bucket" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"a": 1}\n')
        return LocalStore({"s3://bucket": tmp_path / "bucket", QA: tmp_path / "bucket"})

    return make


def found(storage: Store, uri: str, place: str = "train") -> list[str]:
    objects = resolve_source(DataSource(uri=uri), storage, place).found
    return [one.uri.removeprefix("s3://bucket/").removeprefix(f"{QA}/") for one in objects]


def refused(storage: Store, uri: str, place: str = "train") -> str:
    with pytest.raises(TrainerError) as caught:
        resolve_source(DataSource(uri=uri), storage, place)
    assert caught.value.code is ExitCode.DATASET_UNUSABLE
    return caught.value.message


def test_one_object_is_itself_whatever_its_name(bucket: Bucket) -> None:
    storage = bucket("rows", "rows.jsonl")
    assert found(storage, "s3://bucket/rows") == ["rows"]
    assert resolve_source(DataSource(uri="s3://bucket/rows"), storage).found[0].size == 9


def test_a_prefix_means_its_data_files_in_the_order_of_their_keys(bucket: Bucket) -> None:
    storage = bucket(
        "data/b.jsonl", "data/a.parquet", "data/deep/c.csv.gz", "data/d.ARROW", "data/README.md", "data/state.json",
        "data/dataset_info.json", "data/_SUCCESS", "data/.cache/x.jsonl", "data/_tmp/y.jsonl", "database.jsonl",
    )  # fmt: skip
    wanted = ["data/a.parquet", "data/b.jsonl", "data/d.ARROW", "data/deep/c.csv.gz"]
    assert found(storage, "s3://bucket/data/") == wanted
    assert found(storage, "s3://bucket/data") == wanted


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("data/*.jsonl", ["data/a.jsonl", "data/b.jsonl"]),
        ("data/?.jsonl", ["data/a.jsonl", "data/b.jsonl"]),
        ("data/**/*.jsonl", ["data/a.jsonl", "data/b.jsonl", "data/x/c.jsonl", "data/x/y/d.jsonl"]),
        ("data/x/**", ["data/x/c.jsonl", "data/x/y/d.jsonl"]),
        ("*/x/*", ["data/x/c.jsonl"]),
        ("data/part-??-*", ["data/part-01-x.txt"]),
        ("**/d.jsonl", ["data/x/y/d.jsonl"]),
    ],
)
def test_a_pattern_selects_the_files_that_match_it(bucket: Bucket, pattern: str, wanted: list[str]) -> None:
    storage = bucket(
        "data/b.jsonl", "data/a.jsonl", "data/x/c.jsonl", "data/x/y/d.jsonl", "data/part-01-x.txt", "data/.hidden.jsonl"
    )
    assert found(storage, f"s3://bucket/{pattern}") == wanted
    assert found(storage, f"{QA}/{pattern}") == wanted


@pytest.mark.parametrize("key", ["a.jsonl", "a+b(1).jsonl", "[x].jsonl", "ab.jsonl", "a\nb.jsonl"])
def test_only_stars_and_question_marks_are_special_in_a_pattern(key: str) -> None:
    assert re.fullmatch(pattern_to_regex(key), key)
    assert not re.fullmatch(pattern_to_regex("a.jsonl"), "abjsonl")


def test_many_stars_take_no_time_that_grows_without_bound() -> None:
    assert not re.fullmatch(pattern_to_regex("**/" * 200 + "x"), "a/" * 200 + "y")


def test_nothing_found_names_the_pattern_and_keys_nearby(bucket: Bucket) -> None:
    storage = bucket("data/train.jsonl", "data/other.csv", "data/README.md")
    message = refused(storage, "s3://bucket/data/trian.jsonl")
    assert message.startswith("s3://bucket/data/trian.jsonl: no such object")
    assert "s3://bucket/data contains train.jsonl, README.md, other.csv" in message
    assert "correct spec.dataset.train.uri" in message
    assert f"{QA}/data contains train.jsonl" in refused(storage, f"{QA}/data/trian.jsonl")
    message = refused(storage, "s3://bucket/data/*.parquet", "validation")
    assert "nothing matches data/*.parquet; s3://bucket/data contains" in message
    assert "correct spec.dataset.validation.uri" in message
    assert "s3://bucket/no/where is empty" in refused(storage, "s3://bucket/no/where/*.jsonl")


def test_at_most_five_keys_are_named(bucket: Bucket) -> None:
    message = refused(bucket(*(f"data/{n:02d}.txt" for n in range(30))), "s3://bucket/data/")
    assert sum(f"{n:02d}.txt" in message for n in range(30)) == 5


def test_more_objects_than_can_be_read_are_refused_with_their_number(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.data.sources.MAX_OBJECTS", 3)
    assert MAX_OBJECTS == 10_000
    assert len(found(bucket("data/1.csv", "data/2.csv", "data/3.csv"), "s3://bucket/data/")) == 3
    assert "4 objects exceed the limit of 3" in refused(bucket("data/4.csv"), "s3://bucket/data/")


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("dev.jsonl", "validation"),
        ("my_val_set.json", "validation"),
        ("training/part.csv", "train"),
        ("test/train-0.csv", "train"),
        ("contrained.jsonl", ""),
        ("latest.jsonl", ""),
        ("evaluation.csv", "test"),
    ],
)
def test_a_split_is_detected_by_whole_words_of_the_last_part_that_has_one(key: str, split: str) -> None:
    assert detect_split(key) == split


def test_a_repository_gives_its_training_files_and_logs_what_it_leaves_out(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    storage = bucket("data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet", "extra.jsonl")
    with caplog.at_level(logging.WARNING):
        assert found(storage, QA) == ["data/train-0.parquet", "data/train-1.parquet"]
    assert "reading data/train-0.parquet, data/train-1.parquet; leaving out data/test-0.parquet, extra.jsonl" in (
        caplog.text
    )


def test_several_configurations_of_a_dataset_are_not_joined_in_silence(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    storage = bucket("main/train-0.parquet", "socratic/train-0.parquet", "main/train-1.parquet")
    with caplog.at_level(logging.WARNING):
        assert len(found(storage, QA)) == 3
        assert f"{QA}: reading files of 2 folders together: main, socratic. To read only one" in caplog.text
        caplog.clear()
        assert found(storage, f"{QA}/main") == ["main/train-0.parquet", "main/train-1.parquet"]
    assert caplog.text == ""


def test_a_repository_without_a_training_file_gives_those_that_name_no_split(bucket: Bucket) -> None:
    assert found(bucket("rows.jsonl", "test.jsonl"), QA) == ["rows.jsonl"]


def test_held_out_files_are_never_trained_on_unasked(bucket: Bucket) -> None:
    storage = bucket("test.jsonl", "dev.jsonl")
    message = refused(storage, QA)
    assert "seem to belong to a different split than train (dev.jsonl, test.jsonl): name the files to read" in message
    assert found(storage, f"{QA}/test.jsonl") == ["test.jsonl"]
    assert found(storage, f"{QA}/*.jsonl") == ["dev.jsonl", "test.jsonl"]


def test_a_folder_that_was_named_is_a_choice(bucket: Bucket) -> None:
    storage = bucket("test/0.jsonl", "test/1.jsonl", "train/2.jsonl")
    assert found(storage, f"{QA}/test") == ["test/0.jsonl", "test/1.jsonl"]


def test_a_validation_source_takes_validation_files_before_test_files_and_no_others(bucket: Bucket) -> None:
    assert found(bucket("train.csv", "val.csv", "test.csv"), QA, "validation") == ["val.csv"]
    (Path(str(bucket()._maps[QA])) / "val.csv").unlink()
    assert found(bucket(), QA, "validation") == ["test.csv"]


def test_fetched_objects_have_their_digests_and_replace_what_was_there(bucket: Bucket, tmp_path: Path) -> None:
    storage = bucket("data/a.jsonl", "data/b.jsonl")
    source = DataSource(uri="s3://bucket/data/")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "of-a-run-before").touch()
    files = fetch_source(source, storage, tmp_path / "source", "train", lambda _count: None).files
    assert [file.uri for file in files] == ["s3://bucket/data/a.jsonl", "s3://bucket/data/b.jsonl"]
    assert {path.name for path in (tmp_path / "source").iterdir()} == {file.path.name for file in files}
    assert all(file.to_dict().keys() == {"uri", "sha256", "size"} for file in files)


def test_an_object_has_the_digest_that_the_job_names(bucket: Bucket, tmp_path: Path) -> None:
    storage = bucket("a.jsonl")
    digest = hashlib.sha256(b'{"a": 1}\n').hexdigest()
    source = DataSource(uri="s3://bucket/a.jsonl", sha256=digest)
    (file,) = fetch_source(source, storage, tmp_path / "source", "train", lambda _count: None).files
    assert file.sha256 == digest
    with pytest.raises(TrainerError, match=f"has the SHA-256 {digest}, which differs from"):
        fetch_source(
            source.model_copy(update={"sha256": "0" * 64}), storage, tmp_path / "source", "train", lambda _count: None
        )


def test_a_digest_is_that_of_one_object(bucket: Bucket, tmp_path: Path) -> None:
    storage = bucket("data/a.jsonl", "data/b.jsonl")
    source = DataSource(uri="s3://bucket/data/", sha256="0" * 64)
    with pytest.raises(TrainerError, match=r"2 objects, which differs from spec\.dataset\.train\.sha256"):
        fetch_source(source, storage, tmp_path / "source", "train", lambda _count: None)


def test_preflight_reads_every_file_of_a_prefix_and_names_each_as_a_source(world: Any, rows_file: Path) -> None:
    lines = rows_file.read_text().splitlines()
    for number, part in enumerate((lines[:60], lines[60:])):
        (world.bucket / "parts").mkdir(exist_ok=True)
        (world.bucket / "parts" / f"{number}.jsonl").write_text("\n".join(part) + "\n")
    world.with_config({"dataset": {"train": {"uri": "s3://bucket/parts/"}}})
    report = preflight(world.run)
    assert report.dataset is not None
    assert (report.dataset.rows, report.dataset.rejected_rows) == (110, 10)
    summary = json.loads((world.out / "dataset/summary.json").read_text())
    assert [source["uri"] for source in summary["sources"]] == [
        "s3://bucket/parts/0.jsonl",
        "s3://bucket/parts/1.jsonl",
    ]
    rejected = (world.out / "rejected_rows.jsonl").read_text().splitlines()
    assert {json.loads(line)["file"] for line in rejected} == {"s3://bucket/parts/1.jsonl"}


def test_preflight_names_the_files_of_a_prefix_that_it_skips(
    world: Any, rows_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (world.bucket / "parts").mkdir()
    (world.bucket / "parts/0.jsonl").write_bytes(rows_file.read_bytes())
    for name in ("1.jsonl.xz", "2", "3.txt", "_SUCCESS", ".0.jsonl.crc", "state.json"):
        (world.bucket / "parts" / name).write_text("")
    world.with_config({"dataset": {"train": {"uri": "s3://bucket/parts"}}})
    with caplog.at_level(logging.WARNING):
        preflight(world.run)
    skipped = [f"s3://bucket/parts/{name}" for name in ("1.jsonl.xz", "2", "3.txt")]
    assert f"s3://bucket/parts: skipped, not data files: {', '.join(skipped)}" in caplog.messages
    assert json.loads((world.out / "dataset/summary.json").read_text())["train"]["ignoredFiles"] == skipped


def test_two_stars_reach_over_whole_folders() -> None:
    pattern = re.compile(pattern_to_regex("**/d.jsonl"))
    assert [key for key in ("d.jsonl", "x/d.jsonl", "x/y/d.jsonl", "xd.jsonl") if pattern.fullmatch(key)] == [
        "d.jsonl",
        "x/d.jsonl",
        "x/y/d.jsonl",
    ]
    assert re.fullmatch(pattern_to_regex("x/**"), "x/y/z")


@pytest.mark.parametrize("uri", ["s3://data/support/", "s3://data/support", "s3://data/rows.jsonl", QA])
def test_a_local_file_in_place_of_any_uri_is_read_by_its_own_suffix(tmp_path: Path, uri: str) -> None:
    (tmp_path / "good.csv").write_text("prompt,completion\nIs 2 even?,yes\n")
    storage = LocalStore({uri: tmp_path / "good.csv"})
    (file,) = fetch_source(DataSource(uri=uri), storage, tmp_path / "source", "train", lambda _count: None).files
    (record,) = RowFile(file.named).records()
    assert record.value == {"prompt": "Is 2 even?", "completion": "yes"}
