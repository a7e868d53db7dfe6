"""The trainer Jobs: created one after another, watched, and their ends counted."""

from collections.abc import Sequence

from finetune_api.handoff import Outcome
from finetune_api.names import Component, ConditionType, Reason
from finetune_api.status import JobRef
from finetune_operator.kube.objects import Job, Pod
from finetune_operator.kube.observed import Reading, Target
from finetune_operator.manifests.jobs import build_attempt
from finetune_operator.policy import (
    checkpoint_budget,
    counters,
    deadlines,
    pod_diagnosis,
    rank_outcomes,
    reported_preemptions,
    run_outcome,
    runs,
    suspension,
)
from finetune_operator.policy.decision import SOON_SECONDS, Draft
from finetune_operator.policy.startup import watch_start
from finetune_operator.policy.status_report import show_progress, take_lineage, take_report

C, R = ConditionType, Reason


def train(draft: Draft) -> None:
    """One step of training."""
    observed, status = draft.observed, draft.status
    attempts = [one for one in observed.own if one.component == Component.TRAINER and one.attempt]
    current = max(attempts, key=lambda one: one.attempt, default=None)
    if current and current.attempt > (status.attempts or 0):
        status.attempts = current.attempt
        status.job_ref = JobRef(name=current.name, uid=current.uid)
    reported_preemptions.count(draft, attempts)
    runs.fold(draft, attempts)
    if current:
        checkpoint_budget.check_save_time(draft, current)
    mine = current if current and status.job_ref and current.uid == status.job_ref.uid else None
    if mine and not mine.is_over:
        _note_running(draft, mine)
    is_decided = mine is not None and (mine.is_over or runs.has_succeeded(status, mine))
    if not is_decided and _is_overdue(draft, mine):
        return
    if mine:
        _ended(draft, mine) if mine.is_over else _open(draft, mine)
    elif status.job_ref:
        _deleted(draft)
    elif _too_many_failures(draft):
        draft.fail(R.BACKOFF_LIMIT_EXCEEDED, runs.last_sentence(status))
    elif _has_counted(draft):
        draft.decision.again_in(0)
    else:
        _next(draft)


def _has_counted(draft: Draft) -> bool:
    """Whether something was counted in this look, which is written before anything is done about it."""
    before, after = draft.stored, draft.status
    totals = ("runs", "failures", "preemptions")
    return any(getattr(before, name) != getattr(after, name) for name in totals)


def _note_running(draft: Draft, current: Job) -> None:
    """The first pod is the run; with many, the job has not started before all of them have."""
    pods = draft.observed.pods_of(current.uid)
    pod = _first_running(pods)
    if pod and not rank_outcomes.missing(current, pods, draft.observed.now):
        times = [one.started for one in pods if one.started]
        draft.status.start_time = draft.status.start_time or max(times)
    if pod:
        runs.note_running(draft, current, pod)


def _first_running(pods: Sequence[Pod]) -> Pod | None:
    return next((one for one in reversed(pods) if one.is_running and one.rank == 0), None)


def _is_overdue(draft: Draft, mine: Job | None) -> bool:
    """Whether a deadline ends the job; what was counted is written first, and the Job removed before that is said."""
    overdue = deadlines.exceeded(draft)
    if overdue is None or draft.observed.obstacle:
        return False
    if _has_counted(draft):
        draft.decision.again_in(0)
        return False
    draft.decision.delete = mine
    if draft.status.current_run:
        runs.cut(draft, draft.status.current_run, overdue.reason, overdue.detail)
    draft.fail(overdue.reason, overdue.detail)
    return True


def _too_many_failures(draft: Draft) -> bool:
    return (draft.status.failures or 0) > draft.spec.backoff_limit


def _too_many_preemptions(draft: Draft) -> bool:
    limit = draft.spec.max_preemptions
    return bool(limit) and (draft.status.preemptions or 0) > limit


def _end_by_count(draft: Draft) -> None:
    if _too_many_preemptions(draft):
        draft.fail(R.TOO_MANY_PREEMPTIONS, runs.last_sentence(draft.status, run_outcome.RESULT_PREEMPTED))
    else:
        draft.fail(R.BACKOFF_LIMIT_EXCEEDED, runs.last_sentence(draft.status))


