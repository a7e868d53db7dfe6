"""Subset and split of a dataset on a hub are those of its card, and several subsets are never read together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.inputs.sources import DataFiles
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.local import LocalStore

QA = "hf://datasets/acme/qa"
Repo = Callable[..., LocalStore]
MAIN, SOCRATIC = "main/train-0.parquet", "socratic/train-0.parquet"
TESTS = ("main/test-0.parquet", "socratic/test-0.parquet")
BY_SPLIT = [
    {
        "config_name": name,
        "data_files": [{"split": split, "path": f"{name}/{split}-*"} for split in ("train", "test")],
    }
    for name in ("main", "socratic")
]


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    def make(*keys: str, configs: Any = None, card: str | None = None) -> LocalStore:
        for key in keys:
            path = tmp_path / "repo" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"a": 1}\n')
        if configs is not None:
            card = f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\ntags:\n- x\n---\n# A dataset\n"
        if card is not None:
            (tmp_path / "repo" / "README.md").write_text(card)
        return LocalStore({QA: tmp_path / "repo"})

    return make


def found(storage: LocalStore, place: str = "train", **fields: str) -> list[str]:
    objects = resolve_source(DataFiles.model_validate({"uri": QA} | fields), storage, place).found
    return [one.uri.removeprefix(f"{QA}/") for one in objects]


def refused(storage: LocalStore, place: str = "train", **fields: str) -> str:
    with pytest.raises(TrainerError) as caught:
        found(storage, place, **fields)
    assert caught.value.code is ExitCode.DATASET_UNUSABLE
    return caught.value.message


def test_a_subset_and_a_split_are_those_that_the_card_names(repo: Repo) -> None:
    storage = repo(MAIN, SOCRATIC, *TESTS, configs=BY_SPLIT)
    assert found(storage, config="socratic") == [SOCRATIC]
    assert found(storage, config="main", split="test") == ["main/test-0.parquet"]
    assert found(storage, "validation", config="main") == ["main/test-0.parquet"]
    assert found(storage, "train.sources[1]", config="main") == [MAIN]


@pytest.mark.parametrize("place", ["train", "train.sources[1]", "validation"])
def test_several_subsets_are_refused_unless_one_is_named_or_the_default(repo: Repo, place: str) -> None:
    storage = repo(MAIN, SOCRATIC, *TESTS, configs=BY_SPLIT)
    message = refused(storage, place)
    assert message == f"{QA} has 2 subsets (main, socratic): set spec.dataset.{place}.config to one of them"
    storage = repo(configs=[BY_SPLIT[0], BY_SPLIT[1] | {"default": True}])
    assert found(storage, place) == [SOCRATIC if place != "validation" else "socratic/test-0.parquet"]


def test_the_only_subset_of_a_card_is_read_and_not_the_files_around_it(repo: Repo) -> None:
    only = {"config_name": "default", "data_files": [{"split": "train", "path": "clean/*.jsonl"}]}
    storage = repo("clean/a.jsonl", "raw/a.jsonl", configs=[only])
    assert found(storage) == ["clean/a.jsonl"]


def test_a_subset_or_a_split_that_is_not_there_is_refused_with_those_that_are(repo: Repo) -> None:
    storage = repo(MAIN, SOCRATIC, *TESTS, configs=BY_SPLIT)
    assert refused(storage, config="other") == (
        f"{QA} has no subset other: it has main, socratic: correct spec.dataset.train.config"
    )
    assert refused(storage, config="main", split="train_sft") == (
        f"{QA} subset main has no split train_sft: it has train, test: set spec.dataset.train.split"
    )
    only = [{"config_name": "default", "data_files": [{"split": "train_sft", "path": "main/train-*"}]}, BY_SPLIT[1]]
    assert "has no split train: it has train_sft: set spec.dataset.train.split" in refused(repo(configs=only))
    gone = [BY_SPLIT[0], {"config_name": "gone", "data_files": "gone/*.csv"}]
    assert "subset gone has no data file" in refused(repo(configs=gone), config="gone")


def test_one_subset_with_splits_of_its_own_is_read_by_split(repo: Repo) -> None:
    keys = ["data/train_sft-0.parquet", "data/train_gen-0.parquet", "data/test_sft-0.parquet"]
    files = [{"split": key[5:-10], "path": f"data/{key[5:-10]}-*"} for key in keys]
    storage = repo(*keys, configs=[{"config_name": "default", "data_files": files}])
    assert found(storage, split="train_gen") == [keys[1]]
    assert found(storage) == [keys[1], keys[0]]


@pytest.mark.parametrize(
    "entry",
    [
        {"data_files": ["main/*.parquet"]},
        {"data_files": "main/**"},
        {"data_dir": "main"},
        {"data_dir": "./main/", "data_files": "*.parquet"},
    ],
)
def test_without_splits_in_the_card_they_are_read_from_the_names(repo: Repo, entry: dict[str, Any]) -> None:
    storage = repo(MAIN, SOCRATIC, *TESTS, configs=[{"config_name": "main"} | entry, BY_SPLIT[1]])
    assert found(storage, config="main") == [MAIN]
    assert found(storage, "validation", config="main") == ["main/test-0.parquet"]
    assert found(storage, config="main", split="test") == ["main/test-0.parquet"]
    assert "no file has split dev in its path" in refused(storage, config="main", split="dev")


@pytest.mark.parametrize("data_dir", [".", "./", "", "/"])
def test_the_folder_of_a_subset_may_be_that_of_the_card(repo: Repo, data_dir: str) -> None:
    storage = repo(MAIN, *TESTS[:1], configs=[{"config_name": "main", "data_dir": data_dir}])
    assert found(storage, config="main") == [MAIN]


@pytest.mark.parametrize("folder", ["v1.0.", "a..", "b"])
def test_the_dots_of_a_folders_name_are_kept(repo: Repo, folder: str) -> None:
    storage = repo(f"{folder}/train-0.parquet", MAIN, configs=[{"config_name": "one", "data_dir": f"./{folder}/"}])
    assert found(storage, config="one") == [f"{folder}/train-0.parquet"]


@pytest.mark.parametrize("card", [None, "# No front matter", "---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n"])
def test_without_a_list_of_subsets_a_folder_is_one(repo: Repo, card: str | None) -> None:
    storage = repo(MAIN, SOCRATIC, *TESTS, card=card)
    assert found(storage, config="main") == [MAIN]
    assert refused(storage, config="other").startswith(f"{QA} has no subset other: it has main, socratic")
    assert found(storage) == [MAIN, SOCRATIC]
    assert found(storage, split="test") == list(TESTS)


@pytest.mark.parametrize(
    ("pattern", "number"),
    [("main/train-[0-9].parquet", 0), ("main/train-[!1].parquet", 0), ("main/*[12].parquet", 1), ("main/*-[]1].*", 1)],
)
def test_a_pattern_of_a_card_may_list_characters(repo: Repo, pattern: str, number: int) -> None:
    other = "main/train-1.parquet" if number else "main/train-x[0-9].parquet"
    wanted = "main/train-1.parquet" if number else MAIN
    storage = repo(MAIN, other, configs=[{"config_name": "main", "data_files": pattern}])
    assert found(storage, config="main") == [wanted]


@pytest.mark.parametrize("missing", ["main/test-*.csv", "main/{train,test}-0.parquet", "main/train-[ab].parquet", "x"])
def test_a_subset_with_a_pattern_without_a_file_is_refused(repo: Repo, missing: str) -> None:
    files = [{"split": "train", "path": ["main/train-*", missing]}, {"split": "test", "path": "main/test-*"}]
    storage = repo(MAIN, SOCRATIC, *TESTS, configs=[{"config_name": "main", "data_files": files}, BY_SPLIT[1]])
    assert refused(storage, config="main") == (
        f"{QA} subset main has no data file that matches {missing}: name its files in spec.dataset.train.uri"
    )
    assert found(storage, "validation", config="main", split="test") == ["main/test-0.parquet"]


def test_a_pattern_of_a_card_that_would_take_long_is_refused(repo: Repo) -> None:
    slow = {"config_name": "main", "data_files": ["*a" * 50 + "b", "main/train-*"]}
    storage = repo(MAIN, "a" * 200 + ".csv", configs=[slow, BY_SPLIT[1]])
    assert "subset main has no data file that matches *a*a" in refused(storage, config="main")
