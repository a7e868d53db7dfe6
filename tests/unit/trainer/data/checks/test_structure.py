"""What is said of a row whose turns are out of order, and that long names are cut in it."""

from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
LONG = "x" * 50
CUT = repr("x" * 40)


def call(name: str = "f", **identity: str) -> dict[str, Any]:
    called = {"type": "function", "function": {"name": name, "arguments": {}}, **identity}
    return {"role": "assistant", "content": "", "tool_calls": [called]}


def result(**identity: str) -> dict[str, Any]:
    return {"role": "tool", "content": "r", **identity}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("turns", "code", "detail"),
    [
        ([Q, A, S, Q, A], RejectCode.SYSTEM_NOT_FIRST, "turn 3 is a system turn: move it to the start"),
        ([Q, Q, A], RejectCode.BAD_ALTERNATION, "turn 2 is a user turn after a user turn: join the two"),
        ([Q, A, A], RejectCode.BAD_ALTERNATION, "turn 3 is an assistant turn that follows another one: join the two"),
        (
            [A, Q, A],
            RejectCode.BAD_ALTERNATION,
            "turn 1 is an assistant turn that begins the conversation: remove it, or put a question before it",
        ),
        (
            [S, A],
            RejectCode.BAD_ALTERNATION,
            "turn 2 is an assistant turn that begins the conversation: remove it, or put a question before it",
        ),
        ([Q, result(), A], RejectCode.ORPHAN_TOOL, "turn 2 is a tool result after a user turn"),
        (
            [Q, A, result(), A],
            RejectCode.ORPHAN_TOOL,
            "turn 3 answers no tool call of the turn before it: add it to its tool_calls",
        ),
        (
            [Q, call(id="1"), result(tool_call_id="2"), A],
            RejectCode.ORPHAN_TOOL,
            "turn 3 answers no tool call of the turn before it: add it to its tool_calls",
        ),
        ([{**Q, "content": " "}, A], RejectCode.EMPTY_PROMPT, "turn 1, the first prompt, is empty"),
        ([Q, {**A, "content": " "}], RejectCode.EMPTY_RESPONSE, "turn 2, the last answer, is empty"),
        ([Q, A, {**Q, "content": " "}, A], RejectCode.EMPTY_TURN, "turn 3 (user) is empty"),
        ([Q, {**A, "content": " "}, Q, A], RejectCode.EMPTY_TURN, "turn 2 (assistant) is empty"),
    ],
)
def test_a_fault_of_a_conversation_names_the_turn(
    check: Any, turns: list[dict[str, Any]], code: RejectCode, detail: str
) -> None:
    (refused,), _ = check({"messages": turns})
    assert (refused.code, refused.detail) == (code, detail)


USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
RESULTS = {
    "role": "user",
    "content": [
        {"type": "tool_result", "tool_use_id": "1", "content": "r"},
        {"type": "tool_result", "tool_use_id": "1", "content": "r"},
    ],
}


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"system": "s", "messages": [Q, {**A, "content": ""}, Q, A]}, "turn 2 (assistant) is empty"),
        ({"system": "s", "messages": [Q, A, S, Q, A]}, "turn 3 is a system turn: move it to the start"),
        ({"system": "", "messages": [Q, A, A]}, "turn 3 is an assistant turn that follows another one: join the two"),
        ({"messages": [S, S, Q, {**A, "content": ""}]}, "turn 4, the last answer, is empty"),
        ({"messages": [S, S, Q, Q, A], "label": True}, "turn 4 is a user turn after a user turn: join the two"),
        (
            {"system": "s", "messages": [Q, USE, RESULTS, A, A]},
            "turn 5 is an assistant turn that follows another one: join the two",
        ),
        (
            {"messages": [Q, USE, RESULTS, {"role": "narrator", "content": ""}]},
            "turn 4 has the unknown role 'narrator': use system, user, assistant, tool or another name of one of them",
        ),
        (
            {"messages": [{"human": "q", "assistant": "a"}, A]},
            "turn 2 is an assistant turn that follows another one: join the two",
        ),
        ({"messages": [{"human": "q", "assistant": None}]}, "turn 1 is null: give it a text, or remove the row"),
        (
            {"system": "s", "messages": [Q, {**A, "content": " "}], "tools": [tool("f")]},
            "turn 2, the last answer, is empty",
        ),
        (
            {"system": "s", "messages": [Q, call("g"), result(), A], "tools": [tool("f")]},
            "turn 2 calls 'g', which is not in tools",
        ),
        (
            {"system": "s", "messages": [Q, A, Q], "answer": [A, A]},
            "turn 5 is an assistant turn that follows another one: join the two",
        ),
        ({"messages": None, "prompt": "q", "completion": " ", "label": True}, "turn 2, the last answer, is empty"),
        ({"system": "s", "history": [["q", ""]], "instruction": "q", "output": "a"}, "turn 3 (assistant) is empty"),
    ],
)
def test_turns_are_numbered_as_in_the_file(check: Any, row: dict[str, Any], detail: str) -> None:
    (refused,), _ = check(row)
    assert refused.detail == detail


