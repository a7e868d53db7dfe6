"""Create and watch the trainer Jobs, one after another, and count their ends."""

from collections.abc import Sequence

from finetune_api.names import Component, ConditionType, Reason
from finetune_api.status import JobRef, Progress
from finetune_operator.kube.objects import Job
from finetune_operator.kube.observed import Target
from finetune_operator.kube.pod import Pod
from finetune_operator.manifests.jobs import build_attempt
from finetune_operator.policy import deadlines, edits, endings, suspension
from finetune_operator.policy.checkpoint_budget import check_save_time
from finetune_operator.policy.decision import (
    OBSTACLE_SECONDS,
    SOON_SECONDS,
    Context,
    Effect,
    check_lost_node,
    create_job,
    fail,
    requeue_in,
    set_condition,
    show_early_stopping,
)
from finetune_operator.policy.history import (
    bookkeeping,
    clocks,
    record_runs,
    rejections,
    reported_preemptions,
    runs,
)
from finetune_operator.policy.liveness import describe_place, show_running
from finetune_operator.policy.pods import lingering, pod_diagnosis, rank_outcomes, run_outcome
from finetune_operator.policy.startup import watch_start
from finetune_operator.policy.status_report import (
    record_image,
    record_progress,
)

C, R = ConditionType, Reason


def train(context: Context) -> Effect:
    """Return the next step of training, after recording what was observed."""
    status = context.status
    attempts = [one for one in context.observed.own if one.is_attempt]
    current = max(attempts, key=lambda one: one.attempt, default=None)
    if current and current.attempt > (status.attempts or 0):
        _record_attempt(context, current)
    _pin_image(context, attempts)
    reported_preemptions.record_preemptions(context, attempts)
    effect = record_runs.record_ended(context, attempts)
    if current:
        effect += check_save_time(context, current) + edits.announce(context, current)
    job = current if current and status.job_ref and current.uid == status.job_ref.uid else None
    surplus = _find_surplus(attempts, job)
    if surplus and not context.observed.obstacle:
        return effect + Effect(delete=surplus) + requeue_in(SOON_SECONDS)
    if job and not job.is_over:
        _record_start(context, job)
    if job and (job.is_over or runs.has_succeeded(status, job)):
        return effect + _next_step(context, job)
    effect += _before_deadline(context, job)
    return effect + (_show_refusal(context, surplus) if surplus and job is None else Effect())


def _show_refusal(context: Context, job: Job) -> Effect:
    return suspension.show_refused_stop(context, context.observed.pods_of(job.uid))


def _find_surplus(attempts: Sequence[Job], job: Job | None) -> Job | None:
    """Return an attempt that is closed or not the current one, but open, so that its pods could still train."""
    return next((one for one in attempts if one is not job and not one.is_over and not one.is_deleting), None)


def _record_attempt(context: Context, current: Job) -> None:
    context.status.attempts = current.attempt
    bookkeeping.record_current_job(context.status, JobRef(name=current.name, uid=current.uid))


def _pin_image(context: Context, attempts: Sequence[Job]) -> None:
    """Pin the image of the first trainer that has started, unless preflight's was pinned."""
    if context.status.lineage and context.status.lineage.trainer_image:
        return
    pods = ((job, pod) for job in attempts for pod in context.observed.pods_of(job.uid))
    if started := next(((job, pod) for job, pod in pods if pod.image_id), None):
        job, pod = started
        record_image(context.status, pod.pin_image(job.image))


def _record_start(context: Context, current: Job) -> None:
    """Record the pod of rank 0 as the run; the job starts once the pods of all ranks have started."""
    pods = context.observed.pods_of(current.uid)
    pod = _first_running(pods)
    if pod and not rank_outcomes.missing_ranks(current, pods, context.observed.now):
        times = [time for one in pods if (time := clocks.run_times(one, pods, context.observed.now)[0])]
        context.status.start_time = context.status.start_time or max(times)
    if pod:
        record_runs.record_running(context, current, pod)


def _first_running(pods: Sequence[Pod]) -> Pod | None:
    return next((one for one in reversed(pods) if one.is_running and one.rank == 0), None)


