"""Turns that other tools write in one piece."""

from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import ChatRow

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
TOOLS = [{"name": "add", "parameters": {}}]


@pytest.mark.parametrize(
    "turns",
    [
        [{"human": "q", "assistant": "a"}],
        [{"user": "q", "gpt": "a"}],
        [["q", "a"]],
        '[["q", "a"]]',
    ],
)
def test_a_question_with_its_answer_in_one_turn_is_two_turns(check: Any, turns: Any) -> None:
    (kept,), _ = check({"conversations": turns})
    assert isinstance(kept, ChatRow)
    assert kept.messages == [Q, A]


def test_exchanges_follow_each_other_and_may_begin_with_a_system_text(check: Any) -> None:
    turns = [{"system": "s", "human": "q", "assistant": "a"}, {"human": "q", "assistant": "a"}]
    (kept,), _ = check({"conversations": turns})
    assert kept.messages == [{"role": "system", "content": "s"}, Q, A, Q, A]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"assistant": "a", "human": "q"}, [Q, A]),
        ({"assistant": "a", "system": "s", "user": "q"}, [{"role": "system", "content": "s"}, Q, A]),
        ({"human": "q", "assistant": "a", "system": None}, [Q, A]),
        ({"assistant": "a", "human": "q", "observation": None, "system": None}, [Q, A]),
    ],
)
def test_the_order_of_the_keys_of_an_exchange_makes_no_difference_nor_do_its_nulls(
    check: Any, turn: dict[str, Any], said: list[Any]
) -> None:
    (kept,), _ = check({"conversations": [turn]})
    assert kept.messages == said


def test_a_null_answer_of_an_exchange_is_refused(check: Any) -> None:
    (rejected,), _ = check({"conversations": [{"human": "q", "assistant": None}]})
    assert rejected.code is RejectCode.NULL_FIELD


def test_a_null_system_text_of_a_later_exchange_is_none(check: Any) -> None:
    turns = [{"system": "s", "human": "q", "assistant": "a"}, {"system": None, "human": "q", "assistant": "a"}]
    (kept,), _ = check({"conversations": turns})
    assert kept.messages == [{"role": "system", "content": "s"}, Q, A, Q, A]
    assert kept.repairs == (RepairCode.NONE_STRIPPED,)


def test_an_array_of_three_is_no_exchange(check: Any) -> None:
    (rejected,), _ = check({"conversations": [["q", "a", "x"]]})
    assert (rejected.code, "array of 3" in rejected.detail) == (RejectCode.WRONG_TYPE, True)


def test_calls_results_and_reasoning_of_anthropics_blocks_are_those_of_openai(check: Any) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "add", "input": {"x": 2}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "4"}]}
    thinking = {"type": "thinking", "thinking": "hm", "signature": "x"}
    turns = [
        Q,
        {"role": "assistant", "content": [thinking, {"type": "text", "text": "Let me add."}, use]},
        {"role": "user", "content": [result]},
        A,
    ]
    (kept,), _ = check({"messages": turns, "tools": TOOLS})
    call = {"type": "function", "id": "t1", "function": {"name": "add", "arguments": {"x": 2}}}
    assert kept.messages == [
        Q,
        {"role": "assistant", "content": "Let me add.", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "4", "tool_call_id": "t1"},
        A,
    ]


def test_a_question_after_a_tools_result_is_a_turn_of_its_own(check: Any) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "4"}
    asked = {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]}
    (kept,), _ = check({"messages": [Q, {"role": "assistant", "content": [use]}, asked, A], "tools": TOOLS})
    assert [(turn["role"], turn["content"]) for turn in kept.messages[2:]] == [
        ("tool", "4"),
        ("user", "And now?"),
        ("assistant", "a"),
    ]


def test_an_image_among_the_blocks_is_refused(check: Any) -> None:
    turn = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "image", "source": {}}]}
    (rejected,), _ = check({"messages": [Q, turn]})
    assert rejected.code is RejectCode.UNSUPPORTED_MODALITY


