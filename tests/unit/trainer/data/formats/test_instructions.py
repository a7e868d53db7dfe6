from typing import Any

import orjson
import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.instructions import mark_untrained, read_prompt
from finetune_trainer.data.rows import BadRow, Message


def contents(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in read_prompt(row, set())]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "i"}, "i"),
        ({"query": "q"}, "q"),
        ({"problem": "p", "question": "q"}, "q"),
        ({"input": "x"}, "x"),
        ({"instruction": "i", "input": "x"}, "i\nx"),
        ({"instruction": "i", "input": " "}, "i"),
        ({"instruction": "i", "input": None}, "i"),
        ({"instruction": "i", "question": "q"}, "i\nq"),
        ({"instruction": "i", "input": "x", "question": "q"}, "i\nx"),
        ({"instruction": "Answer.", "prompt": "Why?"}, "Answer.\nWhy?"),
        ({"instruction": "Add.", "input": None, "prompt": "### Instruction:\nAdd.\n### Output:\n3"}, "Add."),
        ({"instruction": "i", "input": "", "question": "q"}, "i\nq"),
        ({"instruction": "i", "input": " ", "prompt": "p"}, "i\np"),
        ({"question": "q", "context": "c"}, "q\nc"),
        ({"instruction": "i", "question": "q", "context": "c"}, "i\nq\nc"),
        ({"instruction": "i", "prompt": "Do: i", "context": "c"}, "i\nc"),
        ({"question": "q", "input": "", "context": "c"}, "q\nc"),
        ({"input": "", "context": "c"}, "c"),
        ({"prompt": "p", "input": "x"}, "p\nx"),
        ({"prompt": "p"}, "p"),
        ({"instruction": "", "input": "x"}, "x"),
    ],
)
def test_a_question_is_its_instruction_and_its_input(row: dict[str, Any], text: str) -> None:
    assert contents(row) == [text]


@pytest.mark.parametrize("column", ["input", "context", "system"])
def test_several_texts_next_to_a_question_are_not_joined(check: Any, column: str) -> None:
    row = {"instruction": "i", "output": "a"}
    (refused, kept), _ = check(row | {column: ["x", "y"]}, row | {column: ["x"]})
    assert (refused.code, refused.detail) == (
        RejectCode.WRONG_TYPE,
        f"{column} contains 2 texts instead of one: join them into one text, or keep one of them",
    )
    assert "x" in {turn["content"].removeprefix("i\n") for turn in kept.messages}


def test_an_empty_cell_of_a_table_does_not_hide_the_question(check: Any) -> None:
    (kept,), _ = check(
        b'instruction,question,input,output\n"You are a doctor.","What is flu?","","A virus."\n', name="rows.csv"
    )
    assert kept.messages[0]["content"] == "You are a doctor.\nWhat is flu?"


def test_turns_next_to_an_empty_input_are_turns() -> None:
    turns = [{"role": "user", "content": "q"}]
    assert read_prompt({"prompt": turns, "input": ""}, set()) == turns


def test_system_text_and_history_come_before_the_question() -> None:
    row = {"system": "s", "history": [["q", "a"], ("r", "b")], "instruction": "i"}
    assert contents(row) == ["s", "q", "a", "r", "b", "i"]
    for nothing in (None, "", []):
        assert contents({"history": nothing, "instruction": "i"}) == ["i"]


@pytest.mark.parametrize("pair", ["q", ["q"], ["q", "a", "x"], {"q": "a"}])
def test_a_history_is_of_pairs(pair: object) -> None:
    with pytest.raises(BadRow, match="history contains") as bad:
        read_prompt({"history": [pair], "instruction": "i"}, set())
    assert bad.value.code is RejectCode.WRONG_TYPE


def test_a_row_without_a_question_lacks_a_column() -> None:
    with pytest.raises(BadRow) as bad:
        read_prompt({"output": "a"}, set())
    assert bad.value.code is RejectCode.MISSING_COLUMN


def test_an_answer_with_a_train_flag_keeps_it() -> None:
    turns: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "train": True},
        {"role": "assistant", "content": "b"},
    ]
    assert mark_untrained(turns) == [*turns[:2], {"role": "assistant", "content": "b", "train": False}]