def _before_deadline(context: Context, job: Job | None) -> Effect:
    """End the job at its deadline: write counts first, then delete the Job, then write the end."""
    deadline = deadlines.next_deadline(context)
    if deadline is None or not deadline.is_exceeded:
        return (deadline.wait() if deadline else Effect()) + _next_step(context, job)
    if context.observed.obstacle:
        step = _next_step(context, job)
        return step + (_show_refusal(context, job) if job and not job.is_over else Effect())
    if _has_counted(context):
        return requeue_in(0) + _next_step(context, job)
    _record_stopped(context, deadline.reason, deadline.detail)
    return Effect(delete=job) + deadlines.end_job(context, deadline)


def _record_stopped(context: Context, reason: Reason, detail: str) -> None:
    """Record the current run, if there is one, as ended by the operator, which removes its Job next."""
    if context.status.current_run:
        outcome = run_outcome.PodOutcome(run_outcome.RESULT_FAILED, reason, detail)
        record_runs.record_cut(context, context.status.current_run, rank_outcomes.End(outcome, None))


def _next_step(context: Context, job: Job | None) -> Effect:
    if job:
        return endings.end_attempt(context, job) if job.is_over else _continue(context, job)
    if context.status.job_ref:
        return _replace_deleted(context, context.status.job_ref)
    if endings.has_too_many_failures(context):
        last = (
            runs.last_sentence(context.status) or f"{R.JOB_DELETED}: the {endings.name_kind(context)} Job was deleted"
        )
        return fail(context, R.BACKOFF_LIMIT_EXCEEDED, last)
    if _has_counted(context):
        return requeue_in(0)
    left = rejections.seconds_to_wait(context)
    return requeue_in(left) if left > 0 else _start_attempt(context)


def _has_counted(context: Context) -> bool:
    """Return whether this reconcile has counted something, which must be written before the next action."""
    before, after = context.stored, context.status
    return (before.runs, before.failures, before.preemptions) != (after.runs, after.failures, after.preemptions)


def _continue(context: Context, current: Job) -> Effect:
    """Watch the Job, delete it after too many runs, once their count is written, or close it for an edited spec."""
    is_failed = endings.has_too_many_failures(context) and not _fails_by_itself(context, current)
    is_used_up = endings.has_too_many_preemptions(context) or is_failed
    cause = None if is_used_up else edits.find_cause(context, current)
    if not is_used_up and not cause:
        return _end_lingering(context, current) or _watch(context, current)
    if _has_counted(context):
        return _watch(context, current) + requeue_in(0)
    if cause:
        return endings.close(context, *cause, add_failure=False)
    if context.observed.obstacle:
        return _watch(context, current) + _show_refusal(context, current)
    end = endings.end_by_count(context)  # by the last run, which is not this one
    is_preempted = endings.has_too_many_preemptions(context)
    reason = R.TOO_MANY_PREEMPTIONS if is_preempted else R.BACKOFF_LIMIT_EXCEEDED
    _record_stopped(context, reason, "stopped, because the limit was exceeded before")
    return Effect(delete=current) + end


def _fails_by_itself(context: Context, current: Job) -> bool:
    """Return whether the Job controller is about to fail the Job, which then keeps its pods with their logs.

    It counts a pod about a second after its end is observed.
    """
    counted = max(current.failed_pods, runs.count_failures(context.status, current))
    is_replaced = current.nodes == 1 and any(not pod.is_over for pod in context.observed.pods_of(current.uid))
    return counted > current.backoff_limit and not is_replaced


def _end_lingering(context: Context, current: Job) -> Effect | None:
    """End a Job that only containers of others keep open, once all counts are written; None if it is not one."""
    recorded = {run.pod_uid: run.end_time for run in runs.history(context.status) if run.end_time}
    left = lingering.seconds_left(context.observed.pods_of(current.uid), context.observed.now, recorded)
    if left is None or current.is_suspended or context.spec.suspend:
        return None
    if left > 0 or _has_counted(context) or context.status.current_run:
        return _watch(context, current) + requeue_in(left or SOON_SECONDS)
    if context.observed.obstacle:
        return _watch(context, current) + _show_refusal(context, current)
    return endings.end_lingering(context, current)


