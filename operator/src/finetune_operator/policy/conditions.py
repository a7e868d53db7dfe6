"""Conditions: a table of messages, a setter, and the derivation of phase and summary."""

from datetime import datetime
from typing import Literal

from finetune_api.names import ConditionType, Phase, Reason
from finetune_api.spec import Mode
from finetune_api.status import Condition, FineTuneJobStatus
from finetune_api.text.printable import printable

Truth = Literal["True", "False", "Unknown"]
C, R = ConditionType, Reason

MESSAGES: dict[tuple[ConditionType, str], str] = {
    (C.ACCEPTED, R.ACCEPTED): "The job is allowed to run here.",
    (C.ACCEPTED, R.FORBIDDEN): "{detail}.",
    (C.ACCEPTED, R.INVALID_SPEC): "The spec cannot be run: {detail}.",
    (C.ACCEPTED, R.WAITING_FOR_PARENT): "{detail}.",
    (C.ACCEPTED, R.PARENT_FAILED): "{detail}.",
    (C.ACCEPTED, R.MULTIKUEUE_UNSUPPORTED): "{detail}.",
    (C.ACCEPTED, R.NAME_CONFLICT): "{detail}: rename or remove it; the job then continues.",
    (C.ACCEPTED, R.API_DENIED): "{detail}: grant the right; the job then continues.",
    (C.ACCEPTED, R.API_UNAVAILABLE): "The API server does not complete a request that the job needs: {detail}: restore "
    "what the message names, for example the service of an admission webhook; the job then continues.",
    (C.SUSPENDED, R.NOT_SUSPENDED): "The job may run.",
    (C.SUSPENDED, R.USER_REQUESTED): "Nothing is started, and running pods are stopped: set spec.suspend to false to "
    "resume.",
    (C.QUEUED, R.NOT_QUEUED): "No queue and no other controller holds the job.",
    (C.QUEUED, R.QUEUED_BY_KUEUE): "{detail} waits for Kueue to admit it, and holds no GPU.",
    (C.QUEUED, R.JOB_SUSPENDED): "{detail} was suspended by another controller or user (for example a queue), who "
    "must resume it.",
    (C.QUOTA_RESERVED, R.QUOTA_RESERVED): "{detail}.",
    (C.QUOTA_RESERVED, R.ADMITTED): "{detail}.",
    (C.QUOTA_RESERVED, R.WAITING_FOR_QUOTA): "{detail}.",
    (C.QUOTA_RESERVED, R.WORKLOAD_INACTIVE): "{detail}.",
    (C.QUOTA_RESERVED, R.KUEUE_MISSING): "{detail}.",
    (C.QUOTA_RESERVED, R.API_UNAVAILABLE): "The Workloads cannot be read: {detail}.",
    (C.VALIDATED, R.PENDING): "Preflight has not started.",
    (C.VALIDATED, R.PREFLIGHT_RUNNING): "Preflight is checking dataset, model and storage.",
    (C.VALIDATED, R.DATASET_VALID): "{detail}",
    (C.VALIDATED, R.PREFLIGHT_DISABLED): "Nothing is checked before a GPU is held: preflight.enabled is false, and the "
    "trainer checks dataset, model, storage and memory at the start of each run.",
    (C.VALIDATED, R.ADOPTED): "A complete result of this job is already published.",
    (C.RUNNING, R.NOT_STARTED): "No trainer has started yet.",
    (C.RUNNING, R.PODS_STARTING): "The trainer pod is starting.",
    (C.RUNNING, R.TRAINED): "The training is complete and holds no GPU: the pod that merges and publishes is starting.",
    (C.RUNNING, R.PODS_RUNNING): "{detail}.",
    (C.RUNNING, R.FINISHED): "The trainer has ended.",
    (C.RUNNING, R.STOPPING): "Pod {detail} received SIGTERM and is ending; a training saves a checkpoint first.",
    (C.RUNNING, R.JOB_SUSPENDED): "{detail} is suspended.",
    (C.RUNNING, R.QUEUED_BY_KUEUE): "{detail} waits for Kueue to admit it.",
    (C.RUNNING, R.NODE_LOST): "A pod cannot be replaced: {detail}",
    (C.RUNNING, R.UNREACHABLE): "The trainer pod is running, but its progress endpoint is unreachable since {detail}",
    (C.RUNNING, R.UNSCHEDULABLE): "No node can run the pod: {detail}",
    (C.RUNNING, R.IMAGE_PULL_FAILED): "The image cannot be pulled: {detail}",
    (C.RUNNING, R.POD_CREATION_REFUSED): "The API server refuses what the job needs: {detail}",
    (C.RUNNING, R.STOP_REFUSED): "The Job is not stopped, because the API server refuses it: {detail}",
    (C.RUNNING, R.MOUNT_FAILED): "A volume of the pod cannot be mounted: {detail}",
    (C.RUNNING, R.CONTAINER_ERROR): "The container cannot be started: {detail}",
    (C.RUNNING, R.NO_PROGRESS): "No progress for {detail} although the trainer is reachable: it is restarted; raise "
    "stallTimeoutSeconds if a step can take that long.",
    (C.RUNNING, R.BACKING_OFF): "Waiting for the next run: {detail}",
    (C.RUNNING, R.API_DENIED): "Cannot read why no pod is running: {detail}: grant the right; the job then continues.",
    (C.GRACE_PERIOD_SUFFICIENT, R.NO_CHECKPOINT): "No checkpoint is saved yet.",
    (C.GRACE_PERIOD_SUFFICIENT, R.CHECKPOINT_SAVED): "{detail}.",
    (C.GRACE_PERIOD_SUFFICIENT, R.SAVE_TOO_SLOW): "{detail}.",
    (C.EARLY_STOPPED, R.NOT_CONFIGURED): "Early stopping is off.",
    (C.EARLY_STOPPED, R.NOT_TRIGGERED): "{detail}.",
    (C.EARLY_STOPPED, R.PATIENCE_EXHAUSTED): "The evaluation loss stopped falling{detail}; the best weights are used.",
    (C.PUBLISHED, R.NOT_PUBLISHED): "Nothing is published yet.",
    (C.PUBLISHED, R.MANIFEST_REPORTED): "The manifest and every file it names were read back from {detail}.",
    (C.PUBLISHED, R.MERGED_MODEL_WITHHELD): "Everything except the full model, which did not pass its gate, was read "
    "back from {detail}.",
    (C.PUBLISHED, R.GATE_NOT_RUN): "Everything except the full model, whose gate could not run, was read back from "
    "{detail}.",
    (C.PUBLISHED, R.GGUF_WITHHELD): "Everything except GGUF files that did not pass their gate, or could not be made, "
    "was read back from {detail}.",
    (C.HUB_PUSHED, R.PUSHED): "{detail}.",
    (C.HUB_PUSHED, R.PUSH_FAILED): "The result is published, but not pushed: {detail}",
    (C.HUB_PUSHED, R.GATE_NOT_MET): "Nothing is pushed, because the result did not meet its gate.",
    (C.REGISTRY_PUSHED, R.PUSHED): "{detail}.",
    (C.REGISTRY_PUSHED, R.PUSH_FAILED): "The result is published, but not pushed: {detail}",
    (C.REGISTRY_PUSHED, R.GATE_NOT_MET): "Nothing is pushed, because the result did not meet its gate.",
    (C.COMPLETE, R.PROGRESSING): "The job is not finished.",
    (C.COMPLETE, R.SUCCEEDED): "Published at {detail}.",
    (C.COMPLETE, R.ADOPTED): "The result of this job was already published at {detail}; nothing was trained.",
    (C.FAILED, R.PROGRESSING): "The job has not failed.",
    (C.FAILED, R.SUCCEEDED): "The job succeeded.",
    (C.FAILED, R.BACKOFF_LIMIT_EXCEEDED): "More runs failed than backoffLimit allows; the last one: {detail}",
    (C.FAILED, R.TOO_MANY_PREEMPTIONS): "The job was preempted too often: {detail}",
    (C.FAILED, R.START_DEADLINE_EXCEEDED): "No trainer ran within startDeadlineSeconds, {detail} Fix the cause or "
    "raise startDeadlineSeconds, then recreate the job.",
    (C.FAILED, R.DEADLINE_EXCEEDED): "The trainer ran for {detail}: raise it and recreate the job, or train for fewer "
    "steps.",
}
"""Message by condition and reason. For a reason that is not listed, the message is the detail, for example the
trainer's own."""

