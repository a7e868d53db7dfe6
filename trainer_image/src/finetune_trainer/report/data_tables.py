"""The report's tables about the rows (files, lengths) and about the candidates of the full model."""

from collections.abc import Mapping, Sequence
from operator import eq
from typing import Any

from finetune_trainer.evaluation.gate_rules import (
    CLEAR_MARGIN,
    LARGEST_MEAN_KL,
    LEAST_AGREEMENT,
    MergeCheck,
    largest_loss,
)
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.text import NOTHING, code, inline, number, percent, table

MOST_FILES = 20
SIDES = {"train": "training", "validation": "held out"}


def blend_table(summary: Mapping[str, Any]) -> str:
    """Return what each source brings to the training; empty with a single source."""
    rows = [
        [
            code(" ".join(one[name] for name in ("uri", "config", "split") if name in one)),
            inline(_chosen(one)),
            *_counts([one]),
            str(one["trainRows"]),
            percent(one["shareOfRows"]),
            str(one["trainedTokens"]),
            percent(one["shareOfTrainedTokens"]),
            str((one.get("lengths") or {}).get("p99", NOTHING)),
        ]
        for one in summary.get("blend", ())
    ]
    header = [
        *("source", "chosen by", "rows", "accepted", "skipped", "rows trained on", "share of rows"),
        *("trained tokens", "share of trained tokens", "99 % of rows up to (tokens)"),
    ]
    return table(header, rows) if rows else ""


def _chosen(source: Mapping[str, Any]) -> str:
    given = [f"{name} {source[name]:g}" for name in ("weight", "maxSamples") if name in source]
    return ", ".join([*given, *(["at random"] if source.get("sample") == "Random" else [])]) or "all rows"


def file_table(summary: Mapping[str, Any]) -> str:
    """Return every file with its rows and the codes of skipped rows; empty if preflight wrote none."""
    files = [(label, one) for side, label in SIDES.items() for one in (summary.get(side) or {}).get("files", ())]
    shown = [_file_row(label, one) for label, one in files[:MOST_FILES]]
    if len(files) > MOST_FILES:
        shown.append(_rest_row([one for _, one in files[MOST_FILES:]]))
    return table(["rows for", "file", "rows", "accepted", "skipped", "why"], shown) if shown else ""


def _file_row(side: str, counts: Mapping[str, Any]) -> list[str]:
    codes = ", ".join(f"{code(name)} {count}" for name, count in counts["rejectedRowsByCode"].items())
    return [side, code(counts["file"]), *_counts([counts]), codes or NOTHING]


def _rest_row(rest: Sequence[Mapping[str, Any]]) -> list[str]:
    return ["", f"{len(rest)} more, in {code('dataset/summary.json')}", *_counts(rest), NOTHING]


def _counts(files: Sequence[Mapping[str, Any]]) -> list[str]:
    rows, accepted = (sum(int(one[name]) for one in files) for name in ("rows", "acceptedRows"))
    return [str(rows), str(accepted), str(rows - accepted)]


def unused_columns(summary: Mapping[str, Any]) -> str:
    """Return the columns of the training rows that nothing reads, with their share of the rows; empty without any."""
    train = summary.get("train") or {}
    counts, rows = train.get("unusedColumns") or {}, train.get("acceptedRows")
    return ", ".join(f"{code(name)} ({percent(count / rows)})" for name, count in counts.items()) if rows else ""


def length_table(summary: Mapping[str, Any], max_length: int | None) -> str:
    """Return the lengths of the rows before truncation, next to `maxLength`; empty if nothing was tokenised."""
    sides = [(label, (summary.get(side) or {}).get("lengths") or {}) for side, label in SIDES.items()]
    names = ("p50", "p90", "p99", "max", "advisedMaxLength")
    rows = [
        [f"{label} rows", *(str(lengths[name]) for name in names), inline(max_length or NOTHING)]
        for label, lengths in sides
        if lengths.get("max")
    ]
    header = ["tokens of", "median", "90 % up to", "99 % up to", "longest", "maxLength for 99 %", "maxLength"]
    return table(header, rows) if rows else ""


def histogram_table(histogram: Sequence[tuple[int, int]]) -> str:
    """Return the number of training rows by length, with bars for a terminal; empty if none were counted."""
    total, most = sum(count for _, count in histogram), max((count for _, count in histogram), default=0)
    first = [1, *(end + 1 for end, _ in histogram)]
    rows = [
        [f"{start} to {end}", str(count), percent(count / total), _bar(count, most)]
        for start, (end, count) in zip(first, histogram, strict=False)
    ]
    return table(["tokens", "rows", "share", "against most frequent"], rows) if rows else ""


def _bar(count: int, most: int) -> str:
    """Return a bar of at most 24 blocks, in eighths."""
    eighths = max(round(24 * 8 * count / most), 1 if count else 0)
    whole, part = divmod(eighths, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[part].strip()


def gguf_context(run: RunRecord) -> dict[str, Any]:
    """Return each GGUF file's figures, and the faults of those that are not published."""
    if run.gguf is None:
        return {}
    merged = run.merge.chosen.answers if run.merge and run.merge.chosen else []
    judged = list(zip(run.gguf.files, run.gguf.faults, strict=True))
    rows = [
        [
            code(one.name),
            number(one.loss, 5),
            number(one.mean_kl, 2),
            percent(one.top1_agreement),
            percent(one.same_tokens),
            f"{sum(map(eq, one.answers, merged))} of {len(one.answers)}" if one.answers else NOTHING,
            "withheld" if faults else "published",
        ]
        for one, faults in judged
        if one.loss is not None and one.mean_kl is not None and one.top1_agreement is not None
    ]
    header = ["type", "loss", "KL", "same top token", "tokens", "same answers", ""]
    return {
        "gguf_table": table(header, rows) if rows else "",
        "gguf_faults": [(one.name, faults) for one, faults in judged if faults],
        "gguf_tokens": max((one.tokens for one, _ in judged), default=0),
        "gguf_reference": next((one.reference_loss for one, _ in judged if one.reference_loss is not None), None),
    }


def merge_context(merge: MergeCheck | None) -> dict[str, Any]:
    """Return each candidate's figures, and the faults of those that may not be published."""
    if merge is None:
        return {}
    judged = list(zip(merge.candidates, merge.faults, strict=True))
    rows = [
        [
            inline(one.name),
            number(one.loss, 5),
            number(one.mean_kl, 2),
            percent(one.top1_agreement),
            percent(one.clear_agreement),
            "published" if one is merge.chosen else "withheld" if faults else "not chosen",
        ]
        for one, faults in judged
        if one.loss is not None and one.mean_kl is not None and one.top1_agreement is not None
    ]
    header = ["made from", "loss", "KL", "same top token", "clear", ""]
    return {
        "merge_table": table(header, rows) if rows else "",
        "merge_faults": [(one.name, faults) for one, faults in judged if faults],
        "largest_loss": largest_loss(merge.trained_loss),
        "largest_kl": LARGEST_MEAN_KL,
        "least_agreement": LEAST_AGREEMENT,
        "clear_margin": CLEAR_MARGIN,
    }
