"""Rankings in the shapes that people have them in: the pairs and labels that they become, and what is no ranking."""

import json
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import ChatRow, DataFormat, PreferenceRow, PromptRow, Rejected, UnpairedRow

SHAPES: dict[str, dict[str, Any]] = {
    "texts with scores": {"prompt": "q", "responses": ["worst", "best", "good"], "scores": [1, 9.5, 5]},
    "texts with ranks": {"question": "q", "completions": ["worst", "best", "good"], "ranks": [3, 1, 2]},
    "objects with a rank": {
        "prompt": "\n\nHuman: q\n\nAssistant:",
        "answers": [{"answer": "worst", "rank": 3}, {"answer": "best", "rank": 1}, {"answer": "good", "rank": 2}],
    },
    "objects with a score": {
        "instruction": "q",
        "models": ["a", "b", "c"],
        "completions": [
            {"response": "worst", "overall_score": 1.0},
            {"response": "best", "overall_score": 9.0},
            {"response": "good", "overall_score": 8.5},
        ],
    },
    "strings with lists": {
        "prompt": "q",
        "responses": json.dumps(["worst", "best", "good"]),
        "scores": "[1, 9, 5]",
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("objective", ["DPO", "RewardModel", None])
def test_the_best_answer_is_paired_with_each_worse_one(check: Any, shape: str, objective: str | None) -> None:
    rows, summary = check(SHAPES[shape], objective=objective)
    assert all(isinstance(row, PreferenceRow) for row in rows), rows
    assert [(row.prompt[-1]["content"], row.chosen[0]["content"], row.rejected[0]["content"]) for row in rows] == [
        ("q", "best", "good"),
        ("q", "best", "worst"),
    ]
    assert summary.formats == {DataFormat.PREFERENCE: 2}
    assert summary.repaired_by_code[RepairCode.RANKING_SPLIT] == 2


def test_other_objectives_take_the_best_all_with_labels_or_the_prompt(check: Any) -> None:
    row = SHAPES["texts with scores"]
    (chat,), _ = check(row, objective="Chat")
    assert isinstance(chat, ChatRow)
    assert chat.messages[-1]["content"] == "best"
    rows, _ = check(row, objective="KTO")
    assert all(isinstance(one, UnpairedRow) for one in rows)
    assert [(one.completion[0]["content"], one.label) for one in rows] == [
        ("best", True),
        ("good", False),
        ("worst", False),
    ]
    (prompt,), _ = check(row, objective="RLHF")
    assert isinstance(prompt, PromptRow)


def test_answers_as_good_as_the_best_are_left_out(check: Any) -> None:
    rows, _ = check({"prompt": "q", "responses": ["a", "b", "c"], "scores": [5, 5, 3]}, objective="DPO")
    assert [(row.chosen[0]["content"], row.rejected[0]["content"]) for row in rows] == [("a", "c")]


def test_names_of_a_ranking_can_be_mapped(check: Any) -> None:
    row = {"ask": "q", "candidates": ["a", "b"], "votes": [0, 7]}
    (pair,), _ = check(row, objective="DPO", columns={"prompt": "ask", "responses": "candidates", "scores": "votes"})
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("b", "a")


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"scores": [1]}, RejectCode.WRONG_TYPE, "responses has 2 answers, but scores has 1 numbers"),
        ({"scores": [1, "2"]}, RejectCode.WRONG_TYPE, "scores is a string instead of a number"),
        ({"scores": [1, None]}, RejectCode.WRONG_TYPE, "scores is null instead of a number"),
        ({"scores": [2, 2]}, RejectCode.SAME_PAIR, "all 2 answers have the same rank or score"),
        ({"responses": ["a"], "scores": [2]}, RejectCode.WRONG_TYPE, "ranks 1 answers; from 2 to 16"),
        ({"responses": ["a"] * 17, "scores": [2] * 17}, RejectCode.WRONG_TYPE, "ranks 17 answers; from 2 to 16"),
        ({"responses": ["a", {}]}, RejectCode.WRONG_TYPE, "an answer is an object instead of text"),
        ({"responses": ["", "b"]}, RejectCode.EMPTY_RESPONSE, "rejected"),
        ({"responses": ["a", "a"]}, RejectCode.SAME_PAIR, "are the same"),
    ],
)
def test_a_ranking_that_is_none_is_refused_with_the_reason(
    check: Any, changes: dict[str, Any], code: RejectCode, detail: str
) -> None:
    row = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]} | changes
    (refused,), _ = check(row, objective="DPO")
    assert isinstance(refused, Rejected), refused
    assert (refused.code, detail in refused.detail) == (code, True), refused.detail


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answers": ["a", "b"], "answer": "a"},
        {"question": "q", "answers": {"text": ["a"], "answer_start": [3]}, "answer": "a"},
        {"question": "q", "completions": [{"response": "b"}], "answer": "a"},
        {"question": "q", "answers": ["c", "b"], "scores": [1, 2], "answer": "a"},
    ],
)
def test_a_list_of_answers_without_an_order_or_next_to_an_answer_is_no_ranking(check: Any, row: dict[str, Any]) -> None:
    (kept,), _ = check(row, objective="Chat")
    assert isinstance(kept, ChatRow), kept
    assert kept.messages[-1]["content"] == "a"