MESSAGES_AT_END: dict[tuple[str, str], str] = {
    (C.ACCEPTED, R.ACCEPTED): "The job was allowed to run here.",
    (C.ACCEPTED, R.WAITING_FOR_PARENT): "The job ended before the jobs that it builds on were complete.",
    (C.ACCEPTED, R.PARENT_FAILED): "The job ended, and a job that it builds on had failed.",
    (C.ACCEPTED, R.MULTIKUEUE_UNSUPPORTED): "The job ended while its queue was one of MultiKueue.",
    (C.ACCEPTED, R.NAME_CONFLICT): "The job ended while another owner used a name that it needs.",
    (C.ACCEPTED, R.API_DENIED): "The job ended while the operator lacked a right.",
    (C.ACCEPTED, R.API_UNAVAILABLE): "The job ended while the API server did not complete a request of the operator.",
    (C.SUSPENDED, R.NOT_SUSPENDED): "The job was not suspended when it ended.",
    (C.SUSPENDED, R.USER_REQUESTED): "The job was suspended when it ended; spec.suspend has no effect any more.",
    (C.VALIDATED, R.PENDING): "Preflight did not run.",
    (C.VALIDATED, R.PREFLIGHT_RUNNING): "The job ended before preflight had passed.",
    (C.VALIDATED, R.PREFLIGHT_DISABLED): "The job ended before the trainer had reported what it checked.",
    (C.RUNNING, R.NOT_STARTED): "No trainer ran.",
    (C.GRACE_PERIOD_SUFFICIENT, R.NO_CHECKPOINT): "No checkpoint was saved.",
    (C.EARLY_STOPPED, R.NOT_TRIGGERED): "Early stopping did not end the training.",
    (C.PUBLISHED, R.NOT_PUBLISHED): "Nothing was published.",
}
"""Messages that replace those that are no longer true when the job has ended; status and reason stay."""


