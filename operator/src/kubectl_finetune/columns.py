"""Columns as kubectl prints them: padded, never cut, the same in a pipe; colour on a terminal alone."""

from collections.abc import Sequence

from rich.text import Text

from finetune_api.names import Phase
from kubectl_finetune.figures import clean

STYLES = {
    Phase.SUCCEEDED.value: "green",
    Phase.FAILED.value: "red",
    Phase.TRAINING.value: "cyan",
    Phase.PUBLISHING.value: "cyan",
    Phase.QUEUED.value: "yellow",
    Phase.SUSPENDED.value: "yellow",
    "NotMet": "red",
    "Passed": "green",
    "Preempted": "yellow",
}
GAP = 3


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 0) -> Text:
    """A table; words that stand for a state have its colour."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[index]) for row in [list(header), *cells]) for index in range(len(header))]
    text = Text()
    for row in [list(header), *cells]:
        text.append(" " * indent)
        for index, cell in enumerate(row):
            is_last = index == len(row) - 1
            text.append(cell if is_last else cell.ljust(widths[index] + GAP), STYLES.get(cell, ""))
        text.append("\n")
    text.rstrip()
    return text


def fields(pairs: Sequence[tuple[str, str]], indent: int = 0) -> Text:
    """Names and values; pairs without a value are left out."""
    shown = [(name, clean(value)) for name, value in pairs if value and value != "-"]
    width = max((len(name) for name, _ in shown), default=0) + 1
    text = Text()
    for name, value in shown:
        text.append(" " * indent + f"{name}:".ljust(width + GAP), "bold")
        text.append(value, STYLES.get(value, ""))
        text.append("\n")
    text.rstrip()
    return text


def heading(title: str) -> Text:
    """The title of a section."""
    return Text(title, "bold")
