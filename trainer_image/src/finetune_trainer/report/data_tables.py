"""The report's tables about the rows: where they came from, what became of them, and how long they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.report.text import code, inline, percent, table

MOST_FILES = 20
SIDES = {"train": "training", "validation": "held out"}


def file_table(summary: Mapping[str, Any]) -> str:
    """Every file with its rows and the codes of those that were skipped; empty where preflight wrote none."""
    files = [(told, one) for side, told in SIDES.items() for one in (summary.get(side) or {}).get("files", ())]
    shown = [_file_row(told, one) for told, one in files[:MOST_FILES]]
    if len(files) > MOST_FILES:
        shown.append(_rest_row([one for _, one in files[MOST_FILES:]]))
    return table(["rows for", "file", "rows", "accepted", "skipped", "why"], shown) if shown else ""


def _file_row(side: str, counts: Mapping[str, Any]) -> list[str]:
    codes = ", ".join(f"{code(name)} {count}" for name, count in counts["rejectedByCode"].items())
    return [side, code(counts["file"]), *_counts([counts]), codes or "-"]


def _rest_row(rest: Sequence[Mapping[str, Any]]) -> list[str]:
    return ["", f"{len(rest)} more, in {code('dataset/summary.json')}", *_counts(rest), "-"]


def _counts(files: Sequence[Mapping[str, Any]]) -> list[str]:
    rows, accepted = (sum(int(one[name]) for one in files) for name in ("rows", "accepted"))
    return [str(rows), str(accepted), str(rows - accepted)]


def length_table(summary: Mapping[str, Any], max_length: int | None) -> str:
    """How long the rows are before anything is cut, beside `maxLength`; empty where nothing was tokenised."""
    sides = [(told, (summary.get(side) or {}).get("lengths") or {}) for side, told in SIDES.items()]
    names = ("p50", "p90", "p99", "max", "advisedMaxLength")
    rows = [
        [f"{told} rows", *(str(lengths[name]) for name in names), inline(max_length or "-")]
        for told, lengths in sides
        if lengths.get("max")
    ]
    header = ["tokens of", "median", "90 % up to", "99 % up to", "longest", "maxLength for 99 %", "maxLength"]
    return table(header, rows) if rows else ""


def histogram_table(histogram: Sequence[tuple[int, int]]) -> str:
    """How many training rows have which length, with bars for a terminal; empty where none were counted."""
    total, most = sum(count for _, count in histogram), max((count for _, count in histogram), default=0)
    first = [1, *(end + 1 for end, _ in histogram)]
    rows = [
        [f"{start} to {end}", str(count), percent(count / total), _bar(count, most)]
        for start, (end, count) in zip(first, histogram, strict=False)
    ]
    return table(["tokens", "rows", "share", "beside the most frequent"], rows) if rows else ""


def _bar(count: int, most: int) -> str:
    """A bar of at most 24 blocks, in eighths."""
    eighths = max(round(24 * 8 * count / most), 1 if count else 0)
    whole, part = divmod(eighths, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[part].strip()
