"""Writes one canonical turn as OpenAI's and as ShareGPT's files have it.

Where a format has no word of its own for a property, the turn keeps OpenAI's key for it: `weight`, `tool_call_id`,
`reasoning_content`, `name`. Readers that do not know a key pass over it; the front door reads them all.
"""

from typing import Any

import orjson

from finetune_trainer.data.rows import Message, ToolCall

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_KEPT = ("name", "tool_call_id", "reasoning_content")


def openai_turn(message: Message) -> dict[str, Any]:
    """Return the turn with arguments of calls as text, and weight 0 where it is not to be trained."""
    turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    if "tool_calls" in message:
        turn["tool_calls"] = [_openai_call(call) for call in message["tool_calls"]]
    return turn | _properties(message)


def sharegpt_turn(message: Message) -> dict[str, Any]:
    """Return the turn; a turn that only calls tools becomes `function_call`, with the calls as text."""
    if "tool_calls" in message and not message["content"] and not message.keys() & {"reasoning_content", "name"}:
        return {"from": "function_call", "value": _dump_calls(message["tool_calls"])} | _properties(message)
    turn: dict[str, Any] = {"from": SPEAKERS[message["role"]], "value": message["content"]}
    if "tool_calls" in message:
        turn["tool_calls"] = [_openai_call(call) for call in message["tool_calls"]]
    return turn | _properties(message)


def sharegpt_tools(tools: list[dict[str, Any]]) -> str:
    """Return the tools as the text that ShareGPT's `tools` column holds."""
    return orjson.dumps(tools).decode()


def _properties(message: Message) -> dict[str, Any]:
    kept: dict[str, Any] = {key: value for key, value in message.items() if key in _KEPT}
    return kept | {"weight": 0} if message.get("train") is False else kept


def _openai_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": orjson.dumps(call["function"]["arguments"]).decode()}
    identity = {"id": call["id"]} if "id" in call else {}
    return {**identity, "type": "function", "function": function}


def _dump_calls(calls: list[ToolCall]) -> str:
    written = [{**call["function"], **({"id": call["id"]} if "id" in call else {})} for call in calls]
    return orjson.dumps(written[0] if len(written) == 1 else written).decode()
