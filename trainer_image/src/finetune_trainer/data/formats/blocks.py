"""Expand turns that others write in one piece: content blocks of Anthropic, Bedrock and Gemini, and question and
answer in one object."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.columns import ROLE_KEYS
from finetune_trainer.data.formats.fields import Repairs, dump_json
from finetune_trainer.data.formats.turns import ROLES, list_parts
from finetune_trainer.data.rows import BadRow, Role

_BLOCKS = frozenset({"tool_use", "tool_result", "thinking", "redacted_thinking"})
_BLOCK_KEYS: Mapping[str, str] = {
    "toolUse": "tool_use",
    "functionCall": "tool_use",
    "function_call": "tool_use",
    "toolResult": "tool_result",
    "functionResponse": "tool_result",
    "function_response": "tool_result",
    "reasoningContent": "thinking",
}
"""Blocks of Bedrock and Gemini have no type, but one key that names it."""
_CONTENT_KEYS = ("content", "parts")
_ORDER: Mapping[Role, int] = {"system": 0, "user": 1, "assistant": 2, "tool": 2}
_PAIR: Mapping[str, Role] = {"input": "user", "output": "assistant"}
_REQUIRED = ("user", "assistant")


def expand_turns(turns: list[Any], repairs: Repairs) -> Iterable[tuple[int, Any]]:
    """Return one turn for each speaker and each tool's result, with the number that it has in `turns`, from 1."""
    for turn in turns:
        # A fast path for a role and a text, which most turns are.
        if isinstance(turn, dict) and ("role" in turn or "from" in turn) and isinstance(turn.get("content"), str):
            continue
        if _needs_expansion(turn):
            return [(number, one) for number, turn in enumerate(turns, 1) for one in _expand(turn, repairs)]
    return enumerate(turns, 1)


def _needs_expansion(turn: object) -> bool:
    if isinstance(turn, list | tuple):
        return True
    return isinstance(turn, dict) and (_is_exchange(turn) or _has_blocks(turn))


def _is_exchange(turn: dict[Any, Any]) -> bool:
    """Return whether the keys are speakers, `{"human": "q", "assistant": "a"}`, or `input` and `output`."""
    if turn.keys() == _PAIR.keys():
        return True
    return len(turn) > 1 and turn.keys() <= ROLES.keys() and not any(key in turn for key in ROLE_KEYS)


def _has_blocks(turn: dict[Any, Any]) -> bool:
    return any(_open_block(block)[0] for block in _blocks_of(turn))


def _blocks_of(turn: dict[Any, Any]) -> list[Any]:
    content = list_parts(turn["parts"]) if "parts" in turn else turn.get("content")
    return content if isinstance(content, list) else []


def _open_block(block: Any) -> tuple[str, dict[str, Any]]:
    """Return the type of a block, empty for a text, and its fields."""
    if not isinstance(block, dict):
        return "", {}
    if isinstance(kind := block.get("type"), str) and kind in _BLOCKS:
        return kind, block
    if block.get("thought") is True:
        return "thinking", {"thinking": block.get("text")}
    key = next((key for key in block if key in _BLOCK_KEYS and isinstance(block[key], dict)), None)
    return ("", {}) if key is None else (_BLOCK_KEYS[key], block[key])


def _expand(turn: Any, repairs: Repairs) -> Iterator[Any]:
    if isinstance(turn, list | tuple):
        if len(turn) != 2:
            raise BadRow(RejectCode.WRONG_TYPE, f"a turn is an array of {len(turn)} instead of [question, answer]")
        yield {"role": "user", "content": turn[0]}
        yield {"role": "assistant", "content": turn[1]}
    elif isinstance(turn, dict) and _is_exchange(turn):
        named = _PAIR if turn.keys() == _PAIR.keys() else {key: ROLES[key] for key in turn}
        optional = ["output"] if named is _PAIR else [key for key in turn if named[key] not in _REQUIRED]
        for speaker in sorted(turn, key=lambda name: _ORDER[named[name]]):  # a table may sort its fields
            if turn[speaker] is None and speaker in optional:
                repairs.add(RepairCode.NONE_STRIPPED)
            else:
                yield {"role": named[speaker], "content": turn[speaker]}
    elif isinstance(turn, dict) and _has_blocks(turn):
        yield from _expand_blocks(turn)
    else:
        yield turn


def _expand_blocks(turn: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the results of tools, then the turn itself with its texts, calls and reasoning in OpenAI's form."""
    calls, texts, reasoning, has_result = [], [], [], False
    for block in _blocks_of(turn):
        kind, fields = _open_block(block)
        if kind == "tool_use":
            function = {"name": fields.get("name"), "arguments": fields.get("input", fields.get("args"))}
            calls.append({"id": fields.get("id", fields.get("toolUseId")), "type": "function", "function": function})
        elif kind == "tool_result":
            has_result = True
            answered = fields.get("tool_use_id", fields.get("toolUseId", fields.get("id")))
            yield {"role": "tool", "tool_call_id": answered, "content": _result_text(fields)}
        elif kind == "thinking":
            reasoning.append(_reasoning_text(fields))
        elif kind != "redacted_thinking":
            texts.append(block)
    rest = {key: value for key, value in turn.items() if key not in _CONTENT_KEYS}
    if calls:
        rest["tool_calls"] = calls
    if reasoning:
        rest["reasoning_content"] = "\n".join(reasoning)
    if texts or not (has_result or calls):
        yield rest | {"content": texts}
    elif calls:
        yield rest


def _result_text(block: dict[str, Any]) -> object:
    """Return a tool's result as text or text parts; an object, as some write it, as its JSON."""
    content = block.get("content", block.get("response", ""))
    if isinstance(content, list):
        return [_dump(one["json"]) if isinstance(one, dict) and "json" in one else one for one in content]
    return _dump(content) if isinstance(content, dict) else content


def _dump(value: object) -> str:
    return dump_json(value, "a tool's result")


def _reasoning_text(block: dict[str, Any]) -> str:
    text = block.get("reasoningText")
    return str((text.get("text") if isinstance(text, dict) else block.get("thinking")) or "")
