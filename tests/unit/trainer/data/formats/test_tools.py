from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.tools import parse_tool_call_text, read_tool_call, read_tool_calls, read_tools
from finetune_trainer.data.rows import BadRow


def refusal(call: Any, *arguments: Any) -> tuple[RejectCode, str]:
    with pytest.raises(BadRow) as bad:
        call(*arguments)
    return bad.value.code, bad.value.detail


@pytest.mark.parametrize("value", [None, "", []])
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_no_tools_are_a_column_to_strip(column: str, value: object) -> None:
    made: set[RepairCode] = set()
    assert read_tools({column: value}, made) is None
    assert made == {RepairCode.NONE_STRIPPED}
    assert read_tools({}, set()) is None
    assert read_tools({"tools": "[]"}, set()) is None


def test_a_tool_keeps_its_definition_and_a_bare_function_is_wrapped() -> None:
    tool = {"type": "function", "function": {"name": "f"}, "strict": True}
    assert read_tools({"tools": [tool]}, set()) == [tool]
    bare = {"type": "function", "name": "f", "parameters": None}
    assert read_tools({"tools": [bare]}, set()) == [{"type": "function", "function": {"name": "f", "parameters": None}}]


def test_a_tool_in_the_form_of_anthropic_is_read_as_that_of_openai() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "custom", "name": "f", "input_schema": schema, "cache_control": {"type": "ephemeral"}}
    function = {"name": "f", "parameters": schema}
    for one in (tool, tool | {"parameters": None}):
        assert read_tools({"tools": [one]}, set()) == [{"type": "function", "function": function}]


def test_parameters_take_precedence_over_an_input_schema() -> None:
    (tool,) = read_tools({"tools": [{"name": "f", "parameters": {"a": 1}, "input_schema": {"b": 1}}]}, set()) or []
    assert tool["function"] == {"name": "f", "parameters": {"a": 1}, "input_schema": {"b": 1}}


@pytest.mark.parametrize(
    ("tool", "detail"),
    [
        ("f", "a tool is a string instead of an object"),
        ({"function": "f"}, "a tool has no function name"),
        ({"name": 1}, "a tool has no function name"),
        ({"name": ""}, "a tool has no function name"),
        ({"name": "f", "parameters": []}, "the parameters of tool 'f' are not an object"),
        ({"name": "f", "input_schema": []}, "the parameters of tool 'f' are not an object"),
    ],
)
def test_a_bad_tool_is_named(tool: object, detail: str) -> None:
    assert refusal(read_tools, {"tools": [tool]}, set()) == (RejectCode.BAD_TOOLS, detail)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"name": "f"}, {}),
        ({"name": "f", "arguments": ""}, {}),
        ({"name": "f", "arguments": None}, {}),
        ({"name": "f", "parameters": {"a": 1}}, {"a": 1}),
        ({"name": "f", "args": {"a": 1}, "type": "tool_call"}, {"a": 1}),
        ({"name": "f", "args": '{"a": 1}'}, {"a": 1}),
        ({"type": "tool_use", "name": "f", "input": {"a": 1}}, {"a": 1}),
        ({"function": {"name": "f", "input": {"a": 1}}}, {"a": 1}),
        ({"type": "function", "function": {"name": "f"}, "args": {"a": 1}}, {"a": 1}),
        ({"name": "f", "arguments": None, "args": {"a": 1}}, {"a": 1}),
        ({"name": "f", "arguments": {}, "input": {"a": 1}}, {"a": 1}),
        ({"name": "f", "arguments": {"a": 1}, "note": "n"}, {"a": 1}),
        ({"name": "f", "arguments": {}, "note": "n"}, {}),
        ({"name": "f", "arguments": "", "note": "n"}, {}),
        ({"name": "f", "arguments": None, "note": None}, {}),
        ({"name": "f", "id": 1, "type": "function", "index": 0, "call_id": "c", "description": "d"}, {}),
        ({"name": "f", "arguments": '{"a": 1}'}, {"a": 1}),
        ({"function": {"name": "f", "arguments": {"a": 1}}, "id": 5}, {"a": 1}),
    ],
)
def test_a_call_is_a_name_and_an_object_of_arguments(call: object, arguments: dict[str, Any]) -> None:
    assert read_tool_call(call) == {"type": "function", "function": {"name": "f", "arguments": arguments}}


