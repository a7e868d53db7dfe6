"""The names that formats give their columns, and the user's columns brought under them."""

from collections.abc import Iterable, Mapping
from typing import Any

from finetune_trainer.data.codes import RejectCode
from finetune_trainer.data.rows import BadRow

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
    """Return the first of these columns that the row has; one that is null only where no other holds a value."""
    found = None
    for name in names:
        if name in row:
            if row[name] is not None:
                return name
            found = found or name
    return found


def has_value(row: Columns, names: tuple[str, ...]) -> bool:
    """Whether one of these columns is there and not null."""
    for name in names:  # noqa: SIM110 - asked of every row, and `any` takes twice as long
        if row.get(name) is not None:
            return True
    return False


def missing_column(names: tuple[str, ...]) -> BadRow:
    """Return the refusal of a row that has none of these columns."""
    return BadRow(RejectCode.MISSING_COLUMN, f"none of these columns is there: {', '.join(names)}")


def name_columns(columns: Iterable[object]) -> str:
    """Name columns for people: a dozen at most, long names cut."""
    names = [replace_unprintable(str(column)[:40]) for column in columns]
    more = f" and {len(names) - MAX_COLUMNS_NAMED} more" if len(names) > MAX_COLUMNS_NAMED else ""
    return f"{', '.join(names[:MAX_COLUMNS_NAMED])}{more}" if names else "none"


def replace_unprintable(name: str) -> str:
    """Return a name from a file as one that cannot steer a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


class ColumnMap:
    """Brings the user's columns under the names that formats know ({known: user's}), and sees which never come."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.missing = set(columns.values())
        """Mapped columns that no row had so far."""
        self.seen: dict[str, None] = {}
        """The columns of the rows, in order, as long as one is missing."""

    def rename(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row under known names; a mapped column wins over every other column that means the same."""
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
