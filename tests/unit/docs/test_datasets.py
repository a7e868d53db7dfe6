"""docs/datasets.md is correct: its example rows are read in the named format, and its tables match the code."""

import json
import re
from pathlib import Path

import pytest

from finetune_api.dataset.codes import SENTENCES
from finetune_trainer.data.checks.structure import check_structure
from finetune_trainer.data.formats.columns import ALIASES
from finetune_trainer.data.formats.convert import convert_row
from finetune_trainer.data.formats.detect import detect_format
from finetune_trainer.data.formats.export import LOSSES, ExportFormat
from finetune_trainer.data.formats.turns import CALL_ROLES, MASKED_KEYS, ROLES, TRAINED_KEYS
from finetune_trainer.data.rows import DataFormat, Source
from finetune_trainer.data.sources import PLAIN_SUFFIXES

GUIDE = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(\w+)` \| `(\{.*\})` \|$", GUIDE, re.MULTILINE)
CELLS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in GUIDE.splitlines() if line[:2] == "| "]


def words(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_of_the_guide_is_read_as_the_format_that_it_is_shown_for(name: str, row: str) -> None:
    columns = json.loads(row)
    found = detect_format(columns)
    assert found == name
    assert check_structure(convert_row(columns, found, Source("rows.jsonl", 1), set()), set())


def test_every_format_is_shown() -> None:
    assert {name for name, _ in ROWS} == set(DataFormat)


def test_every_code_is_documented_with_the_sentence_that_reports_use() -> None:
    told = {words(cells[0])[0]: cells[1] for cells in CELLS if re.fullmatch(r"`[A-Z0-9_]+`", cells[0])}
    assert told == {code.value: said for said_of in (SENTENCES, LOSSES) for code, said in said_of.items()}


def test_every_word_for_a_role_is_documented() -> None:
    told = {cells[0].strip("`"): words(cells[1]) for cells in CELLS if cells[0].strip("`") in set(ROLES.values())}
    assert told == {role: tuple(word for word in ROLES if ROLES[word] == role) for role in ROLES.values()}
    assert any(set(words(cells[-1])) == CALL_ROLES for cells in CELLS)


def test_every_mark_of_a_turn_is_documented() -> None:
    (line,) = (line for line in GUIDE.splitlines() if "one of these marks" in line)
    assert {*TRAINED_KEYS, *MASKED_KEYS} <= set(words(line))


@pytest.mark.parametrize("names", ALIASES)
def test_every_name_of_a_column_is_documented(names: tuple[str, ...]) -> None:
    assert any(words(cells[-1]) == names for cells in CELLS)


def test_every_kind_of_file_and_every_format_to_convert_to_is_documented() -> None:
    told = set(words(re.sub("```.*?```", "", GUIDE, flags=re.DOTALL)))
    assert {*PLAIN_SUFFIXES, ".gz", *ExportFormat} <= told
