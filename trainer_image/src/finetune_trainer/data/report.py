"""Writes what the front door found: accepted.jsonl, rejected.jsonl, summary.json, and a table for a terminal."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import orjson
from rich.console import Console
from rich.table import Table

from finetune_trainer.data.canonical import read_canonical
from finetune_trainer.data.rows import SENTENCES, RejectCode, Rejected, RepairCode, Row
from finetune_trainer.data.summary import Summary

ACCEPTED = "accepted.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "summary.json"


class CheckOutput:
    """Writes rows as they come; on leaving, for whatever reason, the summary is written and the files are closed."""

    def __init__(self, directory: Path, summary: Summary) -> None:
        self._directory = directory
        self._summary = summary
        self._files = ExitStack()

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._accepted = self._open(ACCEPTED)
        self._rejected = self._open(REJECTED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()
        write_summary(self._directory, self._summary)

    def write(self, row: Row | Rejected) -> None:
        """Append one row to the file that it belongs in."""
        file = self._rejected if isinstance(row, Rejected) else self._accepted
        file.write(orjson.dumps(row.to_dict(), option=orjson.OPT_APPEND_NEWLINE))

    def _open(self, name: str) -> IO[bytes]:
        return self._files.enter_context((self._directory / name).open("wb"))


def write_summary(directory: Path, summary: Summary) -> None:
    """Write `summary.json`."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    (directory / SUMMARY).write_bytes(orjson.dumps(summary.to_dict(), option=options))


def read_accepted(path: Path) -> Iterator[Row]:
    """Yield the rows of an `accepted.jsonl`, with the places that they first came from."""
    with path.open("rb") as file:
        for line in file:
            yield read_canonical(orjson.loads(line))


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """Print the counts as tables; without a terminal, as aligned plain text."""
    console = console or Console()
    for line in _count_lines(summary):
        console.print(line, markup=False, highlight=False)
    for title, counts in (("Rejected", summary.rejected_by_code), ("Repaired", summary.repaired_by_code)):
        if counts:
            _print_codes(console, title, counts.most_common())


def _count_lines(summary: Summary) -> Iterable[str]:
    formats = ", ".join(f"{name} {count}" for name, count in summary.formats.most_common())
    yield f"rows      {summary.rows}"
    yield f"accepted  {summary.accepted} ({summary.repaired} repaired){f': {formats}' if formats else ''}"
    yield f"rejected  {summary.rejected} ({summary.malformed} malformed, {summary.malformed_percent:.1f} %)"


def _print_codes(
    console: Console, title: str, counts: list[tuple[RejectCode, int]] | list[tuple[RepairCode, int]]
) -> None:
    if not console.is_terminal:
        for code, count in counts:
            console.print(f"{count:>8}  {code:<22} {SENTENCES[code]}", markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(title, "rows", "what it means")
    for code, count in counts:
        table.add_row(code.value, str(count), SENTENCES[code])
    console.print(table)
