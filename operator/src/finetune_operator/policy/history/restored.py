"""A status that is older than its FineTuneJob: a backup has restored both, and the Jobs that it names do not exist."""

from datetime import datetime, timedelta

from finetune_api.names import ConditionType, Reason
from finetune_api.status import CurrentRun, Progress
from finetune_operator.policy.decision import Context, Effect, requeue_in, set_condition
from finetune_operator.policy.history import bookkeeping, record_runs
from finetune_operator.policy.pods.rank_outcomes import End
from finetune_operator.policy.pods.run_outcome import RESULT_PREEMPTED, PodOutcome

C, R = ConditionType, Reason
SLACK = timedelta(minutes=5)
"""How much earlier than the object its conditions must have changed: the clocks of operator and API server differ."""
LOST = PodOutcome(RESULT_PREEMPTED, R.RESTORED, "the job was restored from a backup, without the pod of this run")


def close_lost_attempt(context: Context) -> Effect | None:
    """Close the attempt of a restored job without counting a failure, and run preflight again; None if it has none.

    The time between backup and restore counts neither as running nor as waiting.
    """
    status, created = context.status, context.observed.job.created
    if created is None or not _is_restored(context, created):
        return None
    if status.start_time is None and status.eligible_time and status.eligible_time < created:
        status.eligible_time = None
    is_lost = status.job_ref and all(one.uid != status.job_ref.uid for one in context.observed.own)
    if not is_lost or context.observed.children_unreadable:
        return None
    if run := status.current_run:
        record_runs.record_cut(context, run, End(LOST, None), ended=_last_sign(run, status.progress))
    bookkeeping.record_current_job(status, None)
    effect = set_condition(C.RUNNING, "False", R.BACKING_OFF, f"{LOST.reason}: {LOST.message}") + requeue_in(0)
    checked = set_condition(C.VALIDATED, "Unknown", R.PREFLIGHT_RUNNING)
    return effect + checked if context.spec.has_preflight else effect


def _is_restored(context: Context, created: datetime) -> bool:
    known = context.stored.conditions or []
    return bool(known) and all(one.last_transition_time + SLACK < created for one in known)


def _last_sign(run: CurrentRun, progress: Progress | None) -> datetime | None:
    """Return when the run was last observed."""
    reported = progress.last_updated_time if progress else None
    times = [time for time in (run.start_time, run.last_moved_time, reported) if time]
    return max(times, default=None)
