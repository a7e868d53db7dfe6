"""Create and watch the preflight Job, and record its results on dataset, model and storage."""

from collections.abc import Sequence

from finetune_api.handoff import Outcome, Report
from finetune_api.names import Component, ConditionType, Reason
from finetune_operator.kube.images import repository
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.manifests.jobs import build_preflight
from finetune_operator.policy import deadlines, edits, suspension
from finetune_operator.policy.decision import (
    SOON_SECONDS,
    Context,
    Effect,
    create_job,
    fail,
    requeue_in,
    set_condition,
    succeed,
)
from finetune_operator.policy.history import bookkeeping, preemptions, preflight_runs
from finetune_operator.policy.pods import lingering, run_outcome
from finetune_operator.policy.startup import watch_start
from finetune_operator.policy.status_report import (
    dataset_sentence,
    record_dataset,
    record_image,
    record_lineage,
    record_report,
)

C, R = ConditionType, Reason
MAX_UNREAD = 3
"""How often a preflight is run again whose report was not found."""


def check(context: Context) -> tuple[bool, Effect]:
    """Return whether preflight has passed, and the next step."""
    own = context.observed.own
    child = next((one for one in own if one.component == Component.PREFLIGHT and not one.is_deleting), None)
    has_started = child is not None or not context.spec.suspend
    pods = context.observed.pods_of(child.uid) if child else ()
    reason = R.PREFLIGHT_RUNNING if has_started else R.PENDING
    effect = set_condition(C.VALIDATED, "Unknown", reason, prefix=_describe_failures(context, pods))
    deadline = deadlines.next_deadline(context)
    if deadline:
        effect += deadline.wait()
    if child is None:
        return False, effect + _begin(context, deadline)
    preflight_runs.record_preflight(context, pods)
    passed = next(((pod, report) for pod in pods if (report := _passing_report(context, pod))), None)
    left = lingering.seconds_left(pods, context.observed.now)
    if passed and (child.completed or passed[1].outcome is Outcome.VALIDATED or left == 0):
        has_passed, result = _pass(context, child, *passed)
        return has_passed, effect + result
    if child.is_over:
        return False, effect + _fail(context, child, pods)
    if left is not None and not context.spec.suspend:
        return False, effect + _end_lingering(context, child, pods, left)
    if cause := edits.find_cause(context, child):
        shown = set_condition(C.RUNNING, "False", R.BACKING_OFF, ": ".join(cause))
        return False, effect + shown + Effect(delete=child) + requeue_in(SOON_SECONDS)
    effect += edits.announce(context, child)
    return False, effect + _watch(context, child, pods, deadline)


def _describe_failures(context: Context, pods: Sequence[Pod]) -> str:
    """Return why pods of a preflight that is tried again have failed, as a sentence before its message."""
    outcomes = [context.outcome_of(pod) for pod in pods if pod.is_over and not pod.deleting]
    failed = [one for one in outcomes if one.result == run_outcome.RESULT_FAILED]
    if not failed:
        return ""
    count = "A pod of preflight failed" if len(failed) == 1 else f"{len(failed)} pods of preflight failed, the last"
    return f"{count}: {failed[-1].reason}: {failed[-1].message.rstrip('.')}. "


def _begin(context: Context, deadline: deadlines.Deadline | None) -> Effect:
    if deadline and deadline.is_exceeded:
        return deadlines.end_job(context, deadline)
    image = context.spec.trainer.image or context.settings.preflight_image or context.settings.trainer_image
    return create_job(context, build_preflight(context.observed.job, context.settings, image))


def remove_lingering(context: Context) -> Effect:
    """Remove a preflight that has passed, and whose Job only containers of others keep open."""
    own = context.observed.own
    child = next((one for one in own if one.component == Component.PREFLIGHT), None)
    if child is None or child.is_over or child.is_deleting or context.observed.obstacle:
        return Effect()
    left = lingering.seconds_left(context.observed.pods_of(child.uid), context.observed.now)
    if left is None:
        return Effect()
    return requeue_in(left) if left > 0 else Effect(delete=child) + requeue_in(SOON_SECONDS)


def _watch(context: Context, child: Job, pods: Sequence[Pod], deadline: deadlines.Deadline | None) -> Effect:
    """End a preflight that is late or was preempted too often, else show what it waits for."""
    is_counted = context.status.preflight != context.stored.preflight
    effect = requeue_in(0) if is_counted else Effect()
    if not context.observed.obstacle and _has_too_many_preemptions(context):
        effect += set_condition(C.VALIDATED, "False", R.TOO_MANY_PREEMPTIONS, "preflight was preempted too often")
        message = f"preflight: {_last_preemption(context, pods)}"
        return effect + Effect(delete=child) + fail(context, R.TOO_MANY_PREEMPTIONS, message, child)
    if not context.observed.obstacle and deadline and deadline.is_exceeded:
        return effect + Effect(delete=child) + deadlines.end_job(context, deadline)
    held = suspension.hold_or_release(context, child, pods)
    if held and (held.resume or held.activate) and _has_noted_a_pod(context):
        return effect + requeue_in(0)  # written first: once the Job is resumed, nothing shows why its pod ended
    shown = watch_start(context, child, pods) if held is None else held
    is_to_end = _has_too_many_preemptions(context) or (deadline and deadline.is_exceeded)
    return effect + shown + (suspension.show_refused_stop(context, pods) if held is None or is_to_end else Effect())


