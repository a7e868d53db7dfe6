"""Rename the user's columns to those of the formats, and advise on rows that lack one."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.advice import (
    explain_choices,
    explain_several_answers,
    explain_turn,
    find_class,
    find_worked_answers,
    suggest_columns,
)
from finetune_trainer.data.formats.columns import (
    ALIASES,
    COLUMNS_OF_TURNS,
    CONVERSATION_COLUMNS,
    MAX_COLUMNS_NAMED,
    METADATA,
    OUTPUT_COLUMNS,
    TEXT_COLUMNS,
    TURN_ALIASES,
    TURN_KEYS,
    Columns,
    find_filled,
    find_root,
    follow_path,
    is_empty,
    is_metadata,
    name_columns,
    shorten_name,
)
from finetune_trainer.data.formats.fields import parse_nested
from finetune_trainer.data.readers.csv import explain_separator
from finetune_trainer.data.rows import BadRow

_PLAIN = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[^\W\d]\w*(?:[ ._-]\w+)*", re.IGNORECASE)
"""Names that YAML reads as the same text without quotes."""
AS_LINES = "write one row a line, in pandas with to_json(path, orient='records', lines=True)"
_KEYS_OF_ROWS = ("data", "rows", "train", "test", "validation", "examples", "instances", "records", "items")
Advise = Callable[[Mapping[str, str]], tuple[str, str]]
"""Returns what the user sets to name columns, and an example for these."""


def advise_field(columns: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of a job's field for these columns, and its value in YAML."""
    return "dataset.columns", f"{{{', '.join(f'{known}: {_quote(own)}' for known, own in columns.items())}}}"


def _quote(name: str) -> str:
    """Return a name as YAML reads it in a flow mapping."""
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


class ColumnMap:
    """Renames the user's columns to known names ({known: user's}), and records which never occur."""

    def __init__(self, columns: Mapping[str, str], advise: Advise = advise_field) -> None:
        self.columns = columns
        self._of_rows = {known: own for known, own in columns.items() if known not in TURN_KEYS}
        self._of_turns = {known: own for known, own in columns.items() if known in TURN_KEYS}
        self._paths = tuple(own for own in self._of_rows.values() if "." in own)
        self._advise = advise
        self.missing = set(columns.values())
        """Mapped columns that no row has had so far."""
        self.seen: dict[str, None] = {}
        """The columns of the rows, in order, recorded while a mapped column is missing."""

    def rename(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with known names; a mapped column takes precedence over its aliases."""
        if not self.columns:
            return row
        renamed = self._rename(self._with_paths(row) if self._paths else row, self._of_rows, ALIASES)
        if self._of_turns:
            for name in COLUMNS_OF_TURNS:
                if isinstance(value := renamed.get(name), list | dict | str):
                    renamed[name] = self._rename_turns(value, may_be_text=name not in CONVERSATION_COLUMNS)
        return renamed

    def _with_paths(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with a column for each path that it has, in place of the column that has the path."""
        found = {}
        for path in self._paths:
            try:
                found[path] = follow_path(row, path)
            except KeyError:
                continue
        roots = {find_root(path) for path in found if path not in row}
        return {name: value for name, value in row.items() if name not in roots} | found

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
            own = {own for known, own in self.columns.items() if known in read}
            read = read - self.columns.keys() | own
            row = _open_roots(row, own) if self._paths else row
        unread = [name for name in row if name not in read and name not in METADATA]
        return tuple([name for name in unread if not (is_empty(row[name]) or _is_metadata(name))]) if unread else ()

    def explain(self, bad: BadRow, row: Columns, wanted: tuple[str, ...]) -> BadRow:
        """Return the error of a row that lacks a column, with the columns that it has and what to set."""
        seen = f"columns found: {name_columns(row)}"
        field, _ = self._advise({})
        missing = [f"{known} as {own!r}" for known, own in self._of_rows.items() if known not in row]
        if missing:
            detail = f"{field} names {', '.join(missing)}, which the row does not have; {seen}"
            return BadRow(RejectCode.MISSING_COLUMN, detail)
        advice = explain_turn(row) or _explain_file(row) or self._advise_names(row, wanted)
        return BadRow(bad.code, f"{bad.detail}; {seen}{advice and '; '}{advice}")

    def refuse_part(self, row: Columns, *, trains_answer: bool) -> None:
        """Refuse a question without its choices, and a result without what leads to it; raises BadRow.

        The user may name either of them as the answer.
        """
        if explained := explain_choices(row):
            raise BadRow(RejectCode.NOT_FOR_OBJECTIVE, explained)
        if not trains_answer or not self.columns.keys().isdisjoint(OUTPUT_COLUMNS):
            return
        if worked := find_worked_answers(row):
            field, _ = self._advise({})
            fixes = " or ".join(self._advise({"answer": name})[1] for name in (*worked, "answer"))
            detail = f"the row has {' and '.join([', '.join(['answer', *worked[:-1]]), worked[-1]])}"
            detail = f"{detail}, and only one of them is trained: name it in {field}, as {fixes}"
            raise BadRow(RejectCode.NOT_FOR_OBJECTIVE, detail)

    def explain_text(self, bad: BadRow, row: Columns) -> BadRow:
        """Return the error of a text where answers are trained: if another column has a class, it may be the answer."""
        if turn := explain_turn(row):
            return BadRow(bad.code, turn)
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
        if choices := explain_choices(row):
            return choices
        columns = suggest_columns(row, wanted)
        if not columns:
            return ""
        return self._name_columns(columns, "name yours in")

    def _name_columns(self, columns: Mapping[str, str], verb: str) -> str:
        field, example = self._advise({known: shorten_name(own) for known, own in columns.items()})
        return f"{verb} {field}, for example {example}"


def _is_metadata(name: str) -> bool:
    return is_metadata(name) or is_metadata(name.rpartition(".")[2])


def _open_roots(row: Columns, paths: set[str]) -> Columns:
    """Return the row with the values next to those of the paths, `request.tools`, in place of their columns."""
    opened = dict(row)
    for root in {find_root(path) for path in paths if path not in row}:
        value = opened.pop(root, None)
        begun = {".".join(path.split(".")[:2]) for path in paths}
        inside = value.items() if isinstance(value, dict) else ()
        opened |= {f"{root}.{key}": one for key, one in inside if f"{root}.{key}" not in begun}
    return opened


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
        return separator
    for key in _KEYS_OF_ROWS:
        rows = row.get(key)
        if isinstance(rows, list) and rows and all(isinstance(one, dict) for one in rows):
            return f"the rows are under {key}: write that array into a file of its own"
    if row.keys() == {"columns", "index", "data"} or (len(row) > 1 and "0" in row and isinstance(value, dict)):
        return AS_LINES
    return ""


def refuse_columns_of_rows(row: Columns) -> None:
    """Refuse an object that has a file's columns, each an object with the rows by number; raises BadRow."""
    if all(isinstance(value, dict) and "0" in value for value in row.values()):
        raise BadRow(RejectCode.UNKNOWN_FORMAT, f"each column has rows by number, as pandas writes them: {AS_LINES}")
