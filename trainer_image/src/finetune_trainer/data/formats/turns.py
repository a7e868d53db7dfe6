"""Convert the turns of a conversation, in OpenAI's or ShareGPT's form, to canonical messages."""

import re
from collections.abc import Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.columns import CONTENT_KEYS, ROLE_KEYS, name_columns
from finetune_trainer.data.formats.fields import Repairs, read_optional_text, read_text
from finetune_trainer.data.formats.tools import parse_tool_call_text, read_tool_call, read_tool_calls
from finetune_trainer.data.invisible import BLANK
from finetune_trainer.data.readers.json_row import name_type
from finetune_trainer.data.rows import BadRow, Message, Role

_WORDS: Mapping[Role, str] = {
    "system": "system developer",
    "user": "user human prompter question",
    "assistant": "assistant gpt bot model chatgpt ai answer",
    "tool": "tool observation observations function function_response tool_response ipython",
}
ROLES: Mapping[str, Role] = {word: role for role, words in _WORDS.items() for word in words.split()}
_KNOWN_ROLES = f"use {', '.join(_WORDS)} or another name of one of them"
CALL_ROLES = frozenset({"function_call", "tool_call"})
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TRAINED_KEYS = ("train", "weight", "training", "trainable", "loss", "loss_mask", "loss_scale")
"""Marks that exclude an answer, or a part of it, with 0 or false."""
MASKED_KEYS = ("masked",)
"""Marks that exclude it with 1 or true."""
_MARKS = frozenset((*TRAINED_KEYS, *MASKED_KEYS))
_OTHER_KEYS = "name tool_calls function_call tool_call_id refusal annotations audio untrained"
KEYS = frozenset((*ROLE_KEYS, *CONTENT_KEYS, *REASONING_KEYS, *_MARKS, *_OTHER_KEYS.split()))
"""The keys of a turn in the files of OpenAI, ShareGPT and this trainer."""


def read_turn(turn: object, number: int, repairs: Repairs) -> Message:
    """Return one turn as a canonical message; raises BadRow. Messages number turns from 1."""
    if not isinstance(turn, dict):
        raise BadRow(RejectCode.WRONG_TYPE, f"turn {number} is {name_type(turn)} instead of an object")
    word = _read_role(turn, number)
    if word in CALL_ROLES:
        text = read_text(_content_of(turn, number), f"turn {number}", repairs)
        message = Message(role="assistant", content="", tool_calls=parse_tool_call_text(text))
    elif word in ROLES:
        message = _read_message(turn, ROLES[word], number, repairs)
    else:
        raise BadRow(RejectCode.UNKNOWN_ROLE, f"turn {number} has the unknown role {word[:40]!r}: {_KNOWN_ROLES}")
    if message["role"] == "assistant":
        _read_marks(turn, message, number)
        if "reasoning_content" in message:
            keep_reasoning_once(message, f"turn {number}")
    return message


def read_plain_turns(turns: list[Any]) -> list[Message] | None:
    """Return turns that have a role and a text each, as those of most rows; None if one of them has anything else."""
    first = turns[0] if turns else None
    role_key, text_key = ("role", "content") if isinstance(first, dict) and "role" in first else ("from", "value")
    messages: list[Message] = []
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return None
        role, text = turn.get(role_key), turn.get(text_key)
        if type(role) is not str or type(text) is not str or role not in ROLES:
            return None
        messages.append({"role": ROLES[role], "content": text})
    return messages


def is_turn(value: object) -> bool:
    """Return whether an object of a text is a turn: it has a known role and a text, and only keys of turns."""
    if not isinstance(value, dict) or not KEYS.issuperset(value) or not any(key in value for key in CONTENT_KEYS):
        return False
    role = next((value[key] for key in ROLE_KEYS if key in value), None)
    return isinstance(role, str) and ((word := _normalise(role)) in ROLES or word in CALL_ROLES)


def _normalise(role: str) -> str:
    return role.strip().lower().replace("-", "_")


def _read_role(turn: Mapping[str, Any], number: int) -> str:
    key = next((key for key in ROLE_KEYS if key in turn), None)
    if key is None:
        detail = f"turn {number} has no role ({', '.join(ROLE_KEYS)}), but {name_columns(turn)}"
        raise BadRow(RejectCode.MISSING_COLUMN, detail)
    word = turn[key]
    if word is None:
        raise BadRow(RejectCode.NULL_FIELD, f"turn {number} has a null role")
    if not isinstance(word, str):
        raise BadRow(RejectCode.WRONG_TYPE, f"turn {number} has a role that is {name_type(word)}")
    return _normalise(word)


def _content_of(turn: Mapping[str, Any], number: int) -> object:
    for key in CONTENT_KEYS:
        if key in turn:
            return list_parts(turn[key]) if key == "parts" else turn[key]
    raise BadRow(RejectCode.MISSING_COLUMN, f"turn {number} has no text ({', '.join(CONTENT_KEYS)})")


def list_parts(parts: object) -> object:
    """Return Gemini's parts as an array, also a single one."""
    return [parts] if isinstance(parts, dict) else parts