def _open(draft: Draft, current: Job) -> None:
    """Watched, or removed after too many runs; these are written first, so that a lost write changes nothing."""
    is_counted = _has_counted(draft)
    has_lower_limit = _too_many_failures(draft) and current.failed_pods <= current.backoff_limit
    is_over_limit = _too_many_preemptions(draft) or has_lower_limit
    if is_over_limit and not is_counted and not draft.observed.obstacle:
        draft.decision.delete = current
        _end_by_count(draft)
        return
    _watch(draft, current)
    if is_over_limit and is_counted:
        draft.decision.again_in(0)


def _deleted(draft: Draft) -> None:
    """Somebody removed the Job before it succeeded: a failure, and a new attempt once its pods are gone."""
    observed, status = draft.observed, draft.status
    uid = status.job_ref.uid if status.job_ref else ""
    alive = [pod for pod in observed.pods_of(uid) if not pod.is_over]
    detail = "the trainer Job was deleted"
    lost = next((pod for pod in alive if pod_diagnosis.is_lost(pod, observed.now)), None)
    if lost:
        draft.conditions.set(C.RUNNING, "Unknown", R.NODE_LOST, pod_diagnosis.explain_lost_node(lost))
        draft.decision.again_in(SOON_SECONDS)
    elif alive:
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, f"{detail}; waiting until {alive[0].name} is gone")
        draft.decision.again_in(SOON_SECONDS)
    elif status.current_run:
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, detail)  # until its run is settled
    elif _too_many_preemptions(draft) or _too_many_failures(draft):
        _end_by_count(draft)  # the operator removed it, and did not come to write so
    elif runs.has_stalled(status):
        _close(draft, R.NO_PROGRESS, runs.of(status)[-1].message or "", add_failure=True)
    else:
        is_counted = draft.spec.resources.nodes > 1 and bool(status.job_ref and status.job_ref.failures)
        _close(draft, R.JOB_DELETED, detail, add_failure=not is_counted)  # it was failing already


def _ended(draft: Draft, current: Job) -> None:
    observed, status = draft.observed, draft.status
    ends = [
        rank_outcomes.End(run_outcome.judge(pod, observed.job), pod)
        for pod in observed.pods_of(current.uid)
        if pod.is_over
    ]
    firsts = [end.verdict for end in ends if end.pod and end.pod.rank == 0]
    success = next((one.report for one in firsts if one.result == run_outcome.RESULT_SUCCEEDED), None)
    if current.completed and success:
        take_report(status, success)
        take_lineage(status, success, draft.spec)
        draft.succeed(current, success, R.SUCCEEDED)
        return
    if current.completed:
        is_counted = any(one.attempt == current.attempt and one.reason == R.RESULT_MISSING for one in runs.of(status))
        detail = "the trainer Job completed without a reported result"
        _close(draft, R.RESULT_MISSING, detail, add_failure=not is_counted)
        return
    if current.nodes > 1 and (status.current_run or not all(pod.is_over for pod in observed.pods_of(current.uid))):
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, current.failed_message)  # until all is counted
        draft.decision.again_in(SOON_SECONDS)
        return
    terminal = next((end.named() for end in ends if end.verdict.is_terminal), None)
    if terminal and terminal.report:
        take_report(status, terminal.report)
        if terminal.report.outcome is Outcome.GATE_NOT_MET:
            take_lineage(status, terminal.report, draft.spec)
    if terminal:
        draft.fail(terminal.reason, terminal.message, current, terminal.report)
    elif current.failed_reason == "BackoffLimitExceeded" and _may_go_on(draft, current):
        _close(draft, *_why_again(draft, current), add_failure=False)
    elif current.failed_reason == "BackoffLimitExceeded":
        draft.fail(R.BACKOFF_LIMIT_EXCEEDED, runs.last_sentence(status), current)
    else:
        reason = run_outcome.reason_of_failed_job(current) or current.failed_reason or R.CONTAINER_ERROR
        draft.fail(reason, current.failed_message, current)


def _may_go_on(draft: Draft, current: Job) -> bool:
    """Whether the Job has used up the limit that it was created with, and the user allows more by now."""
    counted = (draft.status.job_ref and draft.status.job_ref.failures) or 0
    return counted > current.backoff_limit and not _too_many_failures(draft)


