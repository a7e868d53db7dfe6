"""Columns with content that nothing reads are counted, so that the user can map them."""

from typing import Any

import pytest

from finetune_api.rewards import Reward
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import ChatRow, DataFormat, Source
from finetune_trainer.rewards.references import References


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"problem": "p", "solution": "s", "answer": "9"}, ["solution"]),
        ({"question": "q", "choices": ["a", "b"], "answer": "a"}, ["choices"]),
        ({"instruction": "q", "input": "i", "context": "c", "output": "a"}, ["context"]),
        ({"prompt": "q", "response": "r", "answer": "a"}, ["answer"]),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "output": "b"},
         ["output"]),
        ({"text": "t", "title": "u"}, ["title"]),
        ({"Unnamed: 0": 3, "text": "t", "Unnamed: 2": "u"}, ["Unnamed: 2"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 4, "messages": [1]},
         ["score_chosen", "messages"]),
        ({"prompt": "q", "answers": ["a", "b"], "scores": [1, 2], "hints": ["h"]}, ["hints"]),
        ({"prompt": "q", "completion": "a", "label": True, "why": "w"}, ["why"]),
    ],
)  # fmt: skip
def test_a_column_that_is_not_read_is_counted(check: Any, row: dict[str, Any], unused: list[str]) -> None:
    _, summary = check(row, objective=None)
    assert list(summary.to_dict()["unusedColumns"]) == unused


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q", "a"]],
         "tools": [{"name": "f"}]},
        {"instruction": "general", "question": "q", "answer": "a"},
        {"messages": [{"role": "user", "content": "q"}], "answer": "a"},
        {"input": {"messages": [{"role": "user", "content": "q"}]}, "preferred_output": "a",
         "non_preferred_output": "b"},
        {"instruction": "q", "output": ["good", "bad"]},
        {"prompt": "q", "completion": "a", "solution": "", "choices": [], "extra": None, "more": {}, "blank": " "},
        {"prompt": "q", "completion": "a", "id": "7", "source": "s", "split": "train", "created": "today",
         "temperature": 0.1, "tool_choice": "auto",
         "Topic_ID": 3, "created_at": 5, "_source": {"file": "f"}, "__index_level_0__": 4, "url": "u",
         "metadata": {"a": 1}},
    ],
)  # fmt: skip
def test_used_and_empty_columns_and_well_known_metadata_are_not_counted(check: Any, row: dict[str, Any]) -> None:
    (kept,), summary = check(row, objective=None)
    assert summary.accepted == 1, kept
    assert summary.to_dict()["unusedColumns"] == {}


def test_mapped_columns_count_by_the_names_of_the_file(check: Any) -> None:
    row = {"ask": "q", "question": "old", "reply": "a", "note": "n", "system": ""}
    _, summary = check(row, columns={"prompt": "ask", "completion": "reply"})
    assert summary.to_dict()["unusedColumns"] == {"question": 1, "note": 1}
    _, summary = check({"prompt": "p", "q": "q", "answer": "a"}, columns={"prompt": "q"})
    assert summary.to_dict()["unusedColumns"] == {"prompt": 1}


def test_only_accepted_rows_count(check: Any) -> None:
    row = {"question": "q", "answer": "a", "why": "w"}
    _, summary = check(row, row, row | {"answer": ""}, {"question": "other", "answer": "a"})
    assert (summary.accepted, summary.to_dict()["unusedColumns"]) == (2, {"why": 1})


def test_a_column_that_a_reward_reads_is_used(check: Any) -> None:
    reward = Reward.model_validate({"type": "Answer", "answer": {"match": "Exact", "column": "truth"}})
    _, summary = check(
        {"prompt": "q", "truth": "t", "solution": "s"}, objective="RLHF", references=References.of([reward])
    )
    assert summary.to_dict()["unusedColumns"] == {"solution": 1}


def counted(rows: int, **columns: int) -> Summary:
    """A summary of so many rows, the first of which have these columns unused."""
    summary = Summary()
    for number in range(rows):
        unused = tuple(name for name, count in columns.items() if number < count)
        summary.count(ChatRow([], Source("f", 1), DataFormat.OPENAI, unused=unused))
    return summary


def test_the_ten_most_frequent_of_at_least_one_percent_of_the_rows_are_shown() -> None:
    summary = counted(200, **{f"c{number}": 200 - number for number in range(12)}, rare=1, seldom=2)
    assert list(summary.to_dict()["unusedColumns"]) == [f"c{number}" for number in range(10)]
    assert counted(200, rare=1, seldom=2).describe_unused() == "seldom (1 %)"
    assert counted(3, a=3, b=2).describe_unused() == "a (100 %), b (67 %)"
    assert Summary().describe_unused() == ""


def test_names_are_bounded_in_number_and_length(check: Any) -> None:
    row = {"prompt": "q", "completion": "a", "x" * 500: "y", "z\x1b": "y"}
    _, summary = check(row, *({"prompt": f"q{at}", "completion": "a", f"own{at}": "y"} for at in range(300)))
    assert summary.accepted == 301
    assert len(summary.unused) <= 200
    assert {"x" * 40, "z\\u001b"} <= summary.unused.keys()


def test_the_counts_of_sources_are_added() -> None:
    total = counted(2, a=2)
    total.add(counted(2, a=1, b=1))
    assert total.describe_unused() == "a (75 %), b (25 %)"


@pytest.mark.parametrize(
    ("turn", "unused"),
    [
        ({"thought": "I look it up."}, ["messages[].thought"]),
        ({"toolCalls": [{"name": "f"}], "reasoning_details": [{"text": "r"}]},
         ["messages[].toolCalls", "messages[].reasoning_details"]),
        ({"name": "Ann", "weight": 1, "refusal": None, "reasoning_content": "r s", "prefix": False}, []),
        ({"country": "Chile", "toxic": False, "score": 4, "header": {}, "notes": [], "model": "a b"}, []),
    ],
)  # fmt: skip
def test_a_key_of_turns_that_is_not_read_is_counted(check: Any, turn: dict[str, Any], unused: list[str]) -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **turn}]}
    for extra in ({}, {"id": 1}, {"system": "s"}):
        _, summary = check(row | extra)
        assert list(summary.unused) == unused
