"""Read CSV and TSV rows; every cell stays a string."""

import csv
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Any, NamedTuple

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.readers.json_row import first_repeated
from finetune_trainer.data.readers.lines import MAX_ROW_BYTES, read_lines, too_long
from finetune_trainer.data.rows import BadRow

_QUOTED = re.compile(rb'"[^"]*"')
_AROUND_NAMES = '" \t\ufeff'
"""A byte order mark between joined files makes the quotes behind it a part of the cell."""


class CsvRow(NamedTuple):
    """One record: its first line's number, its cells or its problem, and its text."""

    line: int
    value: dict[str, Any] | None
    problem: BadRow | None
    text: str


class _Lines:
    """Feeds decoded lines to the csv reader and keeps the text of the record being read."""

    def __init__(self, stream: BufferedReader, limit: int) -> None:
        self._lines = read_lines(stream, limit)
        self._limit = limit
        self.first = 0
        self._texts: list[str] = []
        self._length = 0

    @property
    def text(self) -> str:
        """The record so far, joined once: a record may have millions of lines."""
        return "".join(self._texts)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, raw, whole = next(self._lines)
        self.first = self.first or number
        # Undecodable bytes become lone surrogates here, by which a bad row is recognized below.
        line = raw.decode("utf-8", "surrogateescape") + "\n"
        self._texts.append(line)
        self._length += len(line)
        if not whole or self._length > self._limit:
            raise too_long(self._limit)
        return line

    def start_record(self) -> None:
        self.first, self._texts, self._length = 0, [], 0

    def refuse(self, problem: BadRow) -> Iterator[CsvRow]:
        """Yield the lines of a broken record, each as a row, because a stray quote may have joined rows."""
        first, *others = self.text.split("\n")[:-1]
        yield CsvRow(self.first, None, problem, first)
        detail = f"the line is part of the broken record that begins in line {self.first}"
        for number, text in enumerate(others, self.first + 1):
            if text.strip():
                yield CsvRow(number, None, BadRow(RejectCode.BAD_JSON, detail), text)


def read_csv(stream: BufferedReader, delimiter: str, limit: int = MAX_ROW_BYTES) -> Iterator[CsvRow]:
    """Yield every record after the header; a semicolon as delimiter is detected from the header."""
    csv.field_size_limit(limit)
    start = stream.peek(limit).split(b"\n", 1)[0]
    names = _QUOTED.sub(b"", start)
    if delimiter == "," and b"," not in names and b";" in names:
        delimiter = ";"
    lines = _Lines(stream, limit)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: _Header | None = None
    while True:
        lines.start_record()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield from lines.refuse(BadRow(RejectCode.BAD_JSON, _explain(error, is_first=lines.first == 1)))
            continue
        except BadRow as problem:
            yield from lines.refuse(problem)
            continue
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _Header(cells)
            continue
        text = lines.text
        try:
            yield CsvRow(lines.first, header.to_object(cells, text, lines.first), None, text)
        except BadRow as problem:
            yield CsvRow(lines.first, None, problem, text)


class _Header:
    """The names of the columns."""

    def __init__(self, cells: list[str]) -> None:
        self._names = [_readable(name.strip()) or f"Unnamed: {at}" for at, name in enumerate(cells)]
        self._twice = first_repeated(self._names)
        self._cells = [name.strip(_AROUND_NAMES) for name in cells]
        self._another = 0
        """The line of a header that has these names in another order."""

    def to_object(self, cells: list[str], text: str, line: int) -> dict[str, Any]:
        """Return the cells of a record under their names; raises BadRow."""
        if not text.isascii():
            _refuse_undecodable(text)
        if self._names[0].lower().startswith("sep="):
            detail = f"the first line, {self._names[0][:40]!r}, names a separator instead of the columns: remove it"
            raise BadRow(RejectCode.MISSING_COLUMN, detail)
        if len(cells) != len(self._names):
            detail = f"the record has {len(cells)} cells, the header has {len(self._names)}"
            if len(self._names) == 1:
                detail = explain_separator(self._names[0]) or detail
            raise BadRow(RejectCode.MISSING_COLUMN, detail)
        if self._twice is not None:
            raise BadRow(RejectCode.DUP_KEY, f"the header contains {self._twice[:40]!r} twice")
        if cells[-1].strip(_AROUND_NAMES) in self._cells or self._another:
            self._refuse_header([name.strip(_AROUND_NAMES) for name in cells], line)
        return dict(zip(self._names, cells, strict=True))

    def _refuse_header(self, cells: list[str], line: int) -> None:
        """Refuse the header of another file that was joined to this one, and rows below it if its order differs."""
        if cells == self._cells:
            self._another = 0
            detail = "the record repeats the header, as in files that were joined: remove the line"
            raise BadRow(RejectCode.BAD_JSON, detail)
        if sorted(cells) == sorted(self._cells):
            self._another = line
        if self._another:
            detail = f"line {self._another} is a header with the columns in another order: make it a file of its own"
            raise BadRow(RejectCode.BAD_JSON, detail)


def explain_separator(name: str) -> str:
    """Return which separator the name of a single column contains, and the fix; "" if none."""
    if "\t" in name:
        return "the separator is a tab: save the file as .tsv, or with commas"
    return "the separator is |: save the file with commas" if "|" in name else ""


def _explain(error: csv.Error, *, is_first: bool) -> str:
    if "new-line character" in str(error):
        if is_first:
            return "lines end in CR: convert them to LF"
        return "the line has a CR outside quotes: write the cell in quotes, or convert CR to LF"
    if "unexpected end of data" in str(error):
        return "a quote opens a cell and is never closed; write a quote inside a cell twice"
    return f"not a CSV record: {error}"


def _readable(name: str) -> str:
    # Messages name the columns and must not contain an undecodable byte as a lone surrogate.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _refuse_undecodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        detail = "the record contains bytes that are not UTF-8: save the file as CSV UTF-8"
        raise BadRow(RejectCode.BAD_UTF8, detail) from None
