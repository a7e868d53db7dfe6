"""The decision of a reconcile, the effects that it is composed of, and the input of every policy."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, NamedTuple, Self

from finetune_api.evaluation import EvaluationStatus
from finetune_api.handoff import Outcome, Report
from finetune_api.names import ConditionType, Reason
from finetune_api.output import HubPush, RegistryPush
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Artifacts, FineTuneJobStatus
from finetune_operator.kube.objects import FineTuneJob, Job
from finetune_operator.kube.observed import Observed, Target
from finetune_operator.kube.pod import Pod
from finetune_operator.kube.workload import Workload
from finetune_operator.manifests.jobs import Child
from finetune_operator.policy.conditions import Truth
from finetune_operator.policy.pods import pod_diagnosis
from finetune_operator.policy.pods.pod_diagnosis import EventQuery
from finetune_operator.policy.pods.run_outcome import PodOutcome, judge, read_report
from finetune_operator.settings import Settings

C, R = ConditionType, Reason
SOON_SECONDS = 2.0
OBSTACLE_SECONDS = 20.0
WITHHELD = {"NotMet": R.MERGED_MODEL_WITHHELD, "NotRun": R.GATE_NOT_RUN}
"""Why the full model is not published, by the result of its gate."""
GGUF_WITHHELD = frozenset({"NotMet", "NotRun"})
"""Results of the gate of GGUF files without which some of them are not published."""


class ConditionChange(NamedTuple):
    """A condition to set, or to remove if `truth` is None; `prefix` is put before its sentence."""

    kind: ConditionType
    truth: Truth | None
    reason: str = ""
    detail: str = ""
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The result of one policy: conditions to set, an action, and when to requeue."""

    conditions: tuple[ConditionChange, ...] = ()
    create: Child | None = None
    delete: Job | None = None
    suspend: Job | None = None
    resume: Job | None = None
    deactivate: Workload | None = None
    activate: Workload | None = None
    move_to_queue: tuple[Job, str | None] | None = None
    """A waiting Job and the queue to move it to; None removes it from its queue, so that it runs."""
    fetch_events_for: EventQuery | None = None
    follow: Target | None = None
    requeue_after: float | None = None
    completion_time: datetime | None = None

    def __add__(self, other: "Effect") -> "Effect":
        """Return both effects as one: conditions in order, the earliest requeue, and `other` first for the rest."""
        new: dict[str, Any] = {name: getattr(other, name) for name in _EFFECTS}
        kept = {name: getattr(self, name) for name, value in new.items() if value is None}
        times = [time for time in (self.requeue_after, other.requeue_after) if time is not None]
        changes = (*self.conditions, *other.conditions)
        return Effect(**new | kept | {"conditions": changes, "requeue_after": min(times, default=None)})


_EFFECTS = tuple(one.name for one in fields(Effect))


@dataclass(frozen=True, kw_only=True)
class Decision(Effect):
    """What to do, and the status to write after it."""

    status: FineTuneJobStatus

    @classmethod
    def of(cls, effect: Effect, status: FineTuneJobStatus) -> Self:
        """Return the decision of that effect and status."""
        return cls(**{name: getattr(effect, name) for name in _EFFECTS}, status=status)


@dataclass(frozen=True)
class Acceptance:
    """Whether the job may run here."""

    reason: Reason
    is_refused: bool
    """Whether no Job may be created now; what is running continues, and its end is judged."""
    events_forbidden: bool = False
    """Whether the operator may not read the events of a pod that does not start; this blocks nothing."""


@dataclass(frozen=True)
class Context:
    """Input of every policy. Only functions named `record_…` or `add_…` change `status`."""

    observed: Observed
    settings: Settings
    spec: FineTuneJobSpec
    status: FineTuneJobStatus
    """The next status, as recorded so far; its conditions are still those of the stored status."""
    acceptance: Acceptance
    _reports: dict[str, Report | None] = field(default_factory=dict)

    @property
    def stored(self) -> FineTuneJobStatus:
        """The status as it was read; after a crash, the operator has only this one."""
        return self.observed.job.status

    @property
    def job(self) -> FineTuneJob:
        """The job with the next status, as the builders of its Jobs need it."""
        return replace(self.observed.job, status=self.status)

    @property
    def is_blocked(self) -> bool:
        """Whether no Job may be created now."""
        return self.acceptance.is_refused or self.spec.suspend

    def report_of(self, pod: Pod) -> Report | None:
        """Return the report of an ended pod; its termination message is parsed once."""
        if pod.uid not in self._reports:
            self._reports[pod.uid] = read_report(pod, self.observed.job)
        return self._reports[pod.uid]

    def outcome_of(self, pod: Pod, *, failed_unseen: bool = False) -> PodOutcome:
        """Return how an ended pod counts by itself."""
        return judge(pod, self.report_of(pod), failed_unseen=failed_unseen)


def set_condition(kind: ConditionType, truth: Truth, reason: str, detail: str = "", *, prefix: str = "") -> Effect:
    """Return the effect that sets one condition."""
    return Effect(conditions=(ConditionChange(kind, truth, reason, detail, prefix),))


def requeue_in(seconds: float) -> Effect:
    """Return the effect that requeues the job."""
    return Effect(requeue_after=seconds)


def check_lost_node(context: Context, pods: Sequence[Pod]) -> Effect | None:
    """Return condition Running for the first pod whose node is lost."""
    lost = next((pod for pod in pods if pod_diagnosis.is_lost(pod, context.observed.now)), None)
    return set_condition(C.RUNNING, "Unknown", R.NODE_LOST, pod_diagnosis.explain_lost_node(lost)) if lost else None


