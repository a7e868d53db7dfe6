"""The column names of the formats, and the mapping from the user's names to them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode
from finetune_api.text.printable import printable
from finetune_trainer.data.formats.fields import parse_nested
from finetune_trainer.data.readers.csv import explain_separator
from finetune_trainer.data.rows import BadRow
from finetune_trainer.errors import name_some

Columns = Mapping[str, Any]
Advise = Callable[[Mapping[str, str]], tuple[str, str]]
"""Returns what the user sets to name columns, and an example for these."""

CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "chat", "turns")
INSTRUCTION_COLUMNS = ("instruction", "query", "question", "problem", "prompt")
INPUT_COLUMNS = ("input", "context")
OUTPUT_COLUMNS = ("output", "response", "answer", "completion", "target", "generation")
SYSTEM_COLUMNS = ("system", "system_prompt")
CHOSEN_COLUMNS = ("chosen", "chosen_response", "chosen_messages", "preferred_output")
REJECTED_COLUMNS = ("rejected", "rejected_response", "rejected_messages", "non_preferred_output")
LABEL_COLUMNS = ("label", "kto_tag")
RANKED_COLUMNS = ("responses", "answers", "completions", "generations")
RANK_COLUMNS = ("ranks", "ranking")
SCORE_COLUMNS = ("scores", "ratings")
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
    RANKED_COLUMNS,
    RANK_COLUMNS,
    SCORE_COLUMNS,
    TEXT_COLUMNS,
    TOOL_COLUMNS,
    ("history",),
)
COLUMNS_OF_TURNS = (*CONVERSATION_COLUMNS, "prompt", *OUTPUT_COLUMNS, *CHOSEN_COLUMNS, *REJECTED_COLUMNS)
TURN_ALIASES = (ROLE_KEYS, CONTENT_KEYS)
TURN_KEYS = frozenset({"role", "content"})
"""Mapped names that are not of columns, but of what each turn of a conversation has."""
KNOWN_COLUMNS = frozenset(name for names in ALIASES for name in names)
MAX_COLUMNS_NAMED = 12
MAX_NAME_CHARACTERS = 40
METADATA = frozenset(
    (
        *("id", "ids", "idx", "index", "uid", "uuid", "guid", "hash", "sha256"),
        *("source", "sources", "dataset", "subset", "split", "url", "link", "license", "licence"),
        *("created", "created_at", "updated", "updated_at", "date", "time", "timestamp", "version"),
        *("language", "lang", "model", "metadata", "meta"),
    )
)
"""Columns that describe a row; so do those whose names begin with `_` or end in `_id`."""
YOURS = "YOURS"


class ReadColumns(dict[str, Any]):
    """The columns of a row; `read` has those whose values were read with `row[name]`.

    `row.get` and `in` only find out which columns a row has.
    """

    __slots__ = ("read",)

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


def is_metadata(name: str) -> bool:
    """Return whether a column describes the row by its name, so that it hardly belongs to the training."""
    lowered = name.lower()
    return lowered in METADATA or lowered.startswith("_") or lowered.endswith("_id")


def find_column(row: Columns, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns with a value; a null column only if no other has a value."""
    found = None
    for name in names:
        if row.get(name) is not None:
            return name
        if found is None and name in row:
            found = name
    return found


def has_value(row: Columns, names: tuple[str, ...]) -> bool:
    """Return whether one of these columns is present and not null."""
    for name in names:  # noqa: SIM110 - called for every row, and `any` takes twice as long
        if row.get(name) is not None:
            return True
    return False


def find_filled(row: Columns, names: tuple[str, ...]) -> str | None:
    """Return the first of these columns that is not blank."""
    for name in names:
        if not is_blank(row.get(name)):
            return name
    return None


def is_blank(value: object) -> bool:
    """Return whether a cell is null or an empty text, as the cells of a table that a row does not use."""
    return value is None or (isinstance(value, str) and not value.strip())


def _is_empty(value: object) -> bool:
    return is_blank(value) or value in ([], {})


class UnknownColumns(BadRow):
    """Raised for a row that lacks what is `wanted`, perhaps because the column of it has a name of the user's own."""

    def __init__(self, code: RejectCode, detail: str, wanted: tuple[str, ...] = ()) -> None:
        super().__init__(code, detail)
        self.wanted = wanted


def missing_column(names: tuple[str, ...]) -> BadRow:
    """Return the error for a row that has none of these columns."""
    detail = f"the row has none of these columns: {', '.join(names)}"
    return UnknownColumns(RejectCode.MISSING_COLUMN, detail, names[:1])


def name_columns(columns: Iterable[object]) -> str:
    """Return column names for a message: at most a dozen, long names truncated."""
    names = [shorten_name(column) for column in columns]
    return name_some(names, MAX_COLUMNS_NAMED) if names else "none"


def shorten_name(column: object) -> str:
    """Return the beginning of a column's name, as a message shows it."""
    return printable(str(column)[:MAX_NAME_CHARACTERS])


