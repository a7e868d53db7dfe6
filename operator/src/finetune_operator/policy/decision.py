"""What a decision is drafted on: the look, the spec, the conditions; and the ends that every part may come to."""

from dataclasses import dataclass, replace

from finetune_api.handoff import Outcome, Report
from finetune_api.names import ConditionType, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import Job, Workload
from finetune_operator.kube.observed import Observed, Target
from finetune_operator.manifests.jobs import Child
from finetune_operator.policy import pod_diagnosis
from finetune_operator.policy.conditions import Conditions
from finetune_operator.settings import Settings

C, R = ConditionType, Reason
SOON_SECONDS = 2.0
WITHHELD = {"NotMet": R.MERGED_MODEL_WITHHELD, "NotRun": R.GATE_NOT_RUN}
"""Why a full model is not among what is published, by what its gate said."""


@dataclass
class Decision:
    """What to do, and what to write when that is done."""

    status: FineTuneJobStatus
    create: Child | None = None
    delete: Job | None = None
    suspend: Job | None = None
    resume: Job | None = None
    deactivate: Workload | None = None
    activate: Workload | None = None
    requeue: tuple[Job, str | None] | None = None
    """A waiting Job, and the queue that it is to wait in instead; None lets it run."""
    fetch_events_for: pod_diagnosis.EventQuery | None = None
    follow: Target | None = None
    requeue_after: float | None = None

    def again_in(self, seconds: float) -> None:
        """Asks for another look, at the earliest of all times asked for."""
        self.requeue_after = seconds if self.requeue_after is None else min(seconds, self.requeue_after)


@dataclass
class Draft:
    """A decision in the making."""

    observed: Observed
    settings: Settings
    spec: FineTuneJobSpec
    conditions: Conditions
    decision: Decision
    is_blocked: bool = False
    """Whether nothing may be created now; what runs goes on and is judged when it ends."""
    events_forbidden: bool = False
    """Whether the operator may not read why a pod does not start, which blocks nothing."""

    @property
    def status(self) -> FineTuneJobStatus:
        """The next status."""
        return self.decision.status

    @property
    def stored(self) -> FineTuneJobStatus:
        """The status as it was read: what is not in it yet is not known after a crash."""
        return self.observed.job.status

    def create(self, child: Child) -> None:
        """Creates a Job once nothing of an earlier run or of an earlier job of this name is left."""
        if self.is_blocked:
            return
        lost = next((pod for pod in self.observed.pods if pod_diagnosis.is_lost(pod, self.observed.now)), None)
        busy = [*self.observed.leftovers, *(pod.name for pod in self.observed.pods if not pod.is_over)]
        busy += [one.name for one in self.observed.own if one.is_deleting]
        if lost:
            self.conditions.set(C.RUNNING, "Unknown", R.NODE_LOST, pod_diagnosis.explain_lost_node(lost))
            self.decision.again_in(SOON_SECONDS)
        elif busy:
            detail = f"waiting until {', '.join(busy[:3])} of an earlier run is gone"
            self.conditions.set(C.RUNNING, "False", R.BACKING_OFF, detail)
            self.decision.again_in(SOON_SECONDS)
        else:
            self.decision.create = child

    def succeed(self, child: Job, report: Report, reason: Reason) -> None:
        """The result is published."""
        self._show_early_stop()
        uri = (report.artifacts and report.artifacts.uri) or self.spec.output.uri
        self.conditions.succeed(reason, uri)
        self.status.completion_time = child.completed

    def fail(self, reason: str, message: str, child: Job | None = None, report: Report | None = None) -> None:
        """The job has failed for good, when its Job ended or now; a result that met no gate is there all the same."""
        self.conditions.fail(reason, message)
        found = report.artifacts if report and report.outcome is Outcome.GATE_NOT_MET else None
        if report and found and found.manifest_sha256:
            self._show_early_stop()
            merged = report.evaluation.merged if report.evaluation else None
            reason = WITHHELD.get(merged or "", R.MANIFEST_REPORTED)
            self.conditions.publish(reason, found.uri or self.spec.output.uri)
        self.status.completion_time = (child and (child.failed or child.completed)) or self.observed.now

    def _show_early_stop(self) -> None:
        early = self.status.early_stopping
        if early and early.stopped:
            steps = f": stopped at step {early.step}, best at step {early.best_step}" if early.step else ""
            self.conditions.set(C.EARLY_STOPPED, "True", R.PATIENCE_EXHAUSTED, steps)

    def with_status(self) -> "Observed":
        """The look with the next status, as the builders of children want it."""
        return replace(self.observed, job=replace(self.observed.job, status=self.status))
