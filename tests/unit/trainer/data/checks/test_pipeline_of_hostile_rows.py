"""Rows made to break or to fill something: each ends as one row with a code or as itself, and costs what it should."""

import json
from pathlib import Path
from typing import Any

import pytest
from row_rules import line_of

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.checks import pipeline as label_rows
from finetune_trainer.data.rows import EXCERPT_CHARACTERS, ChatRow, Rejected
from finetune_trainer.tokenization.labeler import Labeler

GOOD = {"instruction": "q", "output": "a"}
MEGABYTE = 1 << 20
DEEP = 200_000


def turns(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]}


def test_a_line_of_ten_megabytes_is_a_row_like_any_other_without_a_model(check: Any) -> None:
    long = turns("x" * (10 * MEGABYTE))
    (kept, again, after), _ = check(long, long, GOOD)
    assert len(kept.messages[0]["content"]) == 10 * MEGABYTE
    assert (again.code, len(again.excerpt)) == (RejectCode.DUPLICATE, EXCERPT_CHARACTERS)
    assert isinstance(after, ChatRow)


@pytest.mark.parametrize("objective", ["Chat", "DPO", "DomainAdaptation"])
def test_a_row_of_more_text_than_a_tokenizer_can_hold_is_refused_before_it_is_tokenised(
    check: Any, model_folder: Path, objective: str
) -> None:
    text = "one two " * (MEGABYTE // 2)
    rows = {
        "Chat": {"instruction": "q", "output": text},
        "DPO": {"prompt": "q", "chosen": "a", "rejected": text},
        "DomainAdaptation": {"text": text},
    }
    (refused,), summary = check(rows[objective], objective=objective, labeler=Labeler(model_folder))
    assert refused.code is RejectCode.TOO_LONG
    assert "4.0 MiB of text" in refused.detail
    assert summary.tokens == 0


def test_many_rows_of_much_text_are_tokenised_a_few_at_a_time(
    check: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_rows, "MAX_TOKENISED_BYTES", 10_000)

    class Counting(Labeler):
        most = 0

        def encode_batch(self, rows: Any, *others: Any) -> Any:
            self.most = max(self.most, sum(len(json.dumps(row.content())) for row in rows))
            return super().encode_batch(rows, *others)

    labeler = Counting(model_folder)
    sizes = [4000, 10, 9000, 10, 20_000, 10, 10, 6000, 6000, *[10] * 300]
    rows = [{"instruction": f"q{number}", "output": "x" * size} for number, size in enumerate(sizes)]
    results, _ = check(*rows, labeler=labeler)
    assert [line_of(row) for row in results] == list(range(1, len(sizes) + 1))
    assert [line_of(row) for row in results if isinstance(row, Rejected)] == [5]
    assert 9000 < labeler.most < 11_000


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (b'{"a":' * DEEP, RejectCode.BAD_JSON),
        (b'{"instruction": ' + b"[" * DEEP + b"]" * DEEP + b', "output": "a"}', RejectCode.BAD_JSON),
        ({"messages": "[" * DEEP}, RejectCode.WRONG_TYPE),
        ({"messages": "-" * DEEP + "1"}, RejectCode.WRONG_TYPE),
        ({"messages": "(" * 90 + "1" + ")" * 90}, RejectCode.WRONG_TYPE),
        ({"messages": "__import__('os').getpid()"}, RejectCode.WRONG_TYPE),
        ({"instruction": "q", "output": "a", "history": "[" * DEEP}, RejectCode.WRONG_TYPE),
        ({"instruction": "\ud800", "output": "a"}, RejectCode.LONE_SURROGATE),
        ({"\udfff": 1, "instruction": "q", "output": "a"}, RejectCode.LONE_SURROGATE),
        (b'{"__class__": "a", "__class__": "b"}', RejectCode.DUP_KEY),
        ({"__class__": "os.system", "__init__": {"__globals__": 1}}, RejectCode.UNKNOWN_FORMAT),
        ({"messages": [{"__class__": "user", "content": "q"}]}, RejectCode.MISSING_COLUMN),
        ({"messages": [{"role": "__class__", "content": "q"}]}, RejectCode.UNKNOWN_ROLE),
        ({"prompt": "q", "completion": "a", "label": "__class__"}, RejectCode.BAD_LABEL),
    ],
    ids=lambda value: value.value if isinstance(value, RejectCode) else "",
)
def test_a_hostile_row_is_rejected_and_the_rows_around_it_are_read(check: Any, row: object, code: RejectCode) -> None:
    (before, bad, after), _ = check(GOOD, row, {**GOOD, "output": "b"})
    assert (bad.code, bad.line) == (code, 2)
    assert len(bad.excerpt) <= EXCERPT_CHARACTERS
    assert len(bad.detail) < 400
    assert isinstance(before, ChatRow)
    assert isinstance(after, ChatRow)


def test_keys_of_python_in_a_good_row_are_extra_columns(check: Any) -> None:
    (kept,), _ = check({**GOOD, "__class__": "a", "__dict__": {"x": 1}, "\u2028": 0})
    assert kept.content() == turns("q")


def test_two_hundred_thousand_names_and_a_duplicate_are_checked_in_one_pass(check: Any) -> None:
    """Looking each of them up in a list of all would take minutes."""
    keys = ", ".join(f'"k{number}": 1' for number in range(200_000))
    (bad,), _ = check(f'{{{keys}, "k0": 1}}'.encode())
    assert (bad.code, bad.detail) == (RejectCode.DUP_KEY, "the object contains the key 'k0' twice")


def test_a_header_of_many_columns_named_twice_costs_each_row_nothing(check: Any) -> None:
    header = ",".join(f"k{number}" for number in range(20_000))
    row = ",".join("1" for _ in range(20_001))
    results, _ = check(f"{header},k19999".encode(), *[row.encode()] * 20, name="rows.csv")
    assert {result.code for result in results} == {RejectCode.DUP_KEY}


def test_a_name_from_a_file_cannot_steer_the_terminal_that_shows_it(check: Any) -> None:
    (bad,), _ = check({"\x1b[31mred\x1b[0m\r\u202e": 1})
    assert isinstance(bad, Rejected)
    assert bad.detail.isprintable()
