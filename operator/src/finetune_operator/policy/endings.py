"""How an attempt ends: as the job, or closed so that the next one begins; every count is written first."""

from collections.abc import Sequence
from datetime import datetime

from finetune_api.handoff import Outcome, Report
from finetune_api.names import Component, ConditionType, Reason
from finetune_api.status import FineTuneJobStatus, JobRef, TrainedWeights
from finetune_operator.kube.objects import Job
from finetune_operator.manifests.jobs import count_failures, count_nodes
from finetune_operator.policy import suspension
from finetune_operator.policy.decision import (
    SOON_SECONDS,
    Context,
    Effect,
    fail,
    requeue_in,
    set_condition,
    succeed,
)
from finetune_operator.policy.history import (
    bookkeeping,
    broken_gpus,
    clocks,
    counters,
    preemptions,
    rejections,
    run_ends,
    runs,
)
from finetune_operator.policy.pods import lingering, rank_outcomes, run_outcome
from finetune_operator.policy.status_report import (
    dataset_sentence,
    find_difference,
    record_lineage,
    record_report,
)

C, R = ConditionType, Reason


def end_attempt(context: Context, current: Job) -> Effect:
    """Complete or fail the job by a Job that has ended, or close the attempt."""
    pods = context.observed.pods_of(current.uid)
    ends = [rank_outcomes.End(context.outcome_of(pod), pod) for pod in pods if pod.is_over]
    if run_ends.is_pod_missing(context):  # its run is recorded by the Job's end within seconds, and with it its time
        reason = R.FINISHED if current.completed else R.BACKING_OFF
        return set_condition(C.RUNNING, "False", reason, current.failed_message)
    if current.completed:
        return _end_completed(context, current, [end.outcome for end in ends if end.pod and end.pod.rank == 0])
    if current.nodes > 1 and (context.status.current_run or len(ends) < len(pods)):  # until all is counted
        waiting = set_condition(C.RUNNING, "False", R.BACKING_OFF, current.failed_message)
        return waiting + requeue_in(SOON_SECONDS)
    terminal = next((end.named() for end in ends if end.outcome.is_terminal), None)
    if terminal:
        return _end_terminal(context, current, terminal)
    if broken := broken_gpus.record_fault(context, current, ends):
        return close(context, R.GPU_FAULT, broken, add_failure=False)
    return _end_used_up(context, current)


def end_lingering(context: Context, current: Job) -> Effect:
    """End an attempt whose Job never ends, because containers of others run on in its pods; every run is counted."""
    pods = context.observed.pods_of(current.uid)
    ends = [rank_outcomes.End(context.outcome_of(pod), pod) for pod in pods]
    if proven := end_proven(context, JobRef(name=current.name, uid=current.uid)):
        return Effect(delete=current) + proven
    if terminal := next((end.named() for end in ends if end.outcome.is_terminal), None):
        return Effect(delete=current) + _end_terminal(context, None, terminal)
    broken = broken_gpus.record_fault(context, current, ends)
    reason, _, message = runs.last_sentence(context.status).partition(": ")
    cause = (R.GPU_FAULT, broken) if broken else (reason, f"{message}; {lingering.describe(pods)}")
    # Else it is removed next, as one that is closed, but open.
    removed = Effect(delete=current) if has_too_many_failures(context) else Effect()
    return removed + close(context, *cause, add_failure=False)


def end_deleted(context: Context, detail: str) -> Effect:
    """Count a Job that was deleted before it succeeded as a failure, and start again."""
    status = context.status
    if has_too_many_preemptions(context) or has_too_many_failures(context):
        return end_by_count(context)  # the operator removed it, and stopped before it wrote the end
    if runs.has_stalled(status):
        return close(context, R.NO_PROGRESS, runs.history(status)[-1].message or "", add_failure=True)
    is_counted = _has_failed_together(context, count_nodes(context.job, 1))
    if runs.has_ended_by_deletion(status):
        return close(context, R.JOB_DELETED, detail, add_failure=not is_counted)
    return _check_again(context, R.JOB_DELETED, detail, add_failure=not is_counted)


