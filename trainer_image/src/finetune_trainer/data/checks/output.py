"""Write accepted.jsonl, rejected.jsonl and summary.json, and print the counts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.dataset.codes import SENTENCES
from finetune_api.objectives import SAMPLED
from finetune_api.text.printable import printable
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.formats.export import LOSSES, ExportFormat, LossCode, Unexpressed, export_row
from finetune_trainer.data.rows import EXCERPT_CHARACTERS, FORMAT_SENTENCES, Rejected, Row, Source, read_canonical

ACCEPTED = "accepted.jsonl"
REJECTED = "rejected.jsonl"
FILES_SHOWN = 40
BUFFER_BYTES = 1 << 18
SUMMARY = "summary.json"
CONVERTED = "converted.jsonl"
UNCONVERTED = "unconverted.jsonl"
OUTPUT_FILES = (ACCEPTED, REJECTED, SUMMARY)

Code = TypeVar("Code", bound=StrEnum)
_SENTENCES: dict[StrEnum, str] = {
    code: sentence for sentences in (SENTENCES, LOSSES, FORMAT_SENTENCES) for code, sentence in sentences.items()
}


class Conversion(ExitStack):
    """Convert rows one by one and count the ones that would lose something, by loss code.

    The rows were checked for `objective`, and are read again for it.
    """

    def __init__(self, directory: Path, target: ExportFormat, objective: str | None = None) -> None:
        super().__init__()
        self.target = target
        self._prompts_wanted = objective in SAMPLED
        self.converted = 0
        self.unconverted_by_code: Counter[LossCode] = Counter()
        self._directory = directory

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._converted = self.enter_context((self._directory / CONVERTED).open("wb"))
        self._unconverted = self.enter_context((self._directory / UNCONVERTED).open("wb"))
        return self

    def write(self, row: Row) -> None:
        """Convert one accepted row; the converted file keeps the order of the input and has no `_source`."""
        try:
            line = _dump(export_row(row, self.target, prompts_wanted=self._prompts_wanted))
        except Unexpressed as loss:
            self.unconverted_by_code[loss.code] += 1
            self._unconverted.write(_dump(_describe(row, loss.code)))
        else:
            self.converted += 1
            self._converted.write(line)

    @property
    def unconverted(self) -> int:
        """The number of accepted rows that the format cannot express."""
        return self.unconverted_by_code.total()

    def to_dict(self) -> dict[str, Any]:
        """Return the counters in the form of `summary.json`."""
        return {
            "format": self.target.value,
            "converted": self.converted,
            "unconverted": self.unconverted,
            "unconvertedByCode": {code.value: count for code, count in self.unconverted_by_code.most_common()},
        }


def _describe(row: Row, code: LossCode) -> dict[str, Any]:
    excerpt = orjson.dumps(row.content()).decode()[:EXCERPT_CHARACTERS]
    place = {"file": row.source.file, "line": row.source.line}
    return {**place, "code": code.value, "detail": LOSSES[code], "excerpt": excerpt}


def _dump(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


class CheckOutput(ExitStack):
    """Write and convert rows one by one; on exit, also after an error, close the files and write the summary."""

    def __init__(self, directory: Path, summary: Summary, conversion: Conversion | None = None) -> None:
        super().__init__()
        self._directory = directory
        self._summary = summary
        self._conversion = conversion

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self.callback(_write_summary, self._directory, self._summary, self._conversion)
        self._accepted = self.enter_context((self._directory / ACCEPTED).open("wb", BUFFER_BYTES))
        self._rejected = self.enter_context((self._directory / REJECTED).open("wb", BUFFER_BYTES))
        if self._conversion is not None:
            self.enter_context(self._conversion)
        return self

    def write(self, row: Row | Rejected) -> None:
        """Append one row to its file."""
        if isinstance(row, Rejected):
            self._rejected.write(_dump(row.to_dict()))
            return
        self._accepted.write(row.to_line())
        if self._conversion is not None:
            self._conversion.write(row)


def _write_summary(directory: Path, summary: Summary, conversion: Conversion | None) -> None:
    content = summary.to_dict() | ({"conversion": conversion.to_dict()} if conversion else {})
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    (directory / SUMMARY).write_bytes(orjson.dumps(content, option=options))


def read_accepted(path: Path) -> Iterator[Row]:
    """Yield the rows of an `accepted.jsonl`, with their original sources."""
    with path.open("rb") as file:
        for line in file:
            yield read_canonical(orjson.loads(line))


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print the counts as tables on a terminal, otherwise as aligned plain text."""
    console = console or Console()
    _print_lines(console, _count_lines(summary))
    _print_codes(console, "format", summary.formats)
    if len(summary.files) > 1:
        _print_files(console, summary.to_dict()["files"])
    _print_codes(console, "rejected", summary.rejected_by_code)
    _print_codes(console, "repaired", summary.repaired_by_code)
    if unused := summary.describe_unused():
        _print_lines(console, [f"columns not used: {unused}: name them in --columns if they belong to the training"])


