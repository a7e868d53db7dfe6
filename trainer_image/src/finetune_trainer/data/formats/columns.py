"""The column names of the formats, and the mapping from the user's names to them."""

from collections.abc import Iterable, Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode
from finetune_api.text.printable import printable
from finetune_trainer.data.rows import BadRow
from finetune_trainer.errors import name_some

Columns = Mapping[str, Any]

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "chat", "turns")
INSTRUCTION_COLUMNS = ("instruction", "query", "question", "problem", "prompt")
INPUT_COLUMNS = ("input", "context")
OUTPUT_COLUMNS = ("output", "response", "answer", "completion", "target")
SYSTEM_COLUMNS = ("system", "system_prompt")
CHOSEN_COLUMNS = ("chosen", "chosen_response", "chosen_messages", "preferred_output")
REJECTED_COLUMNS = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
LABEL_COLUMNS = ("label", "kto_tag")
TEXT_COLUMNS = ("text",)
TOOL_COLUMNS = ("tools", "functions")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")

ALIASES = (
    CONVERSATION_COLUMNS,
    INSTRUCTION_COLUMNS,
    INPUT_COLUMNS,
    OUTPUT_COLUMNS,
    SYSTEM_COLUMNS,
    CHOSEN_COLUMNS,
    REJECTED_COLUMNS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    TOOL_COLUMNS,
    ("history",),
)
KNOWN_COLUMNS = frozenset(name for names in ALIASES for name in names)
MAX_COLUMNS_NAMED = 12


def find_column(row: Columns, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns with a value; a null column only if no other has a value."""
    found = None
    for name in names:
        if name in row:
            if row[name] is not None:
                return name
            found = found or name
    return found


def has_value(row: Columns, names: tuple[str, ...]) -> bool:
    """Return whether one of these columns is present and not null."""
    for name in names:  # noqa: SIM110 - called for every row, and `any` takes twice as long
        if row.get(name) is not None:
            return True
    return False


def missing_column(names: tuple[str, ...]) -> BadRow:
    """Return the error for a row that has none of these columns."""
    return BadRow(RejectCode.MISSING_COLUMN, f"the row has none of these columns: {', '.join(names)}")


def name_columns(columns: Iterable[object]) -> str:
    """Return column names for a message: at most a dozen, long names truncated."""
    names = [printable(str(column)[:40]) for column in columns]
    return name_some(names, MAX_COLUMNS_NAMED) if names else "none"


class ColumnMap:
    """Renames the user's columns to known names ({known: user's}), and records which never occur."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.missing = set(columns.values())
        """Mapped columns that no row has had so far."""
        self.seen: dict[str, None] = {}
        """The columns of the rows, in order, recorded while a mapped column is missing."""

    def rename(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with known names; a mapped column takes precedence over its aliases."""
        if not self.columns:
            return row
        if self.missing:
            self.missing.difference_update(row)
            if len(self.seen) <= MAX_COLUMNS_NAMED:
                self.seen.update(dict.fromkeys(row))
        taken = set(self.columns.values())
        for known, own in self.columns.items():
            if own in row:
                taken.update(next((names for names in ALIASES if known in names), ()))
        renamed = {name: value for name, value in row.items() if name not in taken}
        renamed.update({known: row[own] for known, own in self.columns.items() if own in row})
        return renamed
