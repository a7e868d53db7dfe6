"""The preflight Job: created, watched, and its verdict on data, model and storage."""

from finetune_api.handoff import Outcome, Report
from finetune_api.names import Component, ConditionType, Reason
from finetune_api.status import Lineage
from finetune_operator.kube.objects import Job, Pod
from finetune_operator.manifests.jobs import build_preflight
from finetune_operator.policy import deadlines, run_outcome, runs, suspension
from finetune_operator.policy.decision import SOON_SECONDS, Draft
from finetune_operator.policy.startup import watch_start
from finetune_operator.policy.status_report import merged, take_lineage, take_report

C, R = ConditionType, Reason


def check(draft: Draft) -> bool:
    """One step of preflight; true once it has passed and training can begin."""
    observed, conditions = draft.observed, draft.conditions
    child = next((one for one in observed.own if one.component == Component.PREFLIGHT and not one.is_deleting), None)
    overdue = deadlines.exceeded(draft)
    has_started = child is not None or not draft.spec.suspend
    conditions.set(C.VALIDATED, "Unknown", R.PREFLIGHT_RUNNING if has_started else R.PENDING)
    if child is None and overdue:
        draft.fail(overdue.reason, overdue.detail)
        return False
    if child is None:
        image = draft.spec.trainer.image or draft.settings.trainer_image
        draft.create(build_preflight(observed.job, draft.settings, image))
        return False
    pods = observed.pods_of(child.uid)
    runs.fold_preflight(draft, pods)
    passed = next(((pod, report) for pod in pods if (report := _passing_report(draft, pod))), None)
    if passed and (child.completed or passed[1].outcome is Outcome.VALIDATED):
        return _passed(draft, child, *passed)
    if child.is_over:
        _failed(draft, child, pods)
    elif _one_preemption_too_many(draft) and not observed.obstacle:
        draft.decision.delete = child
        conditions.set(C.VALIDATED, "False", R.TOO_MANY_PREEMPTIONS, "preflight was preempted too often")
        draft.fail(R.TOO_MANY_PREEMPTIONS, f"preflight: {_last_preemption(draft, pods)}", child)
    elif overdue and not observed.obstacle:
        draft.decision.delete = child
        draft.fail(overdue.reason, overdue.detail)
    elif not suspension.is_held(draft, child, pods):
        watch_start(draft, child, pods)
    return False


def _one_preemption_too_many(draft: Draft) -> bool:
    limit = draft.spec.max_preemptions
    counted = draft.stored.preflight and draft.stored.preflight.preemptions
    if draft.status.preflight != draft.stored.preflight:
        draft.decision.again_in(0)
    return bool(limit and counted and counted > limit)


def _last_preemption(draft: Draft, pods: tuple[Pod, ...]) -> str:
    verdicts = [run_outcome.judge(pod, draft.observed.job) for pod in pods if pod.counts_as_run]
    preempted = [one for one in verdicts if one.result == run_outcome.RESULT_PREEMPTED]
    return preempted[-1].message if preempted else "its pods were preempted"


def _passing_report(draft: Draft, pod: Pod) -> Report | None:
    report = run_outcome.read_report(pod, draft.observed.job) if pod.exit_code == 0 else None
    return report if report and report.outcome in {Outcome.VALIDATED, Outcome.ADOPTED} else None


def _passed(draft: Draft, child: Job, pod: Pod, report: Report) -> bool:
    status, conditions = draft.status, draft.conditions
    take_report(status, report)
    take_lineage(status, report, draft.spec)
    if report.outcome is Outcome.ADOPTED and not (report.artifacts and report.artifacts.manifest_sha256):
        conditions.set(C.VALIDATED, "False", R.RESULT_MISSING, "the adopted result has no manifest digest")
        draft.fail(R.RESULT_MISSING, "preflight adopted a result but named no manifest digest", child)
        return False
    if report.outcome is Outcome.ADOPTED:
        conditions.set(C.VALIDATED, "True", R.ADOPTED)
        draft.succeed(child, report, R.ADOPTED)
        return False
    status.lineage = merged(status.lineage or Lineage(), Lineage(trainer_image=pod.pinned_image))
    conditions.set(C.VALIDATED, "True", R.DATASET_VALID, runs.dataset_sentence(report.dataset))
    return True


def _failed(draft: Draft, child: Job, pods: tuple[Pod, ...]) -> None:
    verdicts = [run_outcome.judge(pod, draft.observed.job) for pod in pods if pod.is_over]
    last = next((one for one in reversed(verdicts) if one.is_terminal), verdicts[-1] if verdicts else None)
    if child.completed and not any(pod.exit_code == 0 for pod in pods):
        draft.decision.delete = child  # it passed while nobody looked, and its pod is gone: ask again
        draft.decision.again_in(SOON_SECONDS)
        return
    if child.completed:
        reason, message = R.RESULT_MISSING.value, "preflight ended with 0 but gave no report: is this a trainer image?"
    elif last:
        reason, message = last.reason, last.message
        draft.status.dataset = last.report.dataset if last.report and last.report.dataset else draft.status.dataset
    else:
        reason = run_outcome.reason_of_failed_job(child) or R.PREFLIGHT_FAILED.value
        message = child.failed_message
    if last and last.report and last.report.outcome is Outcome.GATE_NOT_MET:  # a result of this very job, as it was
        take_report(draft.status, last.report)
        take_lineage(draft.status, last.report, draft.spec)
        draft.conditions.set(C.VALIDATED, "True", R.ADOPTED)
    else:
        draft.conditions.set(C.VALIDATED, "False", reason, message)
    draft.fail(reason, message, child, last.report if last else None)
