"""Times that end a job, a run, or what is left of a job; computed from what is written, the objects and the clock."""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.names import ConditionType, Reason
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.kube.observed import Reading
from finetune_operator.policy.decision import Draft

SLACK_SECONDS = 0.5


@dataclass(frozen=True)
class Overdue:
    """Why the job ends now."""

    reason: Reason
    detail: str


def note_queued(draft: Draft) -> None:
    """From when on the job could start: accepted, and not suspended by the user."""
    status = draft.status
    if status.start_time:
        return
    if draft.spec.suspend:
        status.queued_time = None
    elif status.queued_time is None and _is_free(draft):
        status.queued_time = draft.observed.now


def _is_free(draft: Draft) -> bool:
    """A missing right or a taken name is a wait like any other; a refusal or a parent is not."""
    accepted = draft.status.condition(ConditionType.ACCEPTED)
    return accepted is not None and accepted.reason in {Reason.ACCEPTED, Reason.API_DENIED, Reason.NAME_CONFLICT}


def exceeded(draft: Draft) -> Overdue | None:
    """The deadline that has passed; else another look is asked for when the next one may have."""
    return _start(draft) or _active(draft)


def _start(draft: Draft) -> Overdue | None:
    status, limit = draft.status, draft.spec.start_deadline_seconds
    if limit is None or status.start_time or status.queued_time is None:
        return None
    if _has_passed(draft, limit - (draft.observed.now - status.queued_time).total_seconds()):
        return Overdue(Reason.START_DEADLINE_EXCEEDED, f"{limit} s: {draft.stored.message or 'it was not looked at'}")
    return None


def _active(draft: Draft) -> Overdue | None:
    limit = draft.spec.active_deadline_seconds
    if limit is None or draft.status.start_time is None:
        return None
    run, used = draft.status.current_run, draft.status.active_seconds or 0
    if run is None or run.start_time is None:
        return Overdue(Reason.DEADLINE_EXCEEDED, _said(used, limit)) if used >= limit else None
    used += int(((run.missing_since or draft.observed.now) - run.start_time).total_seconds())
    return Overdue(Reason.DEADLINE_EXCEEDED, _said(used, limit)) if _has_passed(draft, limit - used) else None


def _said(used: int, limit: int) -> str:
    return f"{used} s in all, and activeDeadlineSeconds allows {limit}"


def _has_passed(draft: Draft, left: float) -> bool:
    if left > 0:
        draft.decision.again_in(left + SLACK_SECONDS)
    return left <= 0


def is_stalled(draft: Draft, reading: Reading) -> bool:
    """Whether the trainer answers, and its last answers all had the same heartbeat for too long."""
    run, report = draft.status.current_run, reading.report
    if run is None or report is None:
        return False
    if run.last_moved_time is None or run.heartbeat != report.heartbeat:
        run.heartbeat, run.last_moved_time = report.heartbeat, reading.at
    return (reading.at - run.last_moved_time).total_seconds() >= draft.spec.stall_timeout_seconds


def has_ttl(job: FineTuneJob) -> bool:
    """Whether its children are removed some time after its end."""
    return job.spec is not None and job.spec.ttl_seconds_after_finished is not None


def seconds_to_tidy(job: FineTuneJob, now: datetime) -> float | None:
    """Seconds until the children of a finished job are to be removed, 0 when they are; None = they stay."""
    ttl = job.spec.ttl_seconds_after_finished if job.spec else None
    if ttl is None or not job.is_finished or job.status.completion_time is None:
        return None
    return max(0.0, ttl - (now - job.status.completion_time).total_seconds())