def _replace_deleted(context: Context, job_ref: JobRef) -> Effect:
    """Wait until the pods of a deleted Job are gone and the end of its run is recorded, then end the attempt."""
    alive = [pod for pod in context.observed.pods_of(job_ref.uid) if not pod.is_over]
    detail = f"the {endings.name_kind(context)} Job was deleted"
    if lost := check_lost_node(context, alive):
        return lost + requeue_in(OBSTACLE_SECONDS)
    if alive:
        waiting = f"{detail}; waiting until {alive[0].name} is gone"
        return set_condition(C.RUNNING, "False", R.BACKING_OFF, waiting) + requeue_in(OBSTACLE_SECONDS)
    if context.status.current_run:  # its end is not recorded yet
        return set_condition(C.RUNNING, "False", R.BACKING_OFF, detail)
    return endings.end_proven(context, job_ref) or endings.end_deleted(context, detail)


def _start_attempt(context: Context) -> Effect:
    number = (context.status.attempts or 0) + 1
    is_first = number == 1 and not context.is_blocked
    effect = set_condition(C.RUNNING, "False", R.PODS_STARTING) if is_first else Effect()
    return effect + create_job(context, build_attempt(context.job, context.settings, _image(context), number))


def _image(context: Context) -> str:
    """Return the image of the first run, unless the user has named another one in the meantime."""
    pinned = context.status.lineage.trainer_image if context.status.lineage else None
    asked = context.spec.trainer.image
    first = next((one.image for one in context.observed.own if one.component == Component.PREFLIGHT), None)
    if pinned and (asked is None or asked == first):
        return pinned
    return asked or context.settings.trainer_image


def _watch(context: Context, current: Job) -> Effect:
    observed, status = context.observed, context.status
    pods = observed.pods_of(current.uid)
    held = suspension.hold_or_release(context, current, pods)
    if held is not None:
        return held
    is_stopping_pod = any(one.is_running and one.deleting for one in pods)
    effect = requeue_in(pod_diagnosis.LOST_SECONDS) if is_stopping_pod else Effect()
    pod = _first_running(pods)
    if pod is None or pod_diagnosis.is_lost(pod, observed.now):
        return effect + watch_start(context, current, pods)
    if pod.ip:
        effect += Effect(follow=Target(observed.job.uid, pod.uid, pod.name, pod.ip))
    reading = observed.reading if observed.reading and observed.reading.pod_uid == pod.uid else None
    if reading and reading.report:
        record_progress(status, reading.report, reading.at)
    run = status.current_run
    is_restarting = run is not None and run.stopping_reason == R.NO_PROGRESS
    if rank_outcomes.missing_ranks(current, pods, observed.now):
        deadlines.record_waiting(context)
        if not is_restarting:
            return effect + watch_start(context, current, pods)
    if reading and not is_restarting:
        deadlines.record_heartbeat(context, reading)
        is_restarting = deadlines.is_stalled(context, reading)
    effect += show_running(context, current, pod, reading) + show_early_stopping(context)
    return effect + (_restart(context, current) if is_restarting else Effect())


def _record_stall(context: Context) -> None:
    if run := context.status.current_run:
        run.stopping_reason = R.NO_PROGRESS


def _restart(context: Context, current: Job) -> Effect:
    """Delete a stalled Job once the cause is written; the end of its pod then counts as a failure with any exit
    code."""
    progress, stored = context.status.progress or Progress(), context.stored.current_run
    _record_stall(context)
    detail = f"{context.spec.stall_timeout_seconds} s ({describe_place(progress)})"
    effect = set_condition(C.RUNNING, "False", R.NO_PROGRESS, detail)
    if stored is None or stored.stopping_reason != R.NO_PROGRESS:
        return effect + requeue_in(0)
    if context.observed.obstacle:
        return effect + _show_refusal(context, current)
    return effect + Effect(delete=current) + requeue_in(SOON_SECONDS)