@pytest.mark.parametrize(
    "items",
    [
        [{"from": "Berlin", "to": "Munich", "time": "09:00"}],
        [{"role": "Hamlet", "actor": "Olivier"}],
        [{"role": "Hamlet", "content": "To be."}],
        [{"speaker": "AI", "text": "Hello.", "start": 0.5, "end": 1.0}],
        [{"from": "user", "to": "bot", "text": "x"}],
        [{"role": "user"}, {"role": "assistant"}],
        [{"role": "user", "content": "q"}, {"role": "narrator", "content": "a"}],
        [{"role": 1, "content": "q"}],
    ],
)
def test_a_text_that_is_a_json_array_of_anything_but_turns_stays_a_text(check: Any, items: list[Any]) -> None:
    text = orjson.dumps(items).decode()
    (question, answer), _ = check({"prompt": text, "completion": "one"}, {"instruction": "Extract.", "output": text})
    assert [message["content"] for message in question.messages] == [text, "one"]
    assert [message["content"] for message in answer.messages] == ["Extract.", text]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "Assistant", "content": "a", "tool_calls": None, "name": None, "weight": None},
        {"from": "gpt", "value": "a", "refusal": None},
        {"speaker": "ai", "text": "a", "train": None},
    ],
)
def test_a_text_that_is_a_json_array_of_turns_is_these_turns(check: Any, turn: dict[str, Any]) -> None:
    (kept,), _ = check({"prompt": "q", "completion": orjson.dumps([turn]).decode()})
    assert kept.messages == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("column", ["reasoning_content", "thinking"])
def test_the_reasoning_next_to_an_answer_is_its_reasoning(check: Any, column: str) -> None:
    (read,), summary = check({"question": "q", column: "r", "answer": "a"})
    assert read.messages[-1] == {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert not summary.unused
    (once,), _ = check({"question": "q", column: "r", "answer": "<think>r</think>a"})
    assert once.messages[-1] == read.messages[-1]
    (turns,), _ = check({"prompt": "q", column: "r", "response": [{"role": "assistant", "content": "a"}]})
    assert turns.messages[-1] == read.messages[-1]


def test_two_reasonings_of_an_answer_cost_the_row(check: Any) -> None:
    (refused,), _ = check({"question": "q", "thinking": "r", "answer": "<think>other</think>a"})
    assert refused.code is RejectCode.WRONG_TYPE
    assert refused.detail.startswith("the row has reasoning_content and another reasoning in <think>")
    (refused,), _ = check(
        {"question": "q", "thinking": "r", "answer": {"role": "assistant", "content": "a", "thinking": "other"}}
    )
    assert refused.detail == "the row has reasoning in thinking and another one in its answer: keep one of them"


@pytest.mark.parametrize("flag", [True, None, "", " ", "on", "High "])
def test_a_flag_is_no_reasoning(check: Any, flag: object) -> None:
    (read,), _ = check({"question": "q", "thinking": flag, "answer": "a"})
    assert read.messages[-1] == {"role": "assistant", "content": "a"}


CALL = {"name": "f", "arguments": {"x": 1}}
OFFERED = [{"name": "f"}]


@pytest.mark.parametrize("column", ["answers", "answer", "output"])
@pytest.mark.parametrize("calls", [[CALL], [CALL, CALL]])
@pytest.mark.parametrize("write", [list, lambda calls: orjson.dumps(calls).decode(), str])
def test_an_answer_of_calls_is_read_as_calls_of_the_row_s_tools(
    check: Any, column: str, calls: list[Any], write: Any
) -> None:
    (read,), summary = check({"query": "q", column: write(calls), "tools": orjson.dumps(OFFERED).decode()})
    assert read.messages[-1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }
    assert not summary.unused


@pytest.mark.parametrize(
    "answer",
    ['{"x": 1}', '[{"name": "g", "arguments": {}}]', '[{"name": "f"}]', "[", "[1]", '[{"name": [], "arguments": 1}]'],
)
def test_any_other_json_next_to_tools_stays_text(check: Any, answer: str) -> None:
    (read,), _ = check({"query": "q", "answer": answer, "tools": OFFERED})
    assert read.messages[-1] == {"role": "assistant", "content": answer}


def test_no_calls_are_no_answer(check: Any) -> None:
    (refused,), _ = check({"query": "q", "answers": "[]", "tools": OFFERED})
    assert refused.code is RejectCode.NO_ASSISTANT


def test_earlier_turns_may_have_roles(check: Any) -> None:
    turns = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
    (read,), _ = check({"history": turns, "instruction": "q", "output": "a"})
    assert [turn["content"] for turn in read.messages] == ["q0", "a0", "q", "a"]


def test_the_reasoning_of_an_answer_after_turns_is_its_reasoning(check: Any) -> None:
    row = {"messages": [{"role": "user", "content": "q"}], "thinking": "r", "answer": "a"}
    (read,), summary = check(row)
    assert read.messages[-1] == {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert not summary.unused
    _, summary = check({"messages": read.messages, "thinking": "r"})
    assert list(summary.unused) == ["thinking"]
