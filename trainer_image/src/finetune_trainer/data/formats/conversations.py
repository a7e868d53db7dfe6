"""Read turns from a conversation column, from a list in place of a text, or from a transcript in a text."""

import re
from typing import Any

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.blocks import expand_turns
from finetune_trainer.data.formats.columns import (
    CONVERSATION_COLUMNS,
    ROLE_KEYS,
    SYSTEM_COLUMNS,
    TOOL_COLUMNS,
    Columns,
    UnknownColumns,
    find_column,
    is_metadata,
    missing_column,
)
from finetune_trainer.data.formats.fields import (
    NumpyText,
    Repairs,
    parse_nested,
    read_cell,
    read_list,
    read_optional_text,
)
from finetune_trainer.data.formats.tools import read_tools
from finetune_trainer.data.formats.turns import KEYS, ROLES, is_turn, list_parts, read_plain_turns, read_turn
from finetune_trainer.data.rows import BadRow, Message, Role, Tools

# Anthropic's HH files hold whole conversations as "\n\nHuman: …\n\nAssistant: …". A run of newlines is tried once.
_SPEAKER = re.compile(r"(?:^\s*|(?<!\n)\n\n+[^\S\n]*)(Human|Assistant):")
_SYSTEMS = frozenset(SYSTEM_COLUMNS)
_TOOLS = frozenset(TOOL_COLUMNS)
_TURNS = re.compile(r"\s*\[\s*\{")
_TURN = re.compile(r"\s*\[\s*\{'(?:role|content|from|value)'")
_ALTERNATING: tuple[Role, Role] = ("user", "assistant")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def read_conversation(row: Columns, repairs: Repairs) -> list[Message]:
    """Return the row's turns, after its system text; raises BadRow."""
    column = find_column(row, CONVERSATION_COLUMNS)
    if column is None:
        raise missing_column(CONVERSATION_COLUMNS)
    value = row[column]
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{", "array(")):
        raise UnknownColumns(RejectCode.WRONG_TYPE, f"{column} is a text instead of an array of turns")
    if isinstance(value, dict) and _transpose(value) is value:
        raise UnknownColumns(RejectCode.WRONG_TYPE, f"{column} is an object instead of an array")
    return read_system(row, repairs) + read_turns(value, column, repairs)


def read_turns(value: object, where: str, repairs: Repairs) -> list[Message]:
    """Return a list of turns, which may be a string, as messages."""
    listed = read_list(_transpose(value), where, RejectCode.WRONG_TYPE)
    if (plain := read_plain_turns(listed)) is not None:
        return plain
    if all(isinstance(turn, str) for turn in listed):
        return [Message(role=_ALTERNATING[number % 2], content=text) for number, text in enumerate(listed)]
    return [read_turn(turn, number, repairs) for number, turn in expand_turns(listed, repairs)]


def _transpose(value: object) -> object:
    """Return the turns of an object of arrays, `{"from": ["human", "gpt"], "value": ["q", "a"]}`, as tables have it."""
    if not isinstance(value, dict) or not has_role(value) or not all(isinstance(one, list) for one in value.values()):
        return value
    if len({len(one) for one in value.values()}) != 1:
        return value
    return [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]


def find_number(row: Columns, number: int) -> int:
    """Return the number that a turn of `read_conversation` has in the row's column; one after them counts on."""
    column = find_column(row, CONVERSATION_COLUMNS)
    if column is None or row[column] is None:
        return number
    at = number - len(read_system(row, set()))
    listed = read_list(_transpose(row[column]), column, RejectCode.WRONG_TYPE)
    numbers = [own for own, _ in expand_turns(listed, set())]
    return numbers[at - 1] if at <= len(numbers) else max(numbers, default=0) + at - len(numbers)


def read_system(row: Columns, repairs: Repairs) -> list[Message]:
    """Return the system text of a system column."""
    if _SYSTEMS.isdisjoint(row):
        return []
    for name in SYSTEM_COLUMNS:
        if name not in row:
            continue
        value = row[name]
        written = {name: list_parts(value["parts"])} if isinstance(value, dict) and "parts" in value else row
        if text := read_optional_text(written, name, repairs):
            return [Message(role="system", content=text)]
    return []


def read_row_tools(row: Columns, repairs: Repairs) -> Tools:
    """Return the row's tools, if it has a column for them."""
    return read_tools(row, repairs) if not _TOOLS.isdisjoint(row) else None


def find_unread_keys(row: Columns) -> tuple[str, ...]:
    """Return the keys of turns that nothing reads, `messages[].thought`, with texts of several words or lists."""
    column = find_column(row, CONVERSATION_COLUMNS)
    turns = row.get(column) if column else None
    found: dict[str, None] = {}
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and len(turn) > 2:
            found.update((f"{column}[].{key}", None) for key, value in turn.items() if _is_unread(key, value))
    return tuple(found)


def _is_unread(key: str, value: object) -> bool:
    if key in KEYS or key in ROLES or is_metadata(key):
        return False
    return (isinstance(value, str) and " " in value.strip()) or (isinstance(value, list) and bool(value))


def read_messages(value: object, where: str, role: Role, repairs: Repairs) -> list[Message]:
    """Return a cell as messages: turns, a single turn, a transcript, or a plain text with this role."""
    if isinstance(value, str):
        if (nested := parse_turns(value, where)) is not None:
            return read_turns(nested, where, repairs)
        if value.lstrip().startswith("Human:") and "\n\nAssistant:" in value:
            return _read_transcript(value, role)
    elif isinstance(value, dict):
        if not has_role(value):
            detail = f"{where} is an object and not a turn with a role: write it as a text with JSON"
            raise BadRow(RejectCode.WRONG_TYPE, detail)
        return [read_turn(value, 1, repairs)]
    elif holds_turns(value):
        return read_turns(value, where, repairs)
    return [{"role": role, "content": read_cell(value, where, repairs)}]


def ends_with_speaker(value: object) -> bool:
    """Return whether a prompt is a transcript that ends with the name of the next speaker."""
    if not isinstance(value, str) or not value[-40:].rstrip().endswith("\n\nAssistant:"):
        return False
    return value.lstrip().startswith("Human:")


def parse_turns(text: str, where: str) -> list[Any] | None:
    """Return the turns of a text; None if it is anything else; raises NumpyText."""
    if not _TURNS.match(text):
        return None
    try:
        value = parse_nested(text, where, RejectCode.WRONG_TYPE)
    except NumpyText:
        if _TURN.match(text):
            raise
        return None
    except BadRow:
        return None
    return value if value and isinstance(value, list) and all(map(is_turn, value)) else None


def holds_turns(value: object) -> bool:
    """Return whether a value is an array of objects with a role each."""
    return isinstance(value, list) and all(isinstance(turn, dict) and has_role(turn) for turn in value)


def has_role(turn: Columns) -> bool:
    """Return whether an object has the key of a role."""
    return any(key in turn for key in ROLE_KEYS)


def _read_transcript(transcript: str, role: Role) -> list[Message]:
    _, *pieces = _SPEAKER.split(transcript)
    messages = [
        Message(role=_SPEAKERS[speaker], content=text.strip())
        for speaker, text in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    # A prompt in such a file ends with the name of the next speaker.
    names_the_next = role == "user" and messages[-1]["role"] == "assistant" and not messages[-1]["content"]
    return messages[:-1] if names_the_next else messages
