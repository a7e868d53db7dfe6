"""Deadlines of jobs and runs, and the TTL of ended jobs, from the status, the objects and the clock."""

import re
from dataclasses import dataclass
from datetime import datetime

from finetune_api.names import Reason
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.kube.observed import Reading
from finetune_operator.policy.decision import Context, Effect, fail
from finetune_operator.policy.history import bookkeeping
from finetune_operator.settings import Settings

SLACK_SECONDS = 0.5
MAX_WAIT_SECONDS = 31_536_000.0
"""After a year the rest is computed again: the end of a wait must be a time, whatever a status contains."""
VOLUMES_TTL_SECONDS = 3600
"""Without a TTL, jobs whose pods have volumes keep those of every ended pod for as long: their disks cost money."""
_WAITING = frozenset(
    {
        *(Reason.ACCEPTED, Reason.API_DENIED, Reason.API_UNAVAILABLE, Reason.NAME_CONFLICT),
        Reason.MULTIKUEUE_UNSUPPORTED,
    }
)
"""Waiting for a right, a webhook, a name or a queue of this cluster counts as waiting; being refused for another reason
or waiting for a parent does not."""
_OUTLOOK = re.compile(r"; the (?:job|pod) then (?:continues|starts)")
"""The part of a message that is no longer true when the deadline has passed."""


@dataclass(frozen=True)
class Deadline:
    """The deadline that applies now, with reason and message for when it has passed."""

    seconds_left: float
    reason: Reason
    detail: str

    @property
    def is_exceeded(self) -> bool:
        """Whether it has passed."""
        return self.seconds_left <= 0

    def wait(self) -> Effect:
        """Return the effect that requeues the job for when the deadline has passed."""
        return Effect(requeue_after=None if self.is_exceeded else self.seconds_left + SLACK_SECONDS)


def record_eligible_time(context: Context) -> None:
    """Record since when the job could start: accepted, and not suspended by the user."""
    status = context.status
    if status.start_time:
        return
    if context.spec.suspend or context.acceptance.reason not in _WAITING:
        status.eligible_time = None
    elif status.eligible_time is None:
        status.eligible_time = context.observed.now


def next_deadline(context: Context) -> Deadline | None:
    """Return the deadline that applies now: before the start, or while a trainer runs."""
    status = context.status
    limit = context.spec.start_deadline_seconds or context.settings.default_start_deadline_seconds
    if status.start_time:
        return _active_deadline(context)
    if limit is None or status.eligible_time is None:
        return None
    left = limit - (context.observed.now - status.eligible_time).total_seconds()
    waited_for = _OUTLOOK.sub("", context.stored.message or "it was not reconciled")
    detail = f"{limit} s; the last state: {waited_for.rstrip('.')}."
    return Deadline(left, Reason.START_DEADLINE_EXCEEDED, detail)


def _active_deadline(context: Context) -> Deadline | None:
    limit = context.spec.active_deadline_seconds or context.settings.default_active_deadline_seconds
    if limit is None:
        return None
    run, used = context.status.current_run, context.status.active_seconds or 0
    if run and run.start_time:
        missing = bookkeeping.read(context.status).pod_missing_since_time
        used += int(((missing or context.observed.now) - run.start_time).total_seconds())
    elif used < limit:
        return None  # the clock does not run between two runs
    detail = f"{used} s in total, but activeDeadlineSeconds allows {limit}"
    return Deadline(limit - used, Reason.DEADLINE_EXCEEDED, detail)


def end_job(context: Context, deadline: Deadline) -> Effect:
    """Fail the job if the deadline has passed, else requeue it for then."""
    return fail(context, deadline.reason, deadline.detail) if deadline.is_exceeded else deadline.wait()


def record_heartbeat(context: Context, reading: Reading) -> None:
    """Record when the heartbeat of the current run last changed."""
    run, report = context.status.current_run, reading.report
    known = bookkeeping.read(context.status).heartbeat
    if run and report and (run.last_moved_time is None or known != report.heartbeat):
        run.last_moved_time = reading.moved_at or reading.at
        bookkeeping.record(context.status, heartbeat=report.heartbeat)


def record_waiting(context: Context) -> None:
    """Reset the heartbeat of the current run: a pod that waits for others is not stalled."""
    if run := context.status.current_run:
        run.last_moved_time = None
        bookkeeping.record(context.status, heartbeat=None)


def is_stalled(context: Context, reading: Reading) -> bool:
    """Return whether the trainer responds, but its heartbeat has not changed for stallTimeoutSeconds."""
    run = context.status.current_run
    if run is None or reading.report is None or run.last_moved_time is None:
        return False
    return (reading.at - run.last_moved_time).total_seconds() >= context.spec.stall_timeout_seconds


def find_ttl(job: FineTuneJob, settings: Settings) -> int | None:
    """Return the seconds from the job's end until its Jobs are removed; None if they stay."""
    own, default = (
        job.spec.ttl_seconds_after_finished if job.spec else None,
        settings.default_ttl_seconds_after_finished,
    )
    workspace = job.spec.resources.workspace if job.spec else None
    if default is None and workspace and workspace.storage_class_name:
        default = VOLUMES_TTL_SECONDS
    return default if own is None else own


def seconds_to_tidy(job: FineTuneJob, now: datetime, settings: Settings) -> float | None:
    """Return the seconds until the Jobs of a finished job are removed, from 0 to a year; None if they stay."""
    ttl = find_ttl(job, settings)
    if ttl is None or not job.is_finished or job.status.completion_time is None:
        return None
    left = ttl - (now - job.status.completion_time).total_seconds()
    return min(max(0.0, left), MAX_WAIT_SECONDS)
