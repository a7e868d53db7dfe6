"""The history of a job in chronological order: created, accepted, checked, each run, and its end."""

from dataclasses import dataclass, replace
from datetime import datetime

from finetune_api.names import ConditionType
from finetune_api.runs import CurrentRun, Run
from finetune_client.cluster.job import Job
from kubectl_finetune.display.table import between, moment

_SHOWN = (ConditionType.ACCEPTED, ConditionType.VALIDATED, ConditionType.QUOTA_RESERVED)


@dataclass(frozen=True)
class Moment:
    """One event; without a time if it was not observed."""

    time: datetime | None
    took: str
    what: str
    detail: str

    def row(self) -> tuple[str, str, str, str]:
        """Return the moment as cells."""
        return moment(self.time), self.took, self.what, self.detail


def moments(job: Job, now: datetime) -> list[Moment]:
    """Return the events in the status, oldest first."""
    status = job.status
    found = [Moment(job.created, "", "created", "")]
    found += [_condition(job, kind) for kind in _SHOWN if status.is_true(kind)]
    found += [_run(run) for run in status.history or []]
    if status.current_run:
        found.append(_current(status.current_run, job, now))
    if status.checkpoint:
        found.append(Moment(status.checkpoint.saved_time, "", "checkpoint", f"step {status.checkpoint.step}"))
    for kind in (ConditionType.COMPLETE, ConditionType.FAILED):
        if status.is_true(kind):
            found.append(_end(job, kind))
    known = [one for one in found if one.time]
    return sorted(known, key=lambda one: str(one.time)) + [one for one in found if not one.time]


def _condition(job: Job, kind: ConditionType) -> Moment:
    found = job.status.condition(kind)
    assert found is not None  # noqa: S101 - a true condition exists
    return Moment(found.last_transition_time, "", kind.value.lower(), found.message)


def _run(run: Run) -> Moment:
    parts = [run.reason if run.reason != run.result else ""]
    parts.append(f"exit code {run.exit_code}" if run.exit_code else "")
    if run.last_step is not None:
        parts.append(f"steps {run.resumed_from_step or 0} to {run.last_step}")
    parts += [f"on {run.node_name}" if run.node_name else "", run.message or ""]
    what = f"run {run.run} (attempt {run.attempt}) {run.result}"
    return Moment(run.start_time, between(run.start_time, run.end_time), what, "; ".join(filter(None, parts)))


def _current(run: CurrentRun, job: Job, now: datetime) -> Moment:
    progress = job.status.progress
    parts = [f"pod {run.pod_name}", f"on {run.node_name}" if run.node_name else ""]
    if progress and progress.resumed_from_step:
        parts.append(f"resumed from step {progress.resumed_from_step}")
    parts.append(f"stopping: {run.stopping_reason}" if run.stopping_reason else "")
    what = f"run {(job.status.runs or 0) + 1} (attempt {run.attempt}) runs"
    return Moment(run.start_time, between(run.start_time, now), what, "; ".join(filter(None, parts)))


def _end(job: Job, kind: ConditionType) -> Moment:
    found = _condition(job, kind)
    time = job.status.completion_time or found.time
    return replace(found, time=time, took=between(job.created, time))