def end_proven(context: Context, job_ref: JobRef) -> Effect | None:
    """Return the end that the first pod of a deleted Job has reported, if that is final."""
    pods = [pod for pod in context.observed.pods_of(job_ref.uid) if pod.is_over and pod.rank == 0]
    for pod in pods:
        outcome = context.outcome_of(pod)
        if outcome.report and outcome.is_proven and outcome.is_terminal:
            return _end_terminal(context, None, outcome)
        if outcome.report and outcome.is_proven and _is_result(context, outcome.report):
            return _finish(context, outcome.report, clocks.run_times(pod, pods, context.observed.now)[1])
    return None


def end_by_count(context: Context) -> Effect:
    """Fail the job for the limit that its runs have exceeded."""
    if excess := preemptions.explain_excess(context.status, context.spec.max_preemptions):
        last = runs.last_sentence(context.status, run_outcome.RESULT_PREEMPTED)
        return fail(context, R.TOO_MANY_PREEMPTIONS, f"{excess}; the last: {last}")
    return fail(context, R.BACKOFF_LIMIT_EXCEEDED, runs.last_sentence(context.status))


def close(context: Context, reason: str, detail: str, *, add_failure: bool) -> Effect:
    """End an attempt that is not the last: write its count first; the next reconcile creates the next attempt."""
    _record_closed(context, reason if add_failure else None)
    if has_too_many_failures(context):
        return fail(context, R.BACKOFF_LIMIT_EXCEEDED, f"{reason}: {detail}")
    return set_condition(C.RUNNING, "False", R.BACKING_OFF, f"{reason}: {detail}") + requeue_in(0)


def has_too_many_failures(context: Context) -> bool:
    """Return whether `backoffLimit` is exceeded."""
    return count_failures(context.status) > context.spec.backoff_limit


def has_too_many_preemptions(context: Context) -> bool:
    """Return whether `maxPreemptions`, or the limit of preemptions without progress, is exceeded."""
    return bool(preemptions.explain_excess(context.status, context.spec.max_preemptions))


def name_kind(context: Context) -> str:
    """Return which kind of Job the current attempt has, for messages."""
    return "merge" if context.status.trained_weights else "trainer"


def _end_used_up(context: Context, current: Job) -> Effect:
    """End an attempt whose Job has failed, and the job unless its own limits allow another attempt."""
    if has_too_many_preemptions(context):
        return end_by_count(context)
    if _may_retry(context, current):
        return close(context, *_why_again(context, current), add_failure=False)
    reason, detail = R.BACKOFF_LIMIT_EXCEEDED.value, runs.last_sentence(context.status)
    if current.failed_reason != "BackoffLimitExceeded":
        reason = run_outcome.reason_of_failed_job(current) or current.failed_reason or R.CONTAINER_ERROR
        detail = run_outcome.explain_foreign_deadline(current) or current.failed_message
    return fail(context, reason, detail, current)


def _end_completed(context: Context, current: Job, outcomes: Sequence[run_outcome.PodOutcome]) -> Effect:
    """Complete the job if its first pod has proved the result, else count a failure."""
    status = context.status
    success = next((one.report for one in outcomes if one.result == run_outcome.RESULT_SUCCEEDED), None)
    if success and _is_result(context, success):
        return _finish(context, success, current.completed)
    known = [one for one in runs.history(status) if one.attempt == current.attempt]
    is_counted = any(one.reason == R.RESULT_MISSING for one in known) or _has_failed_together(context, current.nodes)
    detail = f"the {name_kind(context)} Job completed without a reported result"
    if not outcomes:  # its pod is gone
        return _check_again(context, R.RESULT_MISSING, detail, add_failure=not is_counted)
    return close(context, R.RESULT_MISSING, detail, add_failure=not is_counted)


def _has_failed_together(context: Context, nodes: int) -> bool:
    """Return whether one of several pods has failed: that was the attempt's one failure."""
    return nodes > 1 and bool(bookkeeping.read(context.status).counted_job_failures)