def create_job(context: Context, child: Child) -> Effect:
    """Create a Job once the objects of earlier runs and of earlier jobs with this name are gone."""
    if context.is_blocked:
        return Effect()
    observed = context.observed
    if orphan := observed.find_orphan(child.name):
        cause = "its FineTuneJob was deleted without it (--cascade=orphan), or a backup restored it"
        detail = f"Job {orphan.name} has no owner: {cause}"
        return set_condition(C.ACCEPTED, "False", R.NAME_CONFLICT, detail) + requeue_in(OBSTACLE_SECONDS)
    busy = [*observed.leftovers, *(pod.name for pod in observed.pods if not pod.is_over)]
    busy += [one.name for one in observed.own if one.is_deleting]
    if lost := check_lost_node(context, observed.pods):
        return lost + requeue_in(OBSTACLE_SECONDS)
    if busy:
        detail = f"waiting until {', '.join(busy[:3])} of an earlier run is gone"
        return set_condition(C.RUNNING, "False", R.BACKING_OFF, detail) + requeue_in(OBSTACLE_SECONDS)
    return Effect(create=child)


def succeed(context: Context, completed: datetime | None, report: Report, reason: Reason) -> Effect:
    """Complete the job: its result is published."""
    uri = (report.artifacts and report.artifacts.uri) or context.spec.output.uri
    return (
        _show_stopped(context)
        + set_condition(C.PUBLISHED, "True", R.MANIFEST_REPORTED, uri)
        + _show_pushes(context, report)
        + set_condition(C.COMPLETE, "True", reason, _published(uri, report))
        + set_condition(C.FAILED, "False", R.SUCCEEDED)
        + Effect(completion_time=completed or context.observed.now)
    )


def _published(uri: str, report: Report) -> str:
    """Return where the result is, and whether it is better than before the training."""
    return (
        f"{uri}; {report.evaluation.verdict_message}"
        if report.evaluation and report.evaluation.verdict_message
        else uri
    )


def fail(context: Context, reason: str, message: str, child: Job | None = None, report: Report | None = None) -> Effect:
    """Fail the job permanently, at the end of its Job or now; a result that did not meet its gate is still
    published."""
    effect = (
        _show_stopped(context)
        + set_condition(C.FAILED, "True", reason, message)
        + set_condition(C.COMPLETE, "False", reason, "The job failed.")
        + Effect(completion_time=(child and (child.failed or child.completed)) or context.observed.now)
    )
    artifacts = report.artifacts if report and report.outcome is Outcome.GATE_NOT_MET else None
    if report and artifacts and artifacts.manifest_sha256:
        published = _name_withheld(report.evaluation)
        uri = artifacts.uri or context.spec.output.uri
        effect += set_condition(C.PUBLISHED, "True", published, uri)
        if context.spec.output.hub:
            effect += set_condition(C.HUB_PUSHED, "False", R.GATE_NOT_MET)
        if context.spec.output.oci:
            effect += set_condition(C.REGISTRY_PUSHED, "False", R.GATE_NOT_MET)
    return effect


def _name_withheld(evaluation: EvaluationStatus | None) -> Reason:
    """Return what a published result lacks, by the results of its gates."""
    if evaluation is None:
        return R.MANIFEST_REPORTED
    merged = WITHHELD.get(evaluation.merge_gate or "")
    return merged or (R.GGUF_WITHHELD if evaluation.gguf_gate in GGUF_WITHHELD else R.MANIFEST_REPORTED)


def _show_pushes(context: Context, report: Report) -> Effect:
    """Set the conditions of the pushes that a job asks for; one that failed leaves its success as it is."""
    output, found = context.spec.output, report.artifacts or Artifacts()
    effect = Effect()
    if output.hub:
        hub = found.hub
        pushed = f"{hub.repo} has the result at commit {hub.commit}" if hub and hub.commit else ""
        effect += _show_push(C.HUB_PUSHED, hub, pushed)
    if output.oci:
        oci = found.oci
        effect += _show_push(C.REGISTRY_PUSHED, oci, f"The result is {oci.reference}" if oci and oci.reference else "")
    return effect


def _show_push(condition: ConditionType, push: HubPush | RegistryPush | None, pushed: str) -> Effect:
    if push is None:
        detail = "the trainer's report has no push: use a trainer image of the operator's version, and recreate the job"
        return set_condition(condition, "False", R.PUSH_FAILED, f"{detail}, which is then adopted and pushed.")
    if not pushed:
        return set_condition(condition, "False", R.PUSH_FAILED, push.message or "the trainer reports no cause.")
    return set_condition(condition, "True", R.PUSHED, pushed)


def show_early_stopping(context: Context) -> Effect:
    """Set condition EarlyStopped of a running training once it was evaluated."""
    early = context.status.early_stopping
    if early is None or early.stopped or early.best_step is None:
        return Effect()
    counted = f"{early.evaluations_without_improvement or 0} of {early.patience} evaluations in a row"
    detail = f"{counted} without improvement, the best at step {early.best_step}"
    return set_condition(C.EARLY_STOPPED, "False", R.NOT_TRIGGERED, detail)


def _show_stopped(context: Context) -> Effect:
    """Set condition Running of an ended job, and EarlyStopped if early stopping ended the training."""
    effect = set_condition(C.RUNNING, "False", R.FINISHED if context.status.runs else R.NOT_STARTED)
    early = context.status.early_stopping
    if early is None or not early.stopped:
        return effect
    steps = (
        f": stopped at step {early.stopped_at_step}, best at step {early.best_step}" if early.stopped_at_step else ""
    )
    return effect + set_condition(C.EARLY_STOPPED, "True", R.PATIENCE_EXHAUSTED, steps)