class Conditions:
    """Setter of a status's conditions; a transition time changes only with the condition's value."""

    def __init__(self, status: FineTuneJobStatus, generation: int, now: datetime) -> None:
        self.status = status
        self.generation = generation
        self.now = now

    def set(self, kind: ConditionType, truth: Truth, reason: str, detail: str = "", *, prefix: str = "") -> None:
        """Set one condition with the message of its type and reason, after an optional prefix."""
        template = MESSAGES.get((kind, reason), "{detail}")
        message = printable(prefix + template.format(detail=detail.strip()))
        self._put(kind, truth, reason, message[:2048] or reason)

    def set_if_absent(self, kind: ConditionType, truth: Truth, reason: str, detail: str = "") -> None:
        """Set one condition unless it is set already."""
        if self.status.condition(kind) is None:
            self.set(kind, truth, reason, detail)

    def remove(self, kind: ConditionType) -> None:
        """Remove a condition that no longer applies."""
        self.status.conditions = [one for one in self.status.conditions or [] if one.type != kind]

    def set_initial(self, *, early_stopping: bool) -> None:
        """Set every condition that is missing, so that a new job shows all of them."""
        self.set_if_absent(C.ACCEPTED, "Unknown", R.PENDING)
        self.set_if_absent(C.SUSPENDED, "False", R.NOT_SUSPENDED)
        self.set_if_absent(C.QUEUED, "False", R.NOT_QUEUED)
        self.set_if_absent(C.VALIDATED, "Unknown", R.PENDING)
        self.set_if_absent(C.RUNNING, "False", R.NOT_STARTED)
        self.set_if_absent(C.GRACE_PERIOD_SUFFICIENT, "Unknown", R.NO_CHECKPOINT)
        stopping = R.NOT_TRIGGERED if early_stopping else R.NOT_CONFIGURED
        self.set_if_absent(C.EARLY_STOPPED, "False", stopping, "The training is not evaluated yet")
        self.set_if_absent(C.PUBLISHED, "False", R.NOT_PUBLISHED)
        self.set_if_absent(C.COMPLETE, "False", R.PROGRESSING)
        self.set_if_absent(C.FAILED, "False", R.PROGRESSING)

    def close(self) -> None:
        """Replace the messages that are no longer true once the job has ended; an ended job is in no queue."""
        self.remove(C.QUOTA_RESERVED)
        self.set(C.QUEUED, "False", R.NOT_QUEUED)
        self.status.conditions = [
            one.model_copy(update={"message": MESSAGES_AT_END.get((one.type, one.reason), one.message)})
            for one in self.status.conditions or []
        ]

    def summarise(self) -> None:
        """Set phase, reason and message, and Ready, Reconciling and Stalled for kstatus; Ready comes first."""
        leading = _leading_condition(self.status)
        self.status.phase = phase_of(self.status).value
        self.status.reason, self.status.message = leading.reason, leading.message
        self.status.observed_generation = self.generation
        is_failed = self.status.is_true(C.FAILED)
        is_settled = self.status.is_true(C.COMPLETE) or _is_suspended_as_requested(self.status)
        ready: Truth = "False" if is_failed else "True" if is_settled else "Unknown"
        self._put(C.READY, ready, leading.reason, leading.message)
        for kind, is_true in ((C.RECONCILING, not (is_settled or is_failed)), (C.STALLED, is_failed)):
            self._put(kind, _truth(is_true), leading.reason, leading.message if is_true else "See condition Ready.")
        self.status.conditions = sorted(self.status.conditions or [], key=lambda one: one.type != C.READY)

    def _put(self, kind: ConditionType, truth: Truth, reason: str, message: str) -> None:
        old = self.status.condition(kind)
        if old and (old.status, old.reason, old.message, old.observed_generation) == (
            *(truth, str(reason), message),
            self.generation,
        ):
            return  # most looks change none of them, and a new one is validated
        moved = self.now if old is None or old.status != truth else old.last_transition_time
        new = Condition(
            type=kind.value,
            status=truth,
            reason=str(reason),
            message=message,
            last_transition_time=moved,
            observed_generation=self.generation,
        )
        others = [one for one in self.status.conditions or [] if one.type != kind]
        place = {one.type: index for index, one in enumerate(self.status.conditions or [])}.get(kind, len(others))
        self.status.conditions = [*others[:place], new, *others[place:]]


