"""Rename the user's columns to those of the formats, and advise on rows that lack one."""

from collections.abc import Callable, Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.advice import explain_several_answers, find_class, suggest_columns
from finetune_trainer.data.formats.columns import (
    ALIASES,
    COLUMNS_OF_TURNS,
    CONVERSATION_COLUMNS,
    MAX_COLUMNS_NAMED,
    METADATA,
    TEXT_COLUMNS,
    TURN_ALIASES,
    TURN_KEYS,
    Columns,
    find_filled,
    is_empty,
    is_metadata,
    name_columns,
    shorten_name,
)
from finetune_trainer.data.formats.fields import parse_nested
from finetune_trainer.data.readers.csv import explain_separator
from finetune_trainer.data.rows import BadRow

Advise = Callable[[Mapping[str, str]], tuple[str, str]]
"""Returns what the user sets to name columns, and an example for these."""


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
        return tuple([name for name in unread if not (is_empty(row[name]) or is_metadata(name))]) if unread else ()

    def explain(self, bad: BadRow, row: Columns, wanted: tuple[str, ...]) -> BadRow:
        """Return the error of a row that lacks a column, with the columns that it has and what to set."""
        seen = f"columns found: {name_columns(row)}"
        field, _ = self._advise({})
        missing = [f"{known} as {own!r}" for known, own in self._of_rows.items() if known not in row]
        if missing:
            detail = f"{field} names {', '.join(missing)}, which the row does not have; {seen}"
            return BadRow(RejectCode.MISSING_COLUMN, detail)
        return BadRow(bad.code, f"{bad.detail}; {seen}{_explain_file(row) or self._advise_names(row, wanted)}")

    def explain_text(self, bad: BadRow, row: Columns) -> BadRow:
        """Return the error of a text where answers are trained: if another column has a class, it may be the answer."""
        text, answer = find_filled(row, TEXT_COLUMNS), find_class(row)
        if text is None or answer is None:
            return bad
        own = {"prompt": self.columns.get(text, text), "answer": self.columns.get(answer, answer)}
        what, _, other = bad.detail.partition(": ")
        advice = self._name_columns(own, "name both columns in")
        return BadRow(bad.code, f"{what}: {advice}; or {other}, which does not train {own['answer']}")

    def _advise_names(self, row: Columns, wanted: tuple[str, ...]) -> str:
        if "answer" in wanted and (several := explain_several_answers(row)):
            return several
        columns = suggest_columns(row, wanted)
        if not columns:
            return ""
        return "; " + self._name_columns(columns, "name yours in")

    def _name_columns(self, columns: Mapping[str, str], verb: str) -> str:
        field, example = self._advise({known: shorten_name(own) for known, own in columns.items()})
        return f"{verb} {field}, for example {example}"


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