def test_a_call_keeps_its_id() -> None:
    assert read_tool_call({"name": "f", "id": "7"})["id"] == "7"


@pytest.mark.parametrize(
    ("call", "detail"),
    [
        ("f", "a tool call is a string instead of an object"),
        ({"function": "f"}, "a tool call has no function name"),
        ({"name": 1}, "a tool call has no function name"),
        ({"name": ""}, "a tool call has no function name"),
        ({"name": "f", "arguments": "{"}, "the arguments of 'f' are not JSON"),
        ({"name": "f", "arguments": 1}, "the arguments of 'f' are a number, not an object"),
        ({"name": "f", "args": [1]}, "the arguments of 'f' are an array, not an object"),
        (
            {"name": "f", "kwargs": {"a": 1}, "x\x1b": 2, "id": "1"},
            "the call of 'f' has no arguments (arguments, parameters, args, input), but kwargs, x\\u001b",
        ),
        (
            {"function": {"name": "f", "kwargs": {"a": 1}}, "params": 1, "x": {}},
            "the call of 'f' has no arguments (arguments, parameters, args, input), but kwargs, params",
        ),
    ],
)
def test_a_bad_call_is_named(call: object, detail: str) -> None:
    assert refusal(read_tool_call, call) == (RejectCode.BAD_TOOL_CALL, detail)


def test_calls_are_a_list_which_may_be_empty() -> None:
    for nothing in (None, []):
        made: set[RepairCode] = set()
        assert read_tool_calls(nothing, made) == []
        assert made == {RepairCode.NONE_STRIPPED}
    assert len(read_tool_calls([{"name": "f"}, {"name": "g"}], set())) == 2
    assert refusal(read_tool_calls, {}, set()) == (
        RejectCode.BAD_TOOL_CALL,
        "tool_calls is an object instead of an array",
    )


def test_the_text_of_a_call_is_one_or_several() -> None:
    assert [call["function"]["name"] for call in parse_tool_call_text('[{"name": "f"}, {"name": "g"}]')] == ["f", "g"]
    assert [call["function"]["name"] for call in parse_tool_call_text('{"name": "f"}')] == ["f"]
    assert refusal(parse_tool_call_text, "f()")[1] == "the text of a function_call turn is not JSON"


def test_the_calls_of_a_text_have_their_arguments_under_any_of_the_names() -> None:
    text = '[{"name": "f", "args": {"a": 1}}, {"name": "g", "input": {"b": 1}}, {"name": "h", "arguments": {}}]'
    assert [call["function"]["arguments"] for call in parse_tool_call_text(text)] == [{"a": 1}, {"b": 1}, {}]
    code, detail = refusal(parse_tool_call_text, '{"name": "f", "payload": {"a": 1}}')
    assert (code, detail.endswith("but payload")) == (RejectCode.BAD_TOOL_CALL, True)


@pytest.mark.parametrize("key", ["args", "input"])
def test_arguments_under_another_name_are_in_the_checked_row(check: Any, key: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"name": "f", key: {"a": 1}}]}]
    (row,), _ = check({"messages": turns})
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize("arguments", [b'{"id": 12345678901234567890123}', b'"{\\"id\\": 12345678901234567890123}"'])
def test_an_argument_that_would_be_rounded_costs_its_row(check: Any, arguments: bytes) -> None:
    turn = b'{"role": "assistant", "tool_calls": [{"name": "f", "arguments": %s}]}' % arguments
    (row,), _ = check(b'{"messages": [{"role": "user", "content": "q"}, %s]}' % turn)
    assert (row.code, row.detail) == (
        RejectCode.WRONG_TYPE,
        "a value cannot be written as JSON: Integer exceeds 64-bit range",
    )