def advise_field(columns: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of a job's field for these columns, and its value in YAML."""
    return "dataset.columns", f"{{{', '.join(f'{known}: {own}' for known, own in columns.items())}}}"


class ColumnMap:
    """Renames the user's columns to known names ({known: user's}), and records which never occur."""

    def __init__(self, columns: Mapping[str, str], advise: Advise = advise_field) -> None:
        self.columns = columns
        self._of_rows = {known: own for known, own in columns.items() if known not in TURN_KEYS}
        self._of_turns = {known: own for known, own in columns.items() if known in TURN_KEYS}
        self._advise = advise
        self.missing = set(columns.values())
        """Mapped columns that no row has had so far."""
        self.seen: dict[str, None] = {}
        """The columns of the rows, in order, recorded while a mapped column is missing."""

    def rename(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with known names; a mapped column takes precedence over its aliases."""
        if not self.columns:
            return row
        renamed = self._rename(row, self._of_rows, ALIASES)
        if self._of_turns:
            for name in COLUMNS_OF_TURNS:
                if isinstance(value := renamed.get(name), list | dict | str):
                    renamed[name] = self._rename_turns(value, may_be_text=name not in CONVERSATION_COLUMNS)
        return renamed

    def _rename_turns(self, value: list[Any] | dict[str, Any] | str, *, may_be_text: bool) -> object:
        if isinstance(value, str):
            turns = _parse_turns(value)
            own = set(self._of_turns.values())
            if turns is None or (
                may_be_text and not all(isinstance(turn, dict) and own <= turn.keys() for turn in turns)
            ):
                return value
            value = turns
        if isinstance(value, dict):
            return self._rename(value, self._of_turns, TURN_ALIASES)
        return [self._rename(turn, self._of_turns, TURN_ALIASES) if isinstance(turn, dict) else turn for turn in value]

    def _rename(
        self, row: dict[str, Any], columns: Mapping[str, str], aliases: tuple[tuple[str, ...], ...]
    ) -> dict[str, Any]:
        if self.missing:
            self.missing.difference_update(own for own in columns.values() if own in row)
            if len(self.seen) <= MAX_COLUMNS_NAMED:
                self.seen.update(dict.fromkeys(row))
        taken = set(columns.values())
        for known, own in columns.items():
            if own in row:
                taken.update(next((names for names in aliases if known in names), ()))
        renamed = {name: value for name, value in row.items() if name not in taken}
        renamed.update({known: row[own] for known, own in columns.items() if own in row})
        return renamed

    def find_unused(self, row: Columns, read: set[str]) -> tuple[str, ...]:
        """Return the columns of the file's row that have content and are not among those that were read, by known
        names."""
        if self.columns:
            read = read - self.columns.keys() | {own for known, own in self.columns.items() if known in read}
        unread = [name for name in row if name not in read and name not in METADATA]
        return tuple([name for name in unread if not (_is_empty(row[name]) or is_metadata(name))]) if unread else ()

    def explain(self, bad: BadRow, row: Columns, wanted: tuple[str, ...]) -> BadRow:
        """Return the error of a row that lacks a column, with the columns that it has and what to set."""
        seen = f"columns found: {name_columns(row)}"
        field, _ = self._advise({})
        missing = [f"{known} as {own!r}" for known, own in self._of_rows.items() if known not in row]
        if missing:
            detail = f"{field} names {', '.join(missing)}, which the row does not have; {seen}"
            return BadRow(RejectCode.MISSING_COLUMN, detail)
        return BadRow(bad.code, f"{bad.detail}; {seen}{_explain_file(row) or self._advise_names(row, wanted)}")

    def _advise_names(self, row: Columns, wanted: tuple[str, ...]) -> str:
        own = [name for name in row if name not in KNOWN_COLUMNS]
        absent = [
            name for name in wanted if not any(name in names and not row.keys().isdisjoint(names) for names in ALIASES)
        ]
        if not own or not absent:
            return ""
        is_clear = len(own) == len(absent) == 1
        field, example = self._advise({name: name_columns(own) if is_clear else YOURS for name in absent})
        return f"; name yours in {field}, for example {example}"


def _parse_turns(text: str) -> list[Any] | None:
    if not text.lstrip().startswith("["):
        return None
    try:
        value = parse_nested(text, "turns", RejectCode.WRONG_TYPE)
    except BadRow:
        return None
    return value if isinstance(value, list) else None


def _explain_file(row: Columns) -> str:
    """Return the fix of a row that is a line without its separator, or a file whose rows are under a key."""
    name, value = next(iter(row.items()), ("", None))
    if len(row) == 1 and isinstance(value, str) and (separator := explain_separator(name)):
        return f"; {separator}"
    rows = row.get("data")
    if isinstance(rows, list) and rows and all(isinstance(one, dict) for one in rows):
        return "; the rows are under data: keep that key alone"
    return ""