def _read_message(turn: dict[str, Any], role: Role, number: int, repairs: Repairs) -> Message:
    message = Message(role=role, content="")
    if role == "assistant":
        _read_calls_and_reasoning(turn, message, repairs)
    _read_names(turn, role, message, repairs)
    has_text = "tool_calls" not in message or any(key in turn for key in CONTENT_KEYS)
    content = _content_of(turn, number) if has_text else None
    if content is None and "tool_calls" not in message:
        content = turn.get("refusal")
    if content is not None or "tool_calls" not in message:
        message["content"] = read_text(content, f"turn {number}", repairs)
    return message


def _read_calls_and_reasoning(turn: dict[str, Any], message: Message, repairs: Repairs) -> None:
    if "tool_calls" in turn and (calls := read_tool_calls(turn["tool_calls"], repairs)):
        message["tool_calls"] = calls
    elif turn.get("function_call") is not None:
        message["tool_calls"] = [read_tool_call(turn["function_call"])]
    elif "function_call" in turn:
        repairs.add(RepairCode.NONE_STRIPPED)
    for key in REASONING_KEYS:
        if reasoning := read_optional_text(turn, key, repairs):
            message["reasoning_content"] = reasoning
            return


def keep_reasoning_once(message: Message, where: str) -> None:
    """Remove reasoning at the start of the text that repeats the reasoning apart from it; templates write both."""
    repeated = _THOUGHT.match(message["content"])
    if repeated is None:
        return
    if repeated[1].strip() not in ("", message["reasoning_content"].strip()):
        detail = f"{where} has reasoning_content and another reasoning in <think> at the start of its text"
        raise BadRow(RejectCode.WRONG_TYPE, f"{detail}: keep one of them")
    removed = repeated.end()
    message["content"] = message["content"][removed:]
    if "untrained" in message:
        ranges = message.pop("untrained")
        _exclude(message, [[max(start - removed, 0), end - removed] for start, end in ranges if end > removed])


def _read_names(turn: dict[str, Any], role: Role, message: Message, repairs: Repairs) -> None:
    if name := read_optional_text(turn, "name", repairs):
        message["name"] = name
    if role == "tool" and (call := read_optional_text(turn, "tool_call_id", repairs)):
        message["tool_call_id"] = call


def _read_marks(turn: Mapping[str, Any], message: Message, number: int) -> None:
    """Mark an answer, or the parts of it, that are not to be trained."""
    if _is_untrained(turn, f"turn {number}"):
        message["train"] = False
        return
    text = message["content"]
    _exclude(message, _read_ranges(turn, text, number) or _find_untrained_parts(turn, number))


def _exclude(message: Message, ranges: list[list[int]]) -> None:
    if ranges and not _without(message["content"], ranges).strip(BLANK):
        message["train"] = False
    elif ranges:
        message["untrained"] = ranges


def _read_ranges(turn: Mapping[str, Any], text: str, number: int) -> list[list[int]]:
    """Return the ranges of a canonical row that is read again."""
    value = turn.get("untrained") or []
    try:
        flat = [0, *(at for start, end in value for at in (start, end)), len(text)]
    except (TypeError, ValueError):
        flat = [1, 0]
    if not all(isinstance(at, int) for at in flat) or flat != sorted(flat):
        shown = str(value)[:40]
        detail = f"turn {number} has untrained {shown}; it takes [[start, end], …] within the text, in order"
        raise BadRow(RejectCode.WRONG_TYPE, detail)
    return [list(one) for one in value]


def _find_untrained_parts(turn: Mapping[str, Any], number: int) -> list[list[int]]:
    """Return the ranges of the joined text whose parts are marked; its parts were read, and so are texts."""
    content = next((turn[key] for key in CONTENT_KEYS if key in turn), None)
    ranges: list[list[int]] = []
    at = 0
    for place, part in enumerate(content if isinstance(content, list) else [], 1):
        text = read_text([part], f"turn {number}", set())
        if isinstance(part, dict) and _is_untrained(part, f"part {place} of turn {number}"):
            if ranges and ranges[-1][1] == at:
                ranges[-1][1] += len(text)
            else:
                ranges.append([at, at + len(text)])
        at += len(text)
    return ranges


def _without(text: str, ranges: list[list[int]]) -> str:
    starts, ends = [0, *(end for _, end in ranges)], [*(start for start, _ in ranges), len(text)]
    return "".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _is_untrained(marked: Mapping[str, Any], where: str) -> bool:
    if _MARKS.isdisjoint(marked):
        return False
    found: dict[str, bool] = {}
    for key in (*TRAINED_KEYS, *MASKED_KEYS):
        value = marked.get(key)
        if value is not None:
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                detail = f"{where} has {key} {str(value)[:20]!r}; only 0 and 1 are valid: write one, or remove {key}"
                raise BadRow(RejectCode.WRONG_TYPE, detail)
            found[key] = bool(value) is (key in MASKED_KEYS)
    first_of_each = {excluded: key for key, excluded in reversed(found.items())}
    if len(first_of_each) == 2:
        named = " and ".join(f"{key} {marked[key]}" for key in reversed(first_of_each.values()))
        raise BadRow(RejectCode.WRONG_TYPE, f"{where} has {named}, which contradict each other")
    return True in first_of_each
