"""Derive Kubernetes events from the difference of two statuses; without a difference, there is none."""

from dataclasses import dataclass, replace
from enum import StrEnum

from finetune_api import names
from finetune_api.evaluation import AbilityStatus, Verdict
from finetune_api.names import ConditionType, EventReason
from finetune_api.spec import Mode
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.errors import ClusterError
from finetune_operator.policy.history import runs
from finetune_operator.policy.status_report import dataset_sentence

C, E = ConditionType, EventReason
_POD_PROBLEMS = frozenset(
    {
        *(E.UNSCHEDULABLE, E.IMAGE_PULL_FAILED, E.POD_CREATION_REFUSED, E.MOUNT_FAILED, E.CONTAINER_ERROR),
        *(E.NODE_LOST, E.NO_PROGRESS, E.UNREACHABLE, E.STOP_REFUSED),
    }
)
_INACTIVE = names.Reason.WORKLOAD_INACTIVE
_WAITING = frozenset({names.Reason.WAITING_FOR_PARENT, names.Reason.PARENT_FAILED})


@dataclass(frozen=True)
class Event:
    """An event of a FineTuneJob or a FineTuneRelease."""

    reason: StrEnum
    message: str
    is_warning: bool = False


def derive_events(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    """Return the events between two statuses, in the order in which they happen."""
    parts = (_accepted, _preflight, _runs, _suspension, _queue, _problems, _end)
    return [event for part in parts for event in part(old, new)]


def describe_refused_status(problem: ClusterError) -> Event:
    """Return the event of a status that the API server refuses, for a missing right or by a policy."""
    refused = f"The status cannot be written, and stays as it was: {str(problem).rstrip('.')}"
    return Event(E.STATUS_REFUSED, f"{refused}: change what refuses it; the operator tries again.", is_warning=True)


def _became(old: FineTuneJobStatus, new: FineTuneJobStatus, kind: ConditionType, truth: str) -> bool:
    before, after = old.condition(kind), new.condition(kind)
    return after is not None and after.status == truth and (before is None or before.status != truth)


def _message(status: FineTuneJobStatus, kind: ConditionType) -> str:
    found = status.condition(kind)
    return found.message if found else ""


def _reason(status: FineTuneJobStatus, kind: ConditionType) -> str:
    found = status.condition(kind)
    return found.reason if found else ""


def _accepted(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    found = []
    is_started_at_once = old.condition(C.ACCEPTED) is None and bool(_preflight(old, new))  # which is an event already
    if _became(old, new, C.ACCEPTED, "True") and not is_started_at_once:
        found.append(Event(E.ACCEPTED, _message(new, C.ACCEPTED)))
    if _became(old, new, C.ACCEPTED, "False"):
        found.append(Event(E.REFUSED, _message(new, C.ACCEPTED), is_warning=True))
    waits = new.condition(C.ACCEPTED)
    unavailable = names.Reason.API_UNAVAILABLE
    if waits and waits.reason == unavailable != _reason(old, C.ACCEPTED):
        found.append(Event(E.API_UNAVAILABLE, waits.message, is_warning=True))
    if waits and waits.reason in _WAITING and waits.reason != _reason(old, C.ACCEPTED):
        is_warning = waits.reason == names.Reason.PARENT_FAILED
        found.append(Event(E.WAITING_FOR_PARENT, waits.message, is_warning=is_warning))
    return found


def _preflight(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    before, after = old.condition(C.VALIDATED), new.condition(C.VALIDATED)
    found = []
    running = names.Reason.PREFLIGHT_RUNNING
    if after and after.reason == running and (before is None or before.reason != running):
        found.append(Event(E.PREFLIGHT_STARTED, after.message))
    if after and _became(old, new, C.VALIDATED, "True"):
        if after.reason == names.Reason.ADOPTED:
            found.append(Event(E.ADOPTED, after.message))
        elif not _is_attempt_created(old, new):  # whose event has this message too
            found.append(Event(E.DATASET_VALIDATED, after.message))
        if new.dataset and new.dataset.rejected_rows:
            found.append(Event(E.ROWS_REJECTED, dataset_sentence(new.dataset), is_warning=True))
    return found


def _runs(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    found = []
    known = {run.pod_uid for run in runs.history(old)}
    for run in runs.history(new):
        if run.pod_uid not in known and run.result == "Preempted":
            found.append(Event(E.TRAINER_PREEMPTED, f"Run {run.run} was preempted: {run.reason}: {run.message}"))
        if run.pod_uid not in known and run.result == "Failed":
            found.append(Event(E.TRAINER_FAILED, f"Run {run.run} failed: {run.reason}: {run.message}", is_warning=True))
    after, name = new.attempts or 0, new.job_ref.name if new.job_ref else ""
    if not _is_attempt_created(old, new):
        return found
    if new.trained_weights:
        return [*found, Event(E.MERGE_STARTED, f"Created Job {name}, which holds no GPU, to merge and publish.")]
    is_evaluation = new.resolved is not None and new.resolved.mode == Mode.EVALUATE
    created = _evaluation(name, after) if is_evaluation else _training(name, after)
    if _became(old, new, C.VALIDATED, "True"):
        created = replace(created, message=f"{_message(new, C.VALIDATED)} {created.message}")
    return [*found, created]


def _is_attempt_created(old: FineTuneJobStatus, new: FineTuneJobStatus) -> bool:
    return (new.attempts or 0) > (old.attempts or 0)


def _training(name: str, attempt: int) -> Event:
    if attempt > 1:
        return Event(E.TRAINING_RETRIED, f"Created trainer Job {name} for attempt {attempt}.")
    return Event(E.TRAINING_STARTED, f"Created trainer Job {name}.")


def _evaluation(name: str, attempt: int) -> Event:
    if attempt > 1:
        again = f"Created Job {name} for attempt {attempt}, which evaluates from the beginning."
        return Event(E.EVALUATION_RETRIED, again)
    return Event(E.EVALUATION_STARTED, f"Created Job {name}, which evaluates the adapter and trains nothing.")


def _suspension(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    if _became(old, new, C.SUSPENDED, "True"):
        return [Event(E.SUSPENDED, _message(new, C.SUSPENDED))]
    if _is_held(new) and not _is_held(old):
        return [Event(E.QUEUED, _message(new, C.QUEUED))]
    is_released = _is_held(old) and not new.is_true(C.QUEUED)
    is_resumed = (old.is_true(C.SUSPENDED) or is_released) and not new.is_true(C.SUSPENDED)
    return [Event(E.RESUMED, "The job was resumed.")] if is_resumed else []


def _is_held(status: FineTuneJobStatus) -> bool:
    """Return whether another controller than Kueue, whose reasons have their own events, holds the Job."""
    return status.is_true(C.QUEUED) and _reason(status, C.QUEUED) == names.Reason.JOB_SUSPENDED


def _queue(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    """Report that Kueue admitted the job, or why it waits if the cause has changed."""
    if _reason(new, C.QUOTA_RESERVED) == names.Reason.ADMITTED != _reason(old, C.QUOTA_RESERVED):
        return [Event(E.ADMITTED, _message(new, C.QUOTA_RESERVED))]
    found = new.condition(C.QUOTA_RESERVED)
    if found is None or found.status == "True" or found.reason in {_reason(old, C.QUOTA_RESERVED), _INACTIVE}:
        return []
    return [Event(E.QUEUED, found.message, is_warning=found.reason != names.Reason.WAITING_FOR_QUOTA)]


def _problems(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    """Report a new problem: no pod runs, the trainer is unreachable or stalled, or its checkpoints are too slow."""
    reason = _reason(new, C.RUNNING)
    found = []
    if reason in _POD_PROBLEMS and reason != _reason(old, C.RUNNING):
        found.append(Event(E(reason), _message(new, C.RUNNING), is_warning=True))
    if _became(old, new, C.GRACE_PERIOD_SUFFICIENT, "False"):
        found.append(Event(E.SAVE_TOO_SLOW, _message(new, C.GRACE_PERIOD_SUFFICIENT), is_warning=True))
    return found


def _end(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[Event]:
    found = []
    if _became(old, new, C.EARLY_STOPPED, "True"):
        found.append(Event(E.EARLY_STOPPED, _message(new, C.EARLY_STOPPED)))
    if _became(old, new, C.COMPLETE, "True"):
        found.append(Event(E.COMPLETED, _message(new, C.COMPLETE)))
        if new.evaluation and new.evaluation.verdict not in {None, Verdict.BETTER.value}:
            found.append(Event(E.NOT_BETTER, _as_sentence(new.evaluation.verdict_message or ""), is_warning=True))
        ability = new.evaluation.ability if new.evaluation else None
        if ability and ability.has_forgotten:
            found.append(Event(E.FORGOTTEN, _forgotten(ability), is_warning=True))
    for kind, reason in ((C.HUB_PUSHED, E.HUB_PUSH_FAILED), (C.REGISTRY_PUSHED, E.REGISTRY_PUSH_FAILED)):
        if _became(old, new, kind, "False") and new.is_true(C.COMPLETE):
            found.append(Event(reason, _message(new, kind), is_warning=True))
    if _became(old, new, C.FAILED, "True"):
        failed = new.condition(C.FAILED)
        text = f"{failed.reason}: {failed.message}" if failed else ""
        found.append(Event(E.FAILED, text, is_warning=True))
    return found


def _forgotten(found: AbilityStatus) -> str:
    questions = f"of {found.questions} questions on general ability" if found.questions else "of the questions"
    return (
        f"The tuned model answers {found.after_percent or 0:.1f} % {questions} correctly, "
        f"{found.before_percent or 0:.1f} % before training: see the recommendations of the report."
    )


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