def test_the_result_of_a_tool_keeps_the_digits_of_a_long_integer(check: Any) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": {"id": 12345678901234567890123, "t": "é"}}
    turns = [Q, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}, A]
    for row in ({"messages": turns}, {"messages": str(turns), "n": 1}):
        (kept,), _ = check(row)
        assert kept.messages[2]["content"] == '{"id":12345678901234567890123,"t":"é"}'


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "model", "parts": [{"text": "r", "thought": True}, {"text": "a"}]},
        {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "r"}}}, {"text": "a"}]},
    ],
)
def test_the_reasoning_of_gemini_and_bedrock_is_apart_from_the_answer(check: Any, turn: dict[str, Any]) -> None:
    (kept,), _ = check({"messages": [Q, turn]})
    assert kept.messages == [Q, A | {"reasoning_content": "r"}]


def test_an_image_of_gemini_or_bedrock_costs_the_row(check: Any) -> None:
    for part in ({"inlineData": {"mimeType": "image/png", "data": "x"}}, {"image": {"format": "png"}}):
        (refused,), _ = check({"messages": [{"role": "user", "content": [part, {"text": "q"}]}, A]})
        assert refused.code is RejectCode.UNSUPPORTED_MODALITY
        assert refused.detail == f"turn 1 has a part of type {next(iter(part))!r}; only text is trained"


def test_arrays_of_roles_and_of_texts_are_turns(check: Any) -> None:
    for turns in (
        {"role": ["user", "assistant"], "content": ["q", "a"]},
        {"from": ["human", "gpt"], "value": ["q", "a"]},
    ):
        (kept,), _ = check({"messages": turns})
        assert kept.messages == [Q, A]
    (faulty,), _ = check({"messages": {"role": ["user", "user", "assistant"], "content": ["q", "q", "a"]}})
    assert faulty.detail == "turn 2 is a user turn after a user turn: join the two"


@pytest.mark.parametrize("turns", [{"role": ["user"], "content": []}, {"role": "user", "content": "q"}, {"a": ["b"]}])
def test_an_object_that_is_not_of_arrays_is_no_conversation(check: Any, turns: dict[str, Any]) -> None:
    (refused,), _ = check({"messages": turns})
    assert refused.code is RejectCode.WRONG_TYPE
    assert refused.detail.startswith("messages is an object instead of an array; columns found: messages")


def test_a_single_part_of_gemini_needs_no_array(check: Any) -> None:
    contents = [{"role": "user", "parts": {"text": "q"}}, {"role": "model", "parts": {"text": "a"}}]
    (kept,), _ = check({"system_instruction": {"parts": {"text": "s"}}, "contents": contents})
    assert kept.messages == [{"role": "system", "content": "s"}, Q, A]
    called = {"role": "model", "parts": {"functionCall": {"name": "f"}}}
    (kept,), _ = check({"contents": [contents[0], called]})
    assert kept.messages[-1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]


def test_a_tool_config_without_tools_has_none(check: Any) -> None:
    (kept,), _ = check({"messages": [Q, A], "toolConfig": {"toolChoice": {"auto": {}}}})
    assert (kept.messages, kept.tools) == ([Q, A], None)


def test_contents_that_are_a_text_are_no_conversation(check: Any) -> None:
    (kept,), summary = check({"question": "q", "answer": "a", "contents": "c"})
    assert (kept.messages, list(summary.unused)) == ([Q, A], ["contents"])
    (refused,), _ = check({"contents": "c", "stars": 4}, objective="DomainAdaptation")
    assert refused.detail.endswith("dataset.columns, for example {text: contents}")
    (text,), _ = check({"contents": "c", "stars": 4}, objective="DomainAdaptation", columns={"text": "contents"})
    assert text.text == "c"