def print_rows(rows: Sequence[tuple[Source, str]], console: Console | None = None) -> None:
    """Print rows as the model reads them, each under its place; their lines are indented, so that none looks like
    another part of the output."""
    if not rows:
        return
    console = console or Console()
    counted = f"{len(rows)} accepted {'rows as the model reads them' if len(rows) > 1 else 'row as the model reads it'}"
    _print_lines(console, [f"The first {counted}; what is trained is between ⟦ and ⟧:"])
    for source, text in rows:
        lines = printable(text, lines=True).split("\n")
        _print_lines(console, [f"{printable(source.file)}:{source.line}", *(f"    {line}" for line in lines)])


def print_conversion(conversion: Conversion, console: Console | None = None) -> None:
    """Print the number of converted rows, and the others by loss code."""
    console = console or Console()
    line = (
        f"converted {conversion.converted} to {conversion.target}; {conversion.unconverted} cannot be expressed in it"
    )
    _print_lines(console, [line])
    _print_codes(console, "not converted", conversion.unconverted_by_code)


def _count_lines(summary: Summary) -> Iterable[str]:
    yield f"rows      {summary.rows}"
    yield f"accepted  {summary.accepted} ({summary.repaired} repaired)"
    yield f"rejected  {summary.rejected} ({summary.malformed} malformed, {summary.malformed_percent:.1f} %)"
    if summary.samples:
        lengths = summary.lengths.to_dict()
        yield (
            f"tokens    {summary.tokens} ({summary.trained_tokens} trained); per row: median {lengths['p50']}, "
            f"p90 {lengths['p90']}, p99 {lengths['p99']}, maximum {lengths['max']}; "
            f"maxLength {lengths['advisedMaxLength']} truncates at most 1 % of the rows"
        )


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _print_files(console: Console, files: list[dict[str, Any]]) -> None:
    rows = []
    for one in files:
        codes = ", ".join(f"{code} {count}" for code, count in one["rejectedRowsByCode"].items())
        rows.append((printable(one["file"]), one["rows"], one["acceptedRows"], codes))
    shown = rows[:FILES_SHOWN]
    if console.is_terminal:
        _print_table(console, ("file", "rows", "accepted", "rejected"), shown)
    else:
        _print_lines(
            console,
            (
                f"{count:>8}  rows, {kept} accepted: {file}{f' ({codes})' if codes else ''}"
                for file, count, kept, codes in shown
            ),
        )
    if len(rows) > len(shown):
        _print_lines(console, [f"and {len(rows) - len(shown)} more files, in {SUMMARY}"])


def _print_codes(console: Console, title: str, counts: Counter[Code]) -> None:
    rows = [(code.value, count, _SENTENCES[code]) for code, count in counts.most_common()]
    if rows and console.is_terminal:
        _print_table(console, (title, "rows", "what it means"), rows)
    else:
        _print_lines(console, (f"{count:>8}  {code:<22} {sentence}" for code, count, sentence in rows))


def _print_table(console: Console, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    table = Table()
    for name in header:
        table.add_column(name, justify="right" if name in ("rows", "accepted") else "left")
    for row in rows:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    console.print(table)
