"""Converts one row of a known format to canonical messages and tools, counting what it had to repair."""

from collections.abc import Callable, Mapping
from typing import Any

from finetune_trainer.data.detect import (
    CONVERSATION_COLUMNS,
    INPUT_COLUMNS,
    INSTRUCTION_COLUMNS,
    OUTPUT_COLUMNS,
    find_column,
)
from finetune_trainer.data.fields import Repairs, read_list, read_optional_text, read_text
from finetune_trainer.data.parse import name_type
from finetune_trainer.data.rows import BadRow, DataFormat, Message, RejectCode
from finetune_trainer.data.tools import read_tools
from finetune_trainer.data.turns import read_turn

Tools = list[dict[str, Any]] | None
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")


def convert_row(row: Mapping[str, Any], data_format: DataFormat, repairs: Repairs) -> tuple[list[Message], Tools]:
    """Return the row's messages and tools; raises BadRow."""
    for name in MEDIA_COLUMNS:
        if row.get(name):
            raise BadRow(RejectCode.UNSUPPORTED_MODALITY, f"the row has the column {name!r}; only text is trained")
    return _CONVERTERS[data_format](row, repairs)


def _convert_conversation(row: Mapping[str, Any], repairs: Repairs) -> tuple[list[Message], Tools]:
    column = find_column(row, CONVERSATION_COLUMNS)
    if column is None:
        raise _missing(CONVERSATION_COLUMNS)
    turns = read_list(row[column], column, RejectCode.WRONG_TYPE)
    messages = _system(row, repairs)
    for number, turn in enumerate(turns, 1):
        messages.append(read_turn(turn, number, repairs))
    return messages, read_tools(row, repairs) if "tools" in row or "functions" in row else None


def _convert_alpaca(row: Mapping[str, Any], repairs: Repairs) -> tuple[list[Message], Tools]:
    output = find_column(row, OUTPUT_COLUMNS)
    if output is None:
        raise _missing(OUTPUT_COLUMNS)
    messages = _system(row, repairs)
    messages += _history(row, repairs)
    messages.append(Message(role="user", content=_alpaca_prompt(row, repairs)))
    messages.append(Message(role="assistant", content=read_text(row[output], output, repairs)))
    return messages, None


def _alpaca_prompt(row: Mapping[str, Any], repairs: Repairs) -> str:
    instruction = find_column(row, INSTRUCTION_COLUMNS)
    extra = find_column(row, INPUT_COLUMNS)
    if instruction is None and extra is None:
        raise _missing(INSTRUCTION_COLUMNS)
    if instruction == "instruction" and extra is None:
        # Where a general instruction stands beside the question, the question is the input.
        extra = find_column(row, INSTRUCTION_COLUMNS[1:])
    first = read_text(row[instruction], instruction, repairs) if instruction else ""
    second = read_optional_text(row, extra, repairs) if extra else ""
    return "\n".join(part for part in (first, second) if part.strip())


def _history(row: Mapping[str, Any], repairs: Repairs) -> list[Message]:
    value = row.get("history")
    if value in (None, "", []):
        return []
    messages = []
    for pair in read_list(value, "history", RejectCode.WRONG_TYPE):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(RejectCode.WRONG_TYPE, f"history holds {name_type(pair)} where [question, answer] belongs")
        messages.append(Message(role="user", content=read_text(pair[0], "history", repairs)))
        messages.append(Message(role="assistant", content=read_text(pair[1], "history", repairs)))
    return messages


def _system(row: Mapping[str, Any], repairs: Repairs) -> list[Message]:
    for name in ("system", "system_prompt"):
        if text := read_optional_text(row, name, repairs):
            return [Message(role="system", content=text)]
    return []


def _missing(names: tuple[str, ...]) -> BadRow:
    return BadRow(RejectCode.MISSING_COLUMN, f"none of these columns is there: {', '.join(names)}")


_CONVERTERS: Mapping[DataFormat, Callable[[Mapping[str, Any], Repairs], tuple[list[Message], Tools]]] = {
    DataFormat.OPENAI: _convert_conversation,
    DataFormat.SHAREGPT: _convert_conversation,
    DataFormat.ALPACA: _convert_alpaca,
}
