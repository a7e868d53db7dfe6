"""Says why rows cannot be used, in one sentence with the fix, or that they can."""

from finetune_trainer.data.columns import KNOWN_COLUMNS, name_columns
from finetune_trainer.data.rows import RejectCode
from finetune_trainer.data.summary import Summary


def why_unusable(summary: Summary, max_rejected_percent: int) -> str | None:
    """Return what forbids to train on these rows, None if nothing does; 100 percent means any number."""
    columns = summary.columns
    if not summary.rows:
        return "there are no rows"
    if columns.missing and columns.seen:
        named = ", ".join(f"{known} as {own!r}" for known, own in columns.columns.items() if own in columns.missing)
        return f"dataset.columns names {named}, which no row has; columns seen: {name_columns(columns.seen)}"
    if not summary.accepted:
        if summary.rejected_by_code[RejectCode.NOT_FOR_OBJECTIVE] == summary.rows:
            return f"none of the {summary.rows} rows suits the objective: {_most_said(summary)}"
        return f"none of the {summary.rows} rows can be used"
    if max_rejected_percent >= 100 or summary.malformed_percent <= max_rejected_percent:
        return None
    unfit = summary.rejected_by_code[RejectCode.NOT_FOR_OBJECTIVE]
    told = f"{unfit} of them do not suit the objective, " if unfit else ""
    return (
        f"{summary.malformed} of {summary.rows} rows are malformed ({summary.malformed_percent:.1f} %, {told}"
        f"dataset.maxRejectedPercent is {max_rejected_percent})"
    )


def name_unknown_columns(names: frozenset[str]) -> str | None:
    """Return what is wrong with names that no format has, None if nothing is."""
    if unknown := sorted(names - KNOWN_COLUMNS):
        known = ", ".join(sorted(KNOWN_COLUMNS))
        return f"spec.dataset.columns maps {', '.join(unknown)}, which no format knows; known are {known}"
    return None


def _most_said(summary: Summary) -> str:
    (detail, count), *others = summary.unfit.most_common()
    return f"{detail} ({count} rows)" if others else detail
