"""Tells the format of one row by its columns, and gives the columns of the user the names that formats know.

A new format is a `DataFormat`, a test in `_TESTS` at its place in the order, and a converter in convert.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from finetune_trainer.data.rows import BadRow, DataFormat, RejectCode

Row = Mapping[str, Any]

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "chat", "turns")
INSTRUCTION_COLUMNS = ("instruction", "query", "question", "problem", "prompt")
INPUT_COLUMNS = ("input", "context")
OUTPUT_COLUMNS = ("output", "response", "answer", "completion", "target")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")

# Rows that compare or judge answers: trained as plain answers they would teach the bad ones as well.
_JUDGED_COLUMNS = frozenset({"chosen", "rejected", "preferred_output", "label", "kto_tag"})
_ALIASES = (INSTRUCTION_COLUMNS, INPUT_COLUMNS, OUTPUT_COLUMNS, CONVERSATION_COLUMNS)
MAX_COLUMNS_NAMED = 12


def find_column(row: Row, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns that the row has."""
    return next((name for name in names if name in row), None)


def detect_format(row: Row) -> DataFormat:
    """Name the row's format; raises BadRow with UNKNOWN_FORMAT and the columns seen."""
    if _JUDGED_COLUMNS.isdisjoint(row):
        for name, matches in _TESTS:
            if matches(row):
                return name
    columns = [str(column)[:40] for column in list(row)[:MAX_COLUMNS_NAMED]]
    raise BadRow(RejectCode.UNKNOWN_FORMAT, f"columns seen: {', '.join(columns) or 'none'}")


def rename_columns(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row with the user's columns under the names that formats know ({known: user's}).

    A mapped column wins over every other column that means the same.
    """
    if not columns:
        return row
    taken = set(columns.values())
    for known, own in columns.items():
        if own in row:
            taken.update(next((names for names in _ALIASES if known in names), ()))
    renamed = {name: value for name, value in row.items() if name not in taken}
    renamed.update({known: row[own] for known, own in columns.items() if own in row})
    return renamed


def uses_role_and_content(row: Row) -> bool:
    """Tell OpenAI's turn keys from ShareGPT's by the first turn, whatever the column is called."""
    turns = row.get(find_column(row, CONVERSATION_COLUMNS) or "")
    if isinstance(turns, str):
        start = turns[:400]
        return "role" in start and not any(f"{quote}from{quote}" in start for quote in "'\"")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "role" in turns[0] or ("content" in turns[0] and "from" not in turns[0])
    return "messages" in row


def _is_openai(row: Row) -> bool:
    return find_column(row, CONVERSATION_COLUMNS) is not None and uses_role_and_content(row)


def _is_sharegpt(row: Row) -> bool:
    return find_column(row, CONVERSATION_COLUMNS) is not None


def _is_alpaca(row: Row) -> bool:
    return find_column(row, OUTPUT_COLUMNS) is not None and (
        find_column(row, INSTRUCTION_COLUMNS) is not None or find_column(row, INPUT_COLUMNS) is not None
    )


_TESTS: tuple[tuple[DataFormat, Callable[[Row], bool]], ...] = (
    (DataFormat.OPENAI, _is_openai),
    (DataFormat.SHAREGPT, _is_sharegpt),
    (DataFormat.ALPACA, _is_alpaca),
)
