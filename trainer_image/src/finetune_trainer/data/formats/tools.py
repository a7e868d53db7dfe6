"""Convert tool definitions and tool calls of OpenAI and ShareGPT rows to one shape."""

from collections.abc import Mapping
from typing import Any

import orjson

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.text.printable import printable
from finetune_trainer.data.formats.columns import TOOL_COLUMNS, find_column
from finetune_trainer.data.formats.fields import Repairs, read_list
from finetune_trainer.data.readers.json_row import load_exactly, name_type
from finetune_trainer.data.rows import BadRow, Function, ToolCall
from finetune_trainer.errors import name_some

ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
"""Keys of a call's arguments: of OpenAI, of Llama's texts, of LangChain and of Anthropic."""
_CALL_KEYS = frozenset(
    ("name", "function", "type", "id", "call_id", "tool_call_id", "index", "status", "description", "caller")
)
_NOTHING: tuple[object, ...] = (None, "", {}, [])
_NOT_OF_ANTHROPIC_FUNCTIONS = frozenset({"type", "cache_control", "parameters"})


def read_tools(row: Mapping[str, Any], repairs: Repairs) -> list[dict[str, Any]] | None:
    """Return the row's tool definitions, also those of Gemini and Bedrock; raises BadRow with BAD_TOOLS."""
    name = find_column(row, TOOL_COLUMNS)
    value = row[name] if name else None
    if name == "toolConfig" and isinstance(value, dict):
        value = value.get("tools")
    if name is None or value is None or value in ("", []):
        if name is not None:
            repairs.add(RepairCode.NONE_STRIPPED)
        return None
    listed = read_list(value, name, RejectCode.BAD_TOOLS)
    return [_read_tool(tool) for one in listed for tool in _declarations_of(one)] or None


def _declarations_of(tool: object) -> list[Any]:
    """Return the functions of one of Gemini's tools, or the tool itself."""
    for key in ("functionDeclarations", "function_declarations"):
        if isinstance(tool, dict) and isinstance(tool.get(key), list):
            return list(tool[key])
    return [tool]


def read_tool_calls(value: object, repairs: Repairs) -> list[ToolCall]:
    """Return an assistant turn's `tool_calls`; raises BadRow with BAD_TOOL_CALL."""
    if value is None or value == []:
        repairs.add(RepairCode.NONE_STRIPPED)
        return []
    if isinstance(value, list):
        return [read_tool_call(call) for call in value]
    raise BadRow(RejectCode.BAD_TOOL_CALL, f"tool_calls is {name_type(value)} instead of an array")


def read_tool_call(call: object) -> ToolCall:
    """Return one call, given as OpenAI's object or as a bare `{name, arguments}`; raises BadRow with BAD_TOOL_CALL."""
    if not isinstance(call, dict):
        raise BadRow(RejectCode.BAD_TOOL_CALL, f"a tool call is {name_type(call)} instead of an object")
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise BadRow(RejectCode.BAD_TOOL_CALL, "a tool call has no function name")
    arguments = _read_arguments(_find_arguments(call if function is call else function | call | function, name), name)
    result = ToolCall(type="function", function=Function(name=name, arguments=arguments))
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    return result


def parse_tool_call_text(text: str) -> list[ToolCall]:
    """Return the calls in the text of a ShareGPT `function_call` turn."""
    try:
        value = load_exactly(text)
    except orjson.JSONDecodeError:
        raise BadRow(RejectCode.BAD_TOOL_CALL, "the text of a function_call turn is not JSON") from None
    return [read_tool_call(call) for call in (value if isinstance(value, list) else [value])]


def _find_arguments(call: Mapping[str, Any], name: str) -> object:
    """Return the arguments of a call; other keys in their place are refused, because the call would lose them."""
    values = [call[key] for key in ARGUMENT_KEYS if call.get(key) is not None]
    if values:
        return next((value for value in values if value not in _NOTHING), values[0])
    unknown = [key for key, value in call.items() if key not in _CALL_KEYS and value not in _NOTHING]
    if unknown:
        named = name_some([printable(str(key)[:40]) for key in unknown])
        detail = f"the call of {name[:40]!r} has no arguments ({', '.join(ARGUMENT_KEYS)}), but {named}"
        raise BadRow(RejectCode.BAD_TOOL_CALL, detail)
    return None


def _read_arguments(value: object, name: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = load_exactly(value)
        except orjson.JSONDecodeError:
            raise BadRow(RejectCode.BAD_TOOL_CALL, f"the arguments of {name[:40]!r} are not JSON") from None
    if not isinstance(value, dict):
        raise BadRow(RejectCode.BAD_TOOL_CALL, f"the arguments of {name[:40]!r} are {name_type(value)}, not an object")
    return value


def _read_tool(tool: object) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise BadRow(RejectCode.BAD_TOOLS, f"a tool is {name_type(tool)} instead of an object")
    function = tool["function"] if "function" in tool else _read_bare_function(tool)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(RejectCode.BAD_TOOLS, "a tool has no function name")
    if not isinstance(function.get("parameters", {}), dict | None):
        raise BadRow(RejectCode.BAD_TOOLS, f"the parameters of tool {function['name'][:40]!r} are not an object")
    return tool if "function" in tool else {"type": "function", "function": function}


def _read_bare_function(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the function of a tool without `type: function`.

    Anthropic names its parameters `input_schema`; Bedrock has `inputSchema` with `json`, in `toolSpec`.
    """
    if isinstance(tool.get("toolSpec"), dict):
        tool = dict(tool["toolSpec"])
        schema = tool.pop("inputSchema", None)
        return tool | {"parameters": schema["json"]} if isinstance(schema, dict) and "json" in schema else tool
    if tool.get("input_schema") is None or tool.get("parameters") is not None:
        return {key: value for key, value in tool.items() if key != "type"}
    return {
        "parameters" if key == "input_schema" else key: value
        for key, value in tool.items()
        if key not in _NOT_OF_ANTHROPIC_FUNCTIONS
    }