def acknowledge_generation(status: FineTuneJobStatus, generation: int) -> FineTuneJobStatus:
    """Return a finished job's status with a newer generation; an edit of the spec changes nothing else in it.

    Clients that wait for `observedGeneration` (kubectl wait, kstatus) would wait forever otherwise.
    """
    conditions = [one.model_copy(update={"observed_generation": generation}) for one in status.conditions or []]
    return status.model_copy(update={"observed_generation": generation, "conditions": conditions})


def _truth(value: bool) -> Truth:
    return "True" if value else "False"


def _is_suspended_as_requested(status: FineTuneJobStatus) -> bool:
    """Return whether the job is suspended by its user and has no pods: it is in the requested state."""
    running = status.condition(C.RUNNING)
    has_pods = running is None or running.status != "False" or running.reason in {R.STOPPING, R.STOP_REFUSED}
    return suspended_since(status) is not None and not has_pods and status.is_true(C.ACCEPTED)


def suspended_since(status: FineTuneJobStatus) -> datetime | None:
    """Return since when that status has the user's request to suspend, or None."""
    found = status.condition(C.SUSPENDED)
    return found.last_transition_time if found and found.status == "True" else None


def _leading_condition(status: FineTuneJobStatus) -> Condition:
    """Return the condition that summarises the job: the end if there is one, else the first unfinished step."""
    found = {one.type: one for one in status.conditions or []}
    for kind in (C.FAILED, C.COMPLETE):
        if status.is_true(kind):
            return found[kind]
    running = found[C.RUNNING]
    if not status.is_true(C.ACCEPTED):
        return found[C.ACCEPTED]
    if status.is_true(C.SUSPENDED) and running.reason not in {R.NODE_LOST, R.STOP_REFUSED}:
        return found[C.SUSPENDED]
    if status.is_true(C.QUEUED) and running.reason not in {R.NODE_LOST, R.STOP_REFUSED, R.POD_CREATION_REFUSED}:
        is_of_kueue = found[C.QUEUED].reason == R.QUEUED_BY_KUEUE
        return found.get(C.QUOTA_RESERVED, found[C.QUEUED]) if is_of_kueue else found[C.QUEUED]
    is_troubled = running.reason not in {R.NOT_STARTED, R.PODS_STARTING, R.PODS_RUNNING, R.FINISHED}
    return running if _may_train(status) or is_troubled else found[C.VALIDATED]