def _finish(context: Context, report: Report, completed: datetime | None) -> Effect:
    """Complete the job with what its first pod has reported, or continue with the merge."""
    if report.outcome is Outcome.TRAINED:
        return _hand_over(context, report)
    if difference := find_difference(context.status, report):
        refused = fail(context, R.DATASET_UNUSABLE, f"the result is not accepted: {difference}")
        return refused + Effect(completion_time=completed)
    record_report(context.status, report)
    record_lineage(context.status, report, context.spec)
    checked = set_condition(C.VALIDATED, "True", R.DATASET_VALID, dataset_sentence(report.dataset))
    effect = Effect() if context.spec.has_preflight else checked
    return effect + succeed(context, completed, report, R.ADOPTED if report.outcome is Outcome.ADOPTED else R.SUCCEEDED)


def _is_result(context: Context, report: Report) -> bool:
    """Return whether a report ends the training or the job; a merge cannot end the training again."""
    return report.outcome is not Outcome.TRAINED or context.status.trained_weights is None


def _hand_over(context: Context, report: Report) -> Effect:
    """Record that the training is stored; the next attempt is a merge, which holds no GPU."""
    record_report(context.status, report)
    _record_trained(context.status, report)
    _record_closed(context, None)
    return set_condition(C.RUNNING, "False", R.TRAINED) + requeue_in(0)


def _record_trained(status: FineTuneJobStatus, report: Report) -> None:
    if report.checkpoint:
        status.trained_weights = TrainedWeights(**report.checkpoint.model_dump())
        bookkeeping.record(status, failures_before_merge=status.failures, unsaved_preemptions=None)


def _end_terminal(context: Context, current: Job | None, outcome: run_outcome.PodOutcome) -> Effect:
    """Fail the job for a reason that a retry would not change."""
    report = outcome.report
    if report:
        record_report(context.status, report)
    if report and report.outcome is Outcome.GATE_NOT_MET:
        record_lineage(context.status, report, context.spec)
    return fail(context, outcome.reason, outcome.message, current, report)


def _may_retry(context: Context, current: Job) -> bool:
    """Return whether only the Job has used up its limit: by rejected pods, or because the user has raised the job's."""
    if current.failed_reason != "BackoffLimitExceeded":
        return False
    counted = bookkeeping.read(context.status).counted_job_failures or 0
    return counted > current.backoff_limit and not has_too_many_failures(context)


def _why_again(context: Context, current: Job) -> tuple[str, str]:
    """Return the reason of the next attempt: one pod is replaced within its Job up to the limit, several fail with
    it."""
    if rejections.count_last(context.status):
        reason, _, message = runs.last_sentence(context.status).partition(": ")
        return reason, message
    if current.nodes == 1:
        return R.BACKOFF_LIMIT_EXCEEDED, "backoffLimit was raised in the meantime"
    reason, _, message = runs.last_sentence(context.status, run_outcome.RESULT_FAILED).partition(": ")
    return reason or R.UNOBSERVED, message or "the pod that failed was not observed"


def _check_again(context: Context, reason: Reason, detail: str, *, add_failure: bool) -> Effect:
    """Run preflight again, which holds no GPU: the last pod may have published, and preflight adopts its result."""
    effect = set_condition(C.RUNNING, "False", R.BACKING_OFF, f"{reason}: {detail}")
    if context.observed.obstacle:
        return effect + suspension.show_refused_stop(context, ())
    own = context.observed.own
    passed = next((one for one in own if one.component == Component.PREFLIGHT and not one.is_deleting), None)
    _record_closed(context, reason if add_failure else None)
    if context.spec.has_preflight:
        effect += set_condition(C.VALIDATED, "Unknown", R.PREFLIGHT_RUNNING)
    return effect + Effect(delete=passed) + requeue_in(0)


def _record_closed(context: Context, failure: str | None) -> None:
    if failure:
        counters.add_failures(context.status, failure)
    bookkeeping.record_current_run(context.status, None)
    bookkeeping.record_current_job(context.status, None)
