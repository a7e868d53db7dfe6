"""Files whose rows are arranged in a way that is not read: the message names the arrangement and the fix."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_trainer.data.rows import Rejected

Check = Callable[..., tuple[list[Any], Any]]
TAB = "the separator is a tab: save the file as .tsv, or with commas"
BAR = "the separator is |: save the file with commas"
CR = "lines end in CR: convert them to LF"


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("rows.csv", b"prompt\tcompletion\nIs 2 even?\tyes\n", TAB),
        ("rows.csv", b"prompt\tcompletion\nIs 2, or 3, even?\t2\n", TAB),
        ("rows.csv", b"prompt|completion\nIs 2 even?|yes\n", BAR),
        ("rows.csv", b"sep=,\nprompt,completion,id\n", "the first line, 'sep=', names a separator"),
        ("rows.csv", b"sep=;\nprompt;completion\nIs 2 even?;yes\n", "instead of the columns: remove it"),
        ("rows.csv", b"sep=|\nprompt|completion\n", "the first line, 'sep=|', names a separator"),
        ("rows.csv", b"prompt,completion\rIs 2 even?,yes\r", CR),
        ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\r{"prompt": "c", "completion": "d"}\r', CR),
        ("rows.json", b'{"version": 1, "data": [{"prompt": "a"}]}', "the rows are under data: keep that key alone"),
    ],
)
def test_the_arrangement_is_named_with_the_fix(check: Check, name: str, text: bytes, fix: str) -> None:
    results, _ = check(text, name=name)
    assert results
    for row in results:
        assert isinstance(row, Rejected)
        assert fix in row.detail
        assert "name yours" not in row.detail


def test_a_cr_in_a_later_line_is_of_that_line(check: Check) -> None:
    results, _ = check(b"prompt,completion\na,b\nc\rd,e\n", name="rows.csv")
    assert results[1].detail == "the line has a CR outside quotes: write the cell in quotes, or convert CR to LF"


def test_a_single_column_that_is_named_in_the_job_may_contain_a_separator(check: Check) -> None:
    results, _ = check(b"a|b\nsome text\n", name="rows.csv", columns={"text": "a|b"}, objective="DomainAdaptation")
    assert not isinstance(results[0], Rejected)


def test_a_broken_object_of_a_file_with_both_line_ends_has_its_own_error(check: Check) -> None:
    results, _ = check(b'[{"a": [{"b": 1}\r\n{"c": 2}]}]', name="rows.json")
    assert "CR" not in results[0].detail