def _why_again(draft: Draft, current: Job) -> tuple[str, str]:
    """With many pods every failure ends the Job; one pod is replaced within it until its limit is used up."""
    if current.nodes == 1:
        return R.BACKOFF_LIMIT_EXCEEDED, "backoffLimit was raised meanwhile"
    reason, _, message = runs.last_sentence(draft.status, run_outcome.RESULT_FAILED).partition(": ")
    return reason or R.UNOBSERVED, message or "nobody saw which pod failed"


def _close(draft: Draft, reason: str, detail: str, *, add_failure: bool) -> None:
    """Ends an attempt that is not the last word: counted and written first, replaced in the next look."""
    status = draft.status
    if add_failure:
        counters.add_failures(status, reason)
    status.job_ref = status.current_run = None
    if status.failures and status.failures > draft.spec.backoff_limit:
        draft.fail(R.BACKOFF_LIMIT_EXCEEDED, f"{reason}: {detail}")
        return
    draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, f"{reason}: {detail}")
    draft.decision.again_in(0)


def _next(draft: Draft) -> None:
    number = (draft.status.attempts or 0) + 1
    if number == 1 and not draft.is_blocked:
        draft.conditions.set(C.RUNNING, "False", R.PODS_STARTING)
    draft.create(build_attempt(draft.with_status().job, draft.settings, _image(draft), number))


def _image(draft: Draft) -> str:
    """The image of the first run, unless the user has named another one since."""
    pinned = draft.status.lineage.trainer_image if draft.status.lineage else None
    asked = draft.spec.trainer.image
    first = next((one.image for one in draft.observed.own if one.component == Component.PREFLIGHT), None)
    if pinned and (asked is None or asked == first):
        return pinned
    return asked or draft.settings.trainer_image


def _watch(draft: Draft, current: Job) -> None:
    observed, status = draft.observed, draft.status
    pods = observed.pods_of(current.uid)
    pod = _first_running(pods)
    if suspension.is_held(draft, current, pods):
        return
    if any(one.is_running and one.deleting for one in pods):
        draft.decision.again_in(pod_diagnosis.LOST_SECONDS)
    is_there = pod is not None and not pod_diagnosis.is_lost(pod, observed.now)
    if pod and is_there and pod.ip:
        draft.decision.follow = Target(observed.job.uid, pod.uid, pod.name, pod.ip)
    reading = observed.reading if pod and observed.reading and observed.reading.pod_uid == pod.uid else None
    if is_there and reading and reading.report:
        show_progress(status, reading.report, reading.at)
    run = status.current_run
    is_stopping = run is not None and run.stopping == R.NO_PROGRESS
    is_alone = bool(rank_outcomes.missing(current, pods, observed.now))
    if is_there and is_alone and run:
        run.heartbeat = run.last_moved_time = None  # who waits for others does not stall
    if not is_there or (is_alone and not is_stopping):
        watch_start(draft, current, pods)
        return
    _say_running(draft, current, reading)
    if is_stopping or (reading and deadlines.is_stalled(draft, reading)):
        _restart(draft, current)


def _say_running(draft: Draft, current: Job, reading: Reading | None) -> None:
    if reading and reading.unreachable_since and pod_diagnosis.is_unreachable(reading, draft.observed.now):
        draft.conditions.set(C.RUNNING, "True", R.UNREACHABLE, reading.problem)
    else:
        who = "The trainer pod runs" if current.nodes == 1 else f"All {current.nodes} trainer pods run"
        draft.conditions.set(C.RUNNING, "True", R.PODS_RUNNING, who)


def _restart(draft: Draft, current: Job) -> None:
    """The Job is removed once it is written why; its pod's end is then a failure, whatever it says."""
    run, progress = draft.status.current_run, draft.status.progress
    if run is None:
        return
    run.stopping = R.NO_PROGRESS
    where = f"{progress.stage or 'an unknown stage'}, step {progress.step or 0}" if progress else "an unknown stage"
    draft.conditions.set(C.RUNNING, "False", R.NO_PROGRESS, f"{draft.spec.stall_timeout_seconds} s ({where})")
    if draft.stored.current_run is None or draft.stored.current_run.stopping != R.NO_PROGRESS:
        draft.decision.again_in(0)
    elif not draft.observed.obstacle:
        draft.decision.delete = current
        draft.decision.again_in(SOON_SECONDS)
