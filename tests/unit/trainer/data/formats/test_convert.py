import json
import re
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.convert import convert_row
from finetune_trainer.data.rows import BadRow, ChatRow, DataFormat, Message, Source

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
SOURCE = Source("rows.jsonl", 1)


def convert(row: dict[str, Any], data_format: DataFormat, *repairs: RepairCode) -> list[Message]:
    made: set[RepairCode] = set()
    converted = convert_row(row, data_format, SOURCE, made)
    assert isinstance(converted, ChatRow)
    assert made == set(repairs)
    return converted.messages


def said(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n1 2"),
        ({"instruction": "Add", "input": "", "output": "3"}, "Add"),
        ({"instruction": "", "input": "1 2", "output": "3"}, "1 2"),
        ({"instruction": "Answer it", "question": "1+2?", "output": "3"}, "Answer it\n1+2?"),
        ({"question": "Sum?", "context": "1 2", "answer": "3"}, "Sum?\n1 2"),
        ({"prompt": "Add", "completion": "3"}, "Add"),
    ],
)
def test_alpaca_joins_instruction_and_input(row: dict[str, Any], prompt: str) -> None:
    assert said(convert(row, DataFormat.ALPACA)) == [("user", prompt), ("assistant", "3")]


def test_alpaca_takes_system_and_history_and_strips_a_null_input() -> None:
    row = {"system": "s", "history": [["q1", "a1"]], "instruction": "q2", "input": None, "output": "a2"}
    assert said(convert(row, DataFormat.ALPACA, RepairCode.NONE_STRIPPED)) == [
        ("system", "s"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5"), (True, "true"), (1.5, "1.5"), (1e3, "1000.0"), (2**60, "1152921504606846976")]
)
def test_a_scalar_where_text_belongs_is_written_as_text(value: object, text: str) -> None:
    row = {"instruction": "q", "output": value}
    assert convert(row, DataFormat.ALPACA, RepairCode.COERCED_SCALAR)[-1]["content"] == text


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        *((word, "system") for word in ("system", "developer")),
        *((word, "user") for word in ("user", "human", "prompter", "question", "Human", " USER ")),
        *((word, "assistant") for word in ("assistant", "gpt", "bot", "model", "chatgpt", "ai", "answer", "GPT")),
        *(
            (word, "tool")
            for word in ("tool", "observation", "observations", "function", "function-response", "ipython")
        ),
    ],
)
def test_every_alias_of_a_role_is_known(role: str, expected: str) -> None:
    for turn in ({"role": role, "content": "x"}, {"from": role, "value": "x"}, {"speaker": role, "text": "x"}):
        assert said(convert({"messages": [turn]}, DataFormat.OPENAI)) == [(expected, "x")]


@pytest.mark.parametrize("form", ['[{"from": "human", "value": "hi"}]', "[{'from': 'human', 'value': 'hi'}]"])
def test_a_conversation_inside_a_string_is_read(form: str) -> None:
    assert said(convert({"conversations": form}, DataFormat.SHAREGPT)) == [("user", "hi")]


def test_an_answer_may_be_parts_of_which_some_are_bare_texts() -> None:
    row = {"instruction": "q", "output": ["a", {"type": "text", "text": "b"}]}
    assert said(convert(row, DataFormat.ALPACA))[-1] == ("assistant", "ab")


def test_text_parts_are_joined() -> None:
    parts = [
        {"type": "text", "text": "a"},
        "b",
        {"type": "input_text", "text": "c"},
        {"type": "refusal", "refusal": "d"},
    ]
    assert said(convert({"messages": [{"role": "user", "content": parts}]}, DataFormat.OPENAI)) == [("user", "abcd")]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "tool-call", "value": '[{"name": "add", "arguments": "{\\"a\\": 1}"}]'},
    ],
)
def test_every_way_to_call_a_tool_becomes_one(turn: dict[str, Any]) -> None:
    assert convert({"messages": [turn]}, DataFormat.OPENAI) == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]}
    ]


@pytest.mark.parametrize(
    "tools", [[{"name": "add"}], '[{"name": "add"}]', [{"type": "function", "function": {"name": "add"}}]]
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_are_wrapped_as_openai_does(tools: object, column: str) -> None:
    row = convert_row({"messages": [], column: tools}, DataFormat.OPENAI, SOURCE, set())
    assert isinstance(row, ChatRow)
    assert row.tools == [{"type": "function", "function": {"name": "add"}}]


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"weight": 0.0}, {"train": 0}])
def test_an_answer_that_is_not_to_be_trained_is_marked(mark: dict[str, Any]) -> None:
    turns = [{"role": "assistant", "content": "a", **mark}, {"role": "assistant", "content": "b", "weight": 1}]
    assert convert({"messages": turns}, DataFormat.OPENAI) == [
        {"role": "assistant", "content": "a", "train": False},
        {"role": "assistant", "content": "b"},
    ]


