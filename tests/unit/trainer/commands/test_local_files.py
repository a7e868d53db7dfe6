from pathlib import Path

import pytest

from finetune_api.handoff import ExitCode
from finetune_trainer.commands.local_files import find_files
from finetune_trainer.errors import TrainerError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl", "a.json.gz", "sub/c.parquet", "sub/d.csv", "part.arrow", "README.md", ".gitattributes", "_SUCCESS",
        "sub/.d.csv.crc", "dataset_info.json", "old.jsonl.xz", ".git/x.jsonl",
    ):  # fmt: skip
        path = tmp_path / "rows" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "rows"


def below(folder: Path, names: list[str]) -> list[str]:
    return [Path(name).relative_to(folder).as_posix() for name in names]


def read(*arguments: Path | str, written: tuple[Path, ...] = ()) -> list[str]:
    return [file.name for file in find_files(map(str, arguments), written).read]


def test_a_folder_is_its_data_files_in_order_and_the_others_are_named(folder: Path) -> None:
    found = find_files([str(folder)], [])
    assert below(folder, [file.name for file in found.read]) == [
        "a.json.gz", "b.jsonl", "part.arrow", "sub/c.parquet", "sub/d.csv",
    ]  # fmt: skip
    assert below(folder, found.ignored) == [
        ".git", ".gitattributes", "README.md", "_SUCCESS", "dataset_info.json", "old.jsonl.xz", "sub/.d.csv.crc",
    ]  # fmt: skip


def test_a_file_by_its_name_is_read_whatever_it_is_called(folder: Path) -> None:
    assert read(folder / "README.md") == [str(folder / "README.md")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["b.jsonl"]),
        ("*/*", ["sub/c.parquet", "sub/d.csv"]),
        ("**/*.csv", ["sub/d.csv"]),
        ("**", ["README.md", "_SUCCESS", "a.json.gz", "b.jsonl", "dataset_info.json", "old.jsonl.xz", "part.arrow",
                "sub/c.parquet", "sub/d.csv"]),
        ("?.jsonl", ["b.jsonl"]),
        ("s*b/c.*", ["sub/c.parquet"]),
    ],
)  # fmt: skip
def test_a_pattern_selects_the_files_that_match_it(folder: Path, pattern: str, expected: list[str]) -> None:
    assert below(folder, read(f"{folder}/{pattern}")) == expected


def test_a_pattern_without_a_folder_is_looked_for_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert read("*.jsonl") == ["b.jsonl"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    (folder / "what?.jsonl").touch()
    (folder / "whatever.jsonl").touch()
    assert read(folder / "what?.jsonl") == [str(folder / "what?.jsonl")]


def test_a_file_that_is_named_twice_is_read_once(folder: Path) -> None:
    assert below(folder, read(folder / "b.jsonl", f"{folder}/*.jsonl", folder / "sub" / ".." / "b.jsonl")) == [
        "b.jsonl"
    ]


def test_what_is_about_to_be_written_is_never_read(folder: Path) -> None:
    written = (folder / "accepted.jsonl", folder / "summary.json")
    for path in written:
        path.touch()
    assert not {"accepted.jsonl", "summary.json"} & set(below(folder, read(folder, written=written)))
    with pytest.raises(TrainerError, match=r"accepted\.jsonl would be overwritten") as refused:
        read(folder / "sub" / ".." / "accepted.jsonl", written=written)
    assert refused.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize(
    ("name", "message"),
    [("sub/.d*", "nothing in .* matches"), ("empty", "it is empty"), ("notes", r"it contains .*notes/README\.md")],
)
def test_nothing_to_read_is_an_error_that_lists_what_is_there(folder: Path, name: str, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "README.md").touch()
    with pytest.raises(TrainerError, match=message) as refused:
        read(folder / name)
    assert refused.value.code is ExitCode.DATASET_UNUSABLE