@pytest.mark.parametrize(
    "turns",
    [
        [Q, call(id="1"), result(tool_call_id="1"), result(), A],
        [Q, call(), result(tool_call_id="2"), A],
        [Q, {**A, "content": "<tool_call>{}"}, result(), A],
        [Q, call(), result(), call(), {**result(), "content": ""}, A],
        [Q, call(), result(), Q, A],
    ],
)
def test_tool_results_follow_their_calls(check: Any, turns: list[dict[str, Any]]) -> None:
    (kept,), _ = check({"messages": turns})
    assert len(kept.messages) == len(turns)


def test_a_call_is_of_a_tool_that_the_row_lists_if_it_lists_any(check: Any) -> None:
    turns = [Q, call(LONG)]
    (refused, listed, unlisted), _ = check(
        {"messages": turns, "tools": [tool("g")]}, {"messages": turns, "tools": [tool(LONG)]}, {"messages": turns}
    )
    assert refused.detail == f"turn 2 calls {CUT}, which is not in tools"
    assert len(listed.messages) == len(unlisted.messages) == 2


def test_a_fault_of_a_pair_names_the_side(check: Any) -> None:
    rows, _ = check(
        {"prompt": "q", "chosen": "a", "rejected": ""},
        {"prompt": "q", "chosen": "", "rejected": "a"},
        {"prompt": "q", "chosen": [Q], "rejected": "a"},
        objective="DPO",
    )
    assert [row.detail for row in rows[:2]] == [
        "with the rejected answer, turn 2, the last answer, is empty",
        "with the chosen answer, turn 2, the last answer, is empty",
    ]


def test_system_turns_are_merged_and_empty_ones_removed(check: Any) -> None:
    empty = {**S, "content": " "}
    rows, _ = check(
        {"messages": [S, {**S, "content": "t"}, Q, A]},
        {"messages": [empty, Q, {**A, "content": "b"}]},
        {"messages": [S, empty, Q, {**A, "content": "c"}]},
        {"messages": [S, Q, {**A, "content": "d"}]},
    )
    assert [row.messages[0]["content"] for row in rows] == ["s\n\nt", "q", "s", "s"]
    assert [row.repairs for row in rows] == [
        (RepairCode.SYSTEM_MERGED,),
        (RepairCode.NONE_STRIPPED,),
        (RepairCode.NONE_STRIPPED,),
        (),
    ]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"messages": [{**Q, "role": LONG}, A]}, CUT),
        ({"messages": [Q, {**A, "weight": LONG}]}, repr("x" * 20)),
        ({"messages": [{**Q, "content": [{"type": LONG}]}, A]}, CUT),
        ({"prompt": "q", "completion": "a", "label": LONG}, CUT),
        ({"messages": [Q, call()], "tools": [{"name": LONG, "parameters": 1}]}, CUT),
        (
            {"messages": [Q, {**A, "tool_calls": [{"function": {"name": LONG, "arguments": "{"}}]}]},
            f"the arguments of {CUT} are not JSON",
        ),
        (
            {"messages": [Q, {**A, "tool_calls": [{"function": {"name": LONG, "arguments": "[]"}}]}]},
            f"the arguments of {CUT} are an array",
        ),
        (b'{"' + LONG.encode() + b'": 1, "' + LONG.encode() + b'": 2}', CUT),
    ],
)
def test_a_long_name_is_cut_in_the_detail(check: Any, row: Any, shown: str) -> None:
    (refused,), _ = check(row, objective="KTO")
    assert shown in refused.detail
