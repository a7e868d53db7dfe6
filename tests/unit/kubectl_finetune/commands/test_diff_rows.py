"""`diff --rows`: which rows two jobs do not share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_client.errors import FineTuneError
from finetune_trainer.data.rows import ChatRow, DataFormat, Source
from kubectl_finetune.commands.diff_rows import RowsOfJob, differing_rows, rows_page

Line = tuple[str, str, int]


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., RowsOfJob]:
    """Rows of a job as the trainer publishes them: question, file and line of each."""

    def write(name: str, trained: list[Line], held_out: list[Line] | None = None) -> RowsOfJob:
        files = {}
        for part, lines in (("trained", trained), ("heldOut", held_out)):
            if lines is not None:
                files[part] = tmp_path / f"{name}-{part}.jsonl"
                files[part].write_bytes(b"".join(map(to_line, lines)))
        return RowsOfJob(name, files)

    return write


def to_line(line: Line) -> bytes:
    question, file, number = line
    turns: Any = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]
    return ChatRow(turns, Source(file, number), DataFormat.OPENAI).to_line()


def places(listed: list[dict[str, Any]]) -> list[str]:
    return [f"{one['file']}:{one['line']}" for one in listed]


def test_rows_of_both_and_of_one_job_are_counted_by_file_in_any_order(rows: Callable[..., RowsOfJob]) -> None:
    left = rows("one", [("a", "faq.jsonl", 1), ("b", "faq.jsonl", 2), ("c", "chats.jsonl", 1)])
    right = rows("two", [("c", "chats.jsonl", 9), ("d", "more.jsonl", 1), ("a", "faq.jsonl", 7)])
    found = differing_rows(left, right)["trained"]
    assert found["files"] == [
        {"file": "chats.jsonl", "both": 1, "onlyFirst": 0, "onlySecond": 0},
        {"file": "faq.jsonl", "both": 1, "onlyFirst": 1, "onlySecond": 0},
        {"file": "more.jsonl", "both": 0, "onlyFirst": 0, "onlySecond": 1},
    ]
    assert places(found["onlyFirst"]) == ["faq.jsonl:2"]
    assert places(found["onlySecond"]) == ["more.jsonl:1"]
    assert found["onlySecond"][0]["row"]["messages"][0]["content"] == "d"


def test_a_row_that_is_repeated_counts_once(rows: Callable[..., RowsOfJob]) -> None:
    left = rows("one", [("a", "faq.jsonl", 1)] * 3)
    found = differing_rows(left, rows("two", [("b", "faq.jsonl", 1)] * 2))["trained"]
    assert found["files"] == [{"file": "faq.jsonl", "both": 0, "onlyFirst": 1, "onlySecond": 1}]
    assert len(found["onlyFirst"]) == 1


def test_a_row_that_contains_the_mark_of_a_source_is_read_whole(rows: Callable[..., RowsOfJob]) -> None:
    hostile = 'x","_source":{"file":"other.jsonl","line":3}}'
    left = rows("one", [(hostile, 'a "b",.jsonl', 4)])
    found = differing_rows(left, rows("two", []))["trained"]["onlyFirst"]
    assert places(found) == ['a "b",.jsonl:4']
    assert found[0]["row"]["messages"][0]["content"] == hostile


def test_rows_that_one_trained_and_the_other_held_out_are_counted(
    rows: Callable[..., RowsOfJob], printed: Callable[..., str]
) -> None:
    left = rows("one", [("a", "f", 1), ("b", "f", 2)], [("c", "f", 3)])
    right = rows("two", [("c", "f", 3), ("b", "f", 2)], [("a", "f", 1)])
    found = differing_rows(left, right)
    assert found["trainedAndHeldOut"] == 2
    assert "2 rows were trained by one job and held out by the other" in printed(rows_page("one", "two", found))
    assert differing_rows(left, left)["trainedAndHeldOut"] == 0


def test_the_page_has_the_counts_and_the_first_rows_of_each_job(
    rows: Callable[..., RowsOfJob], printed: Callable[..., str]
) -> None:
    left = rows("one", [(f"question {number}\u001b[2J", "faq.jsonl", number) for number in range(1, 9)])
    right = rows("two", [("question 1\u001b[2J", "faq.jsonl", 1)])
    page = printed(rows_page("one", "two", differing_rows(left, right))).splitlines()
    assert [line.split() for line in page[1:4]] == [
        ["Rows"],
        ["ROWS", "FILE", "BOTH", "ONLY", "one", "ONLY", "two"],
        ["trained", "faq.jsonl", "1", "7", "0"],
    ]
    assert page[5] == "Only trained by one: 7"
    assert [line.split()[0] for line in page[7:]] == [f"faq.jsonl:{number}" for number in range(2, 7)]
    assert not any("\u001b" in line for line in page)


def test_rows_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": []}) + "\n")
    with pytest.raises(FineTuneError, match=r"dataset/train.jsonl of one has a form"):
        RowsOfJob("one", {"trained": path}).index("trained")
