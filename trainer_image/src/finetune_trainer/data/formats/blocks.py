"""Expand turns that others write in one piece: Anthropic's content blocks, and question and answer in one object."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.columns import ROLE_KEYS
from finetune_trainer.data.formats.fields import Repairs, dump_json
from finetune_trainer.data.formats.turns import ROLES
from finetune_trainer.data.rows import BadRow, Role

_BLOCKS = frozenset({"tool_use", "tool_result", "thinking", "redacted_thinking"})
_ORDER: Mapping[Role, int] = {"system": 0, "user": 1, "assistant": 2, "tool": 2}
_PAIR: Mapping[str, Role] = {"input": "user", "output": "assistant"}
_REQUIRED = ("user", "assistant")


def expand_turns(turns: list[Any], repairs: Repairs) -> Iterable[tuple[int, Any]]:
    """Return one turn for each speaker and each tool's result, with the number that it has in `turns`, from 1."""
    for turn in turns:
        # A fast path for a role and a text, which most turns are.
        if isinstance(turn, dict) and ("role" in turn or "from" in turn) and isinstance(turn.get("content", ""), str):
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
    content = turn.get("content")
    return isinstance(content, list) and any(isinstance(one, dict) and one.get("type") in _BLOCKS for one in content)


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
    for block in turn["content"]:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            has_result = True
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": _result_text(block)}
        elif kind == "thinking":
            reasoning.append(str(block.get("thinking") or ""))
        elif kind != "redacted_thinking":
            texts.append(block)
    rest = {key: value for key, value in turn.items() if key != "content"}
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
    content = block.get("content", "")
    return dump_json(content, "a tool's result") if isinstance(content, dict) else content
