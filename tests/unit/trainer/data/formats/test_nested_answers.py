"""Questions and answers in objects and lists, as exports of other tools have them."""

import json
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "q", "completion": {"city": "Oslo"}}, "completion"),
        ({"question": "q", "answer": {"value": 1, "unit": "m"}}, "answer"),
        ({"prompt": {"city": "Oslo"}, "completion": "a"}, "prompt"),
        ({"input": "q", "output": {"city": "Oslo"}}, "output"),
        ({"prompt": "q", "chosen": {"city": "Oslo"}, "rejected": "b"}, "chosen"),
    ],
)
def test_an_object_that_is_not_a_turn_is_to_be_written_as_json(check: Any, row: dict[str, Any], column: str) -> None:
    (refused,), _ = check(row)
    detail = f"{column} is an object and not a turn with a role: write it as a text with JSON"
    assert (refused.code, refused.detail) == (RejectCode.WRONG_TYPE, detail)


def test_a_turn_without_a_role_is_refused_with_its_keys(check: Any) -> None:
    (refused,), _ = check({"conversation": [{"ask": "q", "reply\x1b": "a"}]})
    assert (refused.code, refused.detail) == (
        RejectCode.MISSING_COLUMN,
        "turn 1 has no role (role, from, speaker), but ask, reply\\u001b",
    )


@pytest.mark.parametrize("column", ["conversation", "conversations", "messages"])
def test_turns_of_input_and_output_are_questions_and_answers(check: Any, column: str) -> None:
    turns = [{"input": "q", "output": "a"}, {"output": "a2", "input": "q2"}]
    (row,), _ = check({column: turns})
    assert row.messages == [Q, A, Q | {"content": "q2"}, A | {"content": "a2"}]


def test_a_question_whose_output_is_null_has_no_answer(check: Any) -> None:
    pair, question = {"input": "q", "output": "a"}, {"input": "q2", "output": None}
    (row, refused, null), _ = check(
        {"conversation": [pair, question]},
        {"conversation": [question, pair]},
        {"conversation": [{"input": None, "output": "a"}]},
    )
    assert row.messages == [Q, A]
    assert row.repairs == (RepairCode.NONE_STRIPPED, RepairCode.TRAILING_USER_TRIMMED)
    assert (refused.code, refused.detail) == (
        RejectCode.BAD_ALTERNATION,
        "turn 2 is a user turn after a user turn: join the two",
    )
    assert (null.code, null.detail) == (RejectCode.NULL_FIELD, "turn 1 is null: give it a text, or remove the row")


def test_a_pair_next_to_a_conversation_is_still_read_as_a_pair(check: Any) -> None:
    row = {"conversation": [{"input": "q", "output": None}], "chosen": [Q, A], "rejected": [Q, A | {"content": "b"}]}
    (pair,), _ = check(row, objective="DPO")
    assert (pair.prompt, pair.chosen) == ([Q], [A])


@pytest.mark.parametrize("output", ["a", A, [A]])
@pytest.mark.parametrize("asked", [[Q], json.dumps([Q]), {"messages": [Q]}, {"messages": [Q], "model": "m"}])
def test_an_input_of_turns_is_the_prompt_of_its_output(check: Any, asked: object, output: object) -> None:
    (row,), summary = check({"input": asked, "output": output, "system": "s"})
    assert row.messages == [{"role": "system", "content": "s"}, Q, A]
    assert summary.unused == {}


def test_earlier_answers_of_an_input_are_context_and_its_tools_are_read(check: Any) -> None:
    asked = {"messages": [Q, A, Q | {"content": "q2"}], "tools": [{"name": "f"}]}
    (row,), _ = check({"input": asked, "output": "a2"})
    assert row.messages[1] == A | {"train": False}
    assert "train" not in row.messages[-1]
    assert row.tools[0]["function"]["name"] == "f"


def test_an_input_of_turns_is_a_prompt_for_an_objective_of_prompts(check: Any) -> None:
    (row,), _ = check({"input": [Q], "output": "a"}, objective="RLHF")
    assert row.prompt == [Q]


def test_turns_of_an_input_may_have_names_of_the_user_s_own(check: Any) -> None:
    row = {"input": [{"who": "user", "said": "q"}], "output": "a"}
    (read,), _ = check(row, columns={"role": "who", "content": "said"})
    assert read.messages == [Q, A]


@pytest.mark.parametrize("value", [{"a": 1}, [{"a": 1}]])
def test_an_input_of_other_data_is_refused_by_its_name(check: Any, value: object) -> None:
    (refused,), _ = check({"input": value, "output": "a"})
    assert refused.code is RejectCode.WRONG_TYPE
    assert refused.detail.startswith("input ")


@pytest.mark.parametrize("text", ['[{"a": 1}]', "[1]", '{"messages": []}'])
def test_an_input_of_other_json_stays_a_text(check: Any, text: str) -> None:
    (row,), _ = check({"input": text, "output": "a"})
    assert row.messages[0]["content"] == text
