"""Reads CSV and TSV rows as they are written: every cell stays a string."""

import csv
from collections.abc import Iterator
from io import BufferedReader
from typing import Any, NamedTuple

from finetune_trainer.data.lines import MAX_ROW_BYTES, read_lines, too_long
from finetune_trainer.data.rows import BadRow, RejectCode


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
        self.text = ""
        self.is_too_long = False
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        for number, raw, whole in self._lines:
            self._number = number
            self.first = self.first or number
            # Undecodable bytes become lone surrogates here, which is how a bad row is told from a good one below.
            line = raw.decode("utf-8", "surrogateescape") + "\n"
            self.is_too_long = self.is_too_long or not whole or len(self.text) + len(line) > self._limit
            if self.is_too_long:
                line = "\n"
            self.text += line
            yield line

    def start_record(self) -> None:
        self.first, self.text, self.is_too_long = 0, "", False


def read_csv(stream: BufferedReader, delimiter: str, limit: int = MAX_ROW_BYTES) -> Iterator[CsvRow]:
    """Yield every record after the header; a European file's semicolons are seen from its header."""
    csv.field_size_limit(limit)
    start = stream.peek(limit).split(b"\n", 1)[0]
    if delimiter == "," and b"," not in start and b";" in start:
        delimiter = ";"
    lines = _Lines(stream, limit)
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        lines.start_record()
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = [_readable(name.strip()) for name in cells]
                continue
            yield CsvRow(lines.first, _to_object(header, cells, lines), None, lines.text)
        except csv.Error as error:
            problem = (
                too_long(limit) if lines.is_too_long else BadRow(RejectCode.BAD_JSON, f"not a CSV record: {error}")
            )
            yield CsvRow(lines.first, None, problem, lines.text)
        except BadRow as problem:
            yield CsvRow(lines.first, None, problem, lines.text)


def _to_object(header: list[str], cells: list[str], lines: _Lines) -> dict[str, Any]:
    if lines.is_too_long:
        raise too_long()
    if not lines.text.isascii():
        _refuse_undecodable(lines.text)
    if len(cells) != len(header):
        raise BadRow(RejectCode.MISSING_COLUMN, f"the record has {len(cells)} cells, the header has {len(header)}")
    row = dict(zip(header, cells, strict=True))
    if len(row) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise BadRow(RejectCode.DUP_KEY, f"the header names {twice[:40]!r} twice")
    return row


def _readable(name: str) -> str:
    # Messages name the columns: an undecodable byte of the header must not reach them as a lone surrogate.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _refuse_undecodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(RejectCode.BAD_UTF8, "the record holds bytes that are not UTF-8") from None
