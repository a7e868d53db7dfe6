"""The bookkeeping in `status.internal`: what belongs to the current run or Job ends with it."""

from typing import Any

from finetune_api.runs import CurrentRun, Internal, JobRef
from finetune_api.status import FineTuneJobStatus


def read(status: FineTuneJobStatus) -> Internal:
    """Return the bookkeeping of a status, empty if it has none."""
    return status.internal or Internal()


def record(status: FineTuneJobStatus, **values: Any) -> None:
    """Change the values; None removes one, and a block without values is absent."""
    changed = read(status).model_copy(update=values)
    status.internal = None if changed == Internal() else changed


def record_current_run(status: FineTuneJobStatus, run: CurrentRun | None) -> None:
    """Replace the current run."""
    status.current_run = run
    record(status, heartbeat=None, pod_missing_since_time=None)


def record_current_job(status: FineTuneJobStatus, job_ref: JobRef | None) -> None:
    """Replace the current Job, of which no failure is counted yet."""
    status.job_ref = job_ref
    record(status, counted_job_failures=None)
