"""The report's tables about the rows: where they came from, what became of them, and how long they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.evaluation.gate_rules import (
    CLEAR_MARGIN,
    LARGEST_MEAN_KL,
    LEAST_AGREEMENT,
    MergeCheck,
    largest_loss,
)
from finetune_trainer.report import text
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


def merge_context(merge: MergeCheck | None) -> dict[str, Any]:
    """Each candidate's figures, and what is wrong with those that may not be published."""
    if merge is None:
        return {}
    rows = [
        [
            text.inline(one.name),
            text.number(one.loss, 5),
            text.number(one.mean_kl, 2),
            text.percent(one.top1_agreement),
            text.percent(one.clear_agreement) if one.clear_agreement is not None else "-",
            "published" if one is merge.chosen else "withheld" if its else "not chosen",
        ]
        for one, its in zip(merge.candidates, merge.faults, strict=True)
        if one.loss is not None and one.mean_kl is not None and one.top1_agreement is not None
    ]
    header = ["made from", "loss", "KL", "same first choice", "clear", ""]
    return {
        "merge_table": text.table(header, rows) if rows else "",
        "merge_faults": [(one.name, its) for one, its in zip(merge.candidates, merge.faults, strict=True) if its],
        "largest_loss": largest_loss(merge.trained_loss),
        "largest_kl": LARGEST_MEAN_KL,
        "least_agreement": LEAST_AGREEMENT,
        "clear_margin": CLEAR_MARGIN,
    }
