"""The history of a job's runs, as its status has it."""

from datetime import datetime

from finetune_api.names import Reason
from finetune_api.status import CurrentRun, FineTuneJobStatus, Run
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.history import bookkeeping
from finetune_operator.policy.pods.run_outcome import RESULT_FAILED, RESULT_SUCCEEDED

HISTORY = 10


def history(status: FineTuneJobStatus) -> list[Run]:
    """Return the recorded runs, oldest first."""
    return status.history or []


def is_counted(
    status: FineTuneJobStatus, pod_uid: str, ended: datetime | None, created: datetime | None = None
) -> bool:
    """Return whether a run is in the history, or older than all of a full history."""
    known = history(status)
    if any(run.pod_uid == pod_uid for run in known):
        return True
    oldest = known[0] if len(known) >= HISTORY else None
    if oldest is None:
        return False
    is_before = bool(oldest.start_time and created and created < oldest.start_time)
    return is_before or bool(oldest.end_time and ended and ended <= oldest.end_time)


def current_run_of(status: FineTuneJobStatus, pod: Pod) -> CurrentRun | None:
    """Return the current run if it is of that pod."""
    return status.current_run if status.current_run and status.current_run.pod_uid == pod.uid else None


def count_failures(status: FineTuneJobStatus, child: Job) -> int:
    """Return how many failed pods of that Job are counted."""
    if status.job_ref and status.job_ref.uid == child.uid:
        return bookkeeping.read(status).counted_job_failures or 0
    return sum(run.attempt == child.attempt and run.result == RESULT_FAILED for run in history(status))


def has_succeeded(status: FineTuneJobStatus, child: Job) -> bool:
    """Return whether a run of that Job has published; the Job completes within seconds."""
    return any(run.attempt == child.attempt and run.result == RESULT_SUCCEEDED for run in history(status))


def has_stalled(status: FineTuneJobStatus) -> bool:
    """Return whether the operator stopped the last run because it made no progress."""
    known = history(status)
    return bool(known) and known[-1].reason == Reason.NO_PROGRESS and known[-1].attempt == status.attempts


def has_ended_by_deletion(status: FineTuneJobStatus) -> bool:
    """Return whether the deletion of the Job is observed to have ended its last pod, which then published nothing."""
    known = history(status)
    return bool(known) and known[-1].reason == Reason.JOB_DELETED and bool(known[-1].exit_code)


def last_sentence(status: FineTuneJobStatus, result: str | None = None) -> str:
    """Return reason and message of the last run, or of the last one with that result."""
    known = [run for run in history(status) if result in {None, run.result}]
    return f"{known[-1].reason}: {known[-1].message or ''}".rstrip(": ") if known else ""
