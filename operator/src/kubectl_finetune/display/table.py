"""Columns as kubectl prints them: padded, never cut, the same in a pipe; colours only on a terminal."""

from collections.abc import Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.text import Text

from finetune_api.names import Phase
from finetune_api.text.printable import printable
from finetune_client.figures import NONE, duration

STYLES = {
    Phase.SUCCEEDED.value: "green",
    Phase.FAILED.value: "red",
    Phase.TRAINING.value: "cyan",
    Phase.EVALUATING.value: "cyan",
    Phase.MERGING.value: "cyan",
    Phase.PUBLISHING.value: "cyan",
    Phase.QUEUED.value: "yellow",
    Phase.SUSPENDED.value: "yellow",
    "NotMet": "red",
    "Worse": "red",
    "Better": "green",
    "NoMeasurableDifference": "yellow",
    "NotEvaluated": "yellow",
    "Passed": "green",
    "Preempted": "yellow",
}
GAP = 3


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 0, *, uncoloured: Sequence[int] = ()
) -> Text:
    """Return a table; names of states are coloured, except in columns that are named as `uncoloured`."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[index]) for row in [list(header), *cells]) for index in range(len(header))]
    text = Text()
    for row in [list(header), *cells]:
        text.append(" " * indent)
        for index, cell in enumerate(row):
            is_last = index == len(row) - 1
            padding = "" if is_last else " " * (widths[index] + GAP - cell_len(cell))
            text.append(cell + padding, "" if index in uncoloured else STYLES.get(cell, ""))
        text.append("\n")
    text.rstrip()
    return text


def fields(pairs: Sequence[tuple[str, str]], indent: int = 0) -> Text:
    """Return names and values as lines; omit pairs without a value."""
    shown = [(name, printable(value)) for name, value in pairs if value and value != NONE]
    width = max((len(name) for name, _ in shown), default=0) + 1
    text = Text()
    for name, value in shown:
        text.append(" " * indent + f"{name}:".ljust(width + GAP), "bold")
        text.append(value, STYLES.get(value, ""))
        text.append("\n")
    text.rstrip()
    return text


def heading(title: str) -> Text:
    """Return the title of a section."""
    return Text(title, "bold")


BLOCKS = "▁▂▃▄▅▆▇█"


def between(start: datetime | None, end: datetime | None) -> str:
    """Return the time between two moments."""
    return duration((end - start).total_seconds()) if start and end else NONE


def moment(time: datetime | None) -> str:
    """Return a time in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ") if time else NONE


def size(count: int | None) -> str:
    """Return bytes in binary units."""
    if count is None:
        return NONE
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return the last values as bars, scaled between their minimum and maximum."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in shown)


def bar(percent: int, width: int = 30) -> str:
    """Return a progress bar."""
    full = round(width * min(max(percent, 0), 100) / 100)
    return "█" * full + "░" * (width - full)