@pytest.mark.parametrize("key", ["train", "weight", "training", "trainable", "loss", "loss_mask"])
@pytest.mark.parametrize(("yes", "no"), [(True, False), (1, 0)])
def test_every_name_of_a_mark_excludes_an_answer_and_masked_is_the_inverse(key: str, yes: object, no: object) -> None:
    excluded: list[dict[str, Any]] = [{key: no}, {"masked": yes}, {key: no, "masked": yes}]
    trained: list[dict[str, Any]] = [{key: yes}, {"masked": no}, {key: yes, "masked": no}, {key: None, "masked": None}]
    for mark in excluded:
        (message,) = convert({"messages": [{"role": "assistant", "content": "a", **mark}]}, DataFormat.OPENAI)
        assert message == {"role": "assistant", "content": "a", "train": False}
    for mark in trained:
        (message,) = convert({"messages": [{"role": "assistant", "content": "a", **mark}]}, DataFormat.OPENAI)
        assert message == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("marks", "detail"),
    [
        ({"train": True, "weight": 0}, "turn 1 has train True and weight 0, which contradict each other"),
        ({"loss": 0, "trainable": True}, "turn 1 has trainable True and loss 0, which contradict each other"),
        ({"loss_mask": 1, "masked": True}, "turn 1 has loss_mask 1 and masked True, which contradict each other"),
        ({"training": "false"}, "turn 1 has training 'false'; only 0 and 1 are valid: write one, or remove training"),
        ({"loss": 0.53}, "turn 1 has loss '0.53'; only 0 and 1 are valid: write one, or remove loss"),
        (
            {"loss_mask": [0, 1]},
            "turn 1 has loss_mask '[0, 1]'; only 0 and 1 are valid: write one, or remove loss_mask",
        ),
        ({"masked": "no"}, "turn 1 has masked 'no'; only 0 and 1 are valid: write one, or remove masked"),
    ],
)
def test_marks_that_contradict_each_other_or_have_other_values_are_refused(
    check: Any, marks: dict[str, Any], detail: str
) -> None:
    (row,), _ = check({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **marks}]})
    assert (row.code, row.detail) == (RejectCode.WRONG_TYPE, detail.replace("turn 1", "turn 2"))