def phase_of(status: FineTuneJobStatus) -> Phase:
    """Return the job's phase, derived from its conditions."""
    for kind, phase in ((C.FAILED, Phase.FAILED), (C.COMPLETE, Phase.SUCCEEDED)):
        if status.is_true(kind):
            return phase
    for kind, phase in ((C.SUSPENDED, Phase.SUSPENDED), (C.QUEUED, Phase.QUEUED)):
        if status.is_true(kind) and status.is_true(C.ACCEPTED):
            return phase
    validated = status.condition(C.VALIDATED)
    if not _may_train(status):
        return Phase.PENDING if validated is None or validated.reason == R.PENDING else Phase.PREFLIGHT
    return _phase_of_attempt(status)


def _may_train(status: FineTuneJobStatus) -> bool:
    """Return whether preflight has passed, or the job has none."""
    validated = status.condition(C.VALIDATED)
    return validated is not None and (validated.status == "True" or validated.reason == R.PREFLIGHT_DISABLED)


_WAITING_PHASES = frozenset({Phase.PENDING, Phase.PREFLIGHT, Phase.QUEUED, Phase.STARTING, Phase.SUSPENDED})


def waiting_reason(status: FineTuneJobStatus) -> str | None:
    """Return why the job waits; None if a trainer runs, or the job has ended or was not observed yet."""
    waits_for_merge = status.phase == Phase.MERGING and not status.is_true(C.RUNNING)
    return status.reason if status.phase in _WAITING_PHASES or waits_for_merge else None


def _phase_of_attempt(status: FineTuneJobStatus) -> Phase:
    """Return the phase of a trainer, or of a merge in a Job of its own."""
    running, stage = status.condition(C.RUNNING), status.progress.stage if status.progress else None
    is_running = status.is_true(C.RUNNING)
    if (running and running.reason == R.FINISHED) or (is_running and stage in {"Publishing", "Done"}):
        return Phase.PUBLISHING
    if status.trained_weights:
        return Phase.MERGING
    if not is_running:
        return Phase.STARTING
    if stage == "Merging":
        return Phase.PUBLISHING
    is_evaluation = status.resolved is not None and status.resolved.mode == Mode.EVALUATE
    return Phase.EVALUATING if is_evaluation else Phase.TRAINING