def _end_lingering(context: Context, child: Job, pods: Sequence[Pod], left: float) -> Effect:
    """End a preflight whose Job only containers of others keep open: one that was preempted is run again."""
    if left > 0 or context.status.preflight != context.stored.preflight:
        return _watch(context, child, pods, None) + requeue_in(left or SOON_SECONDS)
    if context.observed.obstacle or _has_too_many_preemptions(context):
        return _watch(context, child, pods, None)
    if context.outcome_of(pods[-1]).result != run_outcome.RESULT_PREEMPTED:
        return Effect(delete=child) + _fail(context, child, pods)
    shown = set_condition(C.RUNNING, "False", R.BACKING_OFF, f"preflight was preempted; {lingering.describe(pods)}")
    return shown + Effect(delete=child) + requeue_in(SOON_SECONDS)


def _has_noted_a_pod(context: Context) -> bool:
    now, stored = (bookkeeping.read(one).last_preflight_pod_name for one in (context.status, context.stored))
    return now != stored


def _has_too_many_preemptions(context: Context) -> bool:
    """Return whether the stored count is above the limit; only written preemptions count, so that a lost write changes
    nothing."""
    return preemptions.has_too_many_in_preflight(context.stored, context.spec.max_preemptions)


def _last_preemption(context: Context, pods: Sequence[Pod]) -> str:
    outcomes = [context.outcome_of(pod) for pod in pods if pod.counts_as_run]
    preempted = [one for one in outcomes if one.result == run_outcome.RESULT_PREEMPTED]
    return preempted[-1].message if preempted else "its pods were preempted"


def _passing_report(context: Context, pod: Pod) -> Report | None:
    report = context.report_of(pod) if pod.exit_code == 0 else None
    return report if report and report.outcome in {Outcome.VALIDATED, Outcome.ADOPTED} else None


def _pass(context: Context, child: Job, pod: Pod, report: Report) -> tuple[bool, Effect]:
    record_report(context.status, report)
    bookkeeping.record(context.status, unread_preflight_runs=None)
    if report.outcome is Outcome.VALIDATED:
        _record_lineage(context, report, child, pod)
        return True, set_condition(C.VALIDATED, "True", R.DATASET_VALID, dataset_sentence(report.dataset))
    record_lineage(context.status, report, context.spec)
    if report.artifacts and report.artifacts.manifest_sha256:
        reason = R.SUCCEEDED if context.status.attempts else R.ADOPTED  # published by an attempt that was removed
        ended = child.completed or pod.ended
        return False, set_condition(C.VALIDATED, "True", R.ADOPTED) + succeed(context, ended, report, reason)
    effect = set_condition(C.VALIDATED, "False", R.RESULT_MISSING, "the adopted result has no manifest digest")
    message = "preflight adopted a result without a manifest digest"
    return False, effect + fail(context, R.RESULT_MISSING, message, child)


def _record_lineage(context: Context, report: Report, child: Job, pod: Pod) -> None:
    """Record the lineage, and pin preflight's image unless it cannot train; then the first trainer's is pinned."""
    asked, settings = context.spec.trainer.image, context.settings
    is_trainers = repository(child.image) == repository(asked or settings.trainer_image)
    can_train = is_trainers and (asked is not None or settings.preflight_image is None)
    if report.lineage:
        lineage = report.lineage.model_copy(update={"trainer_image": None})
        report = report.model_copy(update={"lineage": lineage})
    record_lineage(context.status, report, context.spec)
    if can_train:
        record_image(context.status, pod.pin_image(child.image))


def _fail(context: Context, child: Job, pods: Sequence[Pod]) -> Effect:
    outcomes = [context.outcome_of(pod) for pod in pods if pod.is_over]
    last = next((one for one in reversed(outcomes) if one.is_terminal), outcomes[-1] if outcomes else None)
    report = last.report if last else None
    unread = bookkeeping.read(context.stored).unread_preflight_runs or 0
    is_unread = child.completed and not any(pod.exit_code == 0 for pod in pods)
    if is_unread and unread < MAX_UNREAD:
        # It passed while the operator was down, and its pod is gone: run it again.
        if not context.observed.obstacle:
            bookkeeping.record(context.status, unread_preflight_runs=unread + 1)
        return Effect(delete=child) + requeue_in(SOON_SECONDS)
    if is_unread:
        reason, message = R.RESULT_MISSING.value, _explain_unread(child, unread + 1)
    elif child.completed:
        reason, message = R.RESULT_MISSING.value, "preflight exited with 0 without a report: is this a trainer image?"
    elif late := run_outcome.explain_foreign_deadline(child):
        reason, message = R.PREFLIGHT_FAILED.value, f"preflight ran {late}: raise it and recreate the job"
    elif last:
        reason, message = last.reason, last.message
        record_dataset(context.status, report)
    else:
        reason = run_outcome.reason_of_failed_job(child) or R.PREFLIGHT_FAILED.value
        message = child.failed_message
    if report and report.outcome is Outcome.GATE_NOT_MET:  # the result of this job, published before
        record_report(context.status, report)
        record_lineage(context.status, report, context.spec)
        validated = set_condition(C.VALIDATED, "True", R.ADOPTED)
    else:
        validated = set_condition(C.VALIDATED, "False", reason, "Preflight failed: see condition Failed.")
    return validated + fail(context, reason, message, child, report)


def _explain_unread(child: Job, times: int) -> str:
    return (
        f"Job {child.name} completed {times} times, but no pod with its report was found: its pods were removed before "
        "the operator could read them, or lack the labels of the operator and of the Job controller; exempt them from "
        "the policy that removes pods or changes labels"
    )