@pytest.mark.parametrize("mark", ["trainable", "masked"])
def test_turns_in_a_text_may_have_a_mark(mark: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", mark: mark == "masked"}]
    row = {"prompt": "p", "completion": json.dumps(turns)}
    assert convert(row, DataFormat.ALPACA)[-1] == {"role": "assistant", "content": "a", "train": False}


def parts(*texts: str, **marks: Any) -> list[dict[str, Any]]:
    """Text parts, of which the first has the marks."""
    first, *others = ({"type": "text", "text": text} for text in texts)
    return [first | marks, *others]


@pytest.mark.parametrize("mark", [{"train": False}, {"weight": 0}, {"loss": False}, {"masked": 1}])
def test_parts_of_an_answer_that_are_not_to_be_trained_are_marked_by_their_characters(mark: dict[str, Any]) -> None:
    turn = {"role": "assistant", "content": parts("Let me see. ", "Four.", **mark)}
    marked = {"role": "assistant", "content": "Let me see. Four.", "untrained": [[0, 12]]}
    assert convert({"messages": [turn]}, DataFormat.OPENAI) == [marked]
    assert convert({"messages": [marked]}, DataFormat.OPENAI) == [marked]


def test_untrained_parts_that_follow_each_other_are_one_range() -> None:
    content = [*parts("a", weight=1), *parts("bb", train=False), *parts("c", train=False), "d"]
    (message,) = convert({"messages": [{"role": "assistant", "content": content}]}, DataFormat.OPENAI)
    assert (message["content"], message["untrained"]) == ("abbcd", [[1, 4]])


def test_an_answer_whose_parts_are_all_untrained_is_not_trained() -> None:
    turn = {"role": "assistant", "content": [*parts("a", train=False), *parts("b", weight=0), *parts(" ")]}
    assert convert({"messages": [turn]}, DataFormat.OPENAI) == [{"role": "assistant", "content": "ab ", "train": False}]


def test_marks_on_the_parts_of_a_prompt_change_nothing() -> None:
    turn = {"role": "user", "content": parts("a", "b", train=False)}
    assert convert({"messages": [turn]}, DataFormat.OPENAI) == [{"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    ("turn", "detail"),
    [
        (
            {"content": parts("a", "b", weight=0.5)},
            "part 1 of turn 1 has weight '0.5'; only 0 and 1 are valid: write one, or remove weight",
        ),
        ({"content": "ab", "untrained": [[1, 9]]}, "turn 1 has untrained [[1, 9]]"),
        ({"content": "ab", "untrained": "a"}, "turn 1 has untrained a;"),
    ],
)
def test_a_mark_that_cannot_be_followed_is_refused(turn: dict[str, Any], detail: str) -> None:
    with pytest.raises(BadRow, match=re.escape(detail)) as bad:
        convert({"messages": [{"role": "assistant"} | turn]}, DataFormat.OPENAI)
    assert bad.value.code is RejectCode.WRONG_TYPE


def test_reasoning_is_kept_under_one_name() -> None:
    turn = {"role": "assistant", "content": "a", "thinking": "hm"}
    assert convert({"messages": [turn]}, DataFormat.OPENAI) == [
        {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    ]


@pytest.mark.parametrize("content", ["<think>hm</think>\n\na", " <think>\nhm\n</think>a", "<think>\n\n</think>\n\na"])
@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_reasoning_that_the_text_repeats_is_kept_once(check: Any, content: str, key: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content, key: "hm "}]
    (row,), _ = check({"messages": turns})
    assert row.messages[1] == {"role": "assistant", "content": "a", "reasoning_content": "hm "}


def test_reasoning_that_differs_from_that_of_the_text_costs_the_row(check: Any) -> None:
    turn = {"role": "assistant", "content": "<think>one</think>a", "reasoning_content": "two"}
    (row,), _ = check({"messages": [{"role": "user", "content": "q"}, turn]})
    assert (row.code, row.detail) == (
        RejectCode.WRONG_TYPE,
        "turn 2 has reasoning_content and another reasoning in <think> at the start of its text: keep one of them",
    )


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "<think>hm</think>a"},
        {"content": "a <think>hm</think>", "reasoning_content": "hm"},
        {"content": "<think>hm", "reasoning_content": "hm"},
        {"content": "<think>hm</think>a", "reasoning_content": None},
    ],
)
def test_a_text_without_reasoning_apart_or_not_at_its_start_stays_as_it_is(check: Any, turn: dict[str, Any]) -> None:
    (row,), _ = check({"messages": [{"role": "user", "content": "q"}, {"role": "assistant"} | turn]})
    assert row.messages[1]["content"] == turn["content"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (parts("<think>hm</think>", "ab", "c", weight=0), {"content": "abc"}),
        (
            [*parts("<think>hm</think>a"), *parts("bb", weight=0), *parts("c")],
            {"content": "abbc", "untrained": [[1, 3]]},
        ),
        ([*parts("<think>hm</think>"), *parts("bb", weight=0)], {"content": "bb", "train": False}),
    ],
)
def test_marked_parts_after_reasoning_that_is_kept_once_are_the_same_characters(
    content: list[Any], expected: dict[str, Any]
) -> None:
    turn = {"role": "assistant", "content": content, "reasoning_content": "hm"}
    (message,) = convert({"messages": [turn]}, DataFormat.OPENAI)
    assert message == {"role": "assistant", "reasoning_content": "hm"} | expected


def test_the_nulls_of_a_table_of_messages_are_stripped() -> None:
    turn = {
        "role": "assistant",
        "content": "a",
        "name": None,
        "tool_calls": None,
        "function_call": None,
        "weight": None,
    }
    assert convert({"messages": [turn]}, DataFormat.OPENAI, RepairCode.NONE_STRIPPED) == [
        {"role": "assistant", "content": "a"}
    ]


def test_a_long_integer_as_an_answer_keeps_its_digits_and_another_column_may_have_one(check: Any) -> None:
    (kept, other), _ = check(
        b'{"prompt": "2**70?", "completion": 1180591620717411303424}',
        b'{"prompt": "q", "completion": "a", "id": 12345678901234567890123, "x": NaN}',
    )
    assert kept.messages[1]["content"] == "1180591620717411303424"
    assert other.messages[1]["content"] == "a"
