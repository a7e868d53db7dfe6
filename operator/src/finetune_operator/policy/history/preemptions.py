"""Count preemptions, and decide whether a job had too many."""

from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy.history import bookkeeping, counters

MOST_WITHOUT_PROGRESS = 20
"""Preemptions without a new checkpoint in between that a job may have, and preemptions of its preflight, unless
`maxPreemptions` is set."""


def add(status: FineTuneJobStatus, reason: str) -> None:
    """Count a run that was preempted or evicted; `status.checkpoint` is the last one that it saved."""
    status.preemptions = (status.preemptions or 0) + 1
    status.preemptions_by_reason = counters.add_by_reason(status.preemptions_by_reason, reason, 1)
    known = bookkeeping.read(status)
    step = status.checkpoint.step if status.checkpoint else 0
    before = 0 if step > (known.preempted_at_step or 0) else known.unsaved_preemptions or 0
    furthest = max(step, known.preempted_at_step or 0)
    bookkeeping.record(status, preempted_at_step=furthest, unsaved_preemptions=before + 1)


def explain_excess(status: FineTuneJobStatus, limit: int | None) -> str:
    """Return why the job had too many preemptions, by its `maxPreemptions` or without progress; empty if it had not."""
    if limit is not None:
        count = status.preemptions or 0
        return f"{count} preemptions, and maxPreemptions is {limit}" if count > limit else ""
    count = bookkeeping.read(status).unsaved_preemptions or 0
    return f"{count} preemptions without a new checkpoint" if count > MOST_WITHOUT_PROGRESS else ""


def has_too_many_in_preflight(status: FineTuneJobStatus, limit: int | None) -> bool:
    """Return whether preflight, which saves no checkpoint, was preempted too often."""
    count = (status.preflight and status.preflight.preemptions) or 0
    return count > (MOST_WITHOUT_PROGRESS if limit is None else limit)
