"""Why a Job has no running pod, with the message of the scheduler, the kubelet or the API server."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.names import Reason
from finetune_operator.kube.objects import EARLIEST, Job
from finetune_operator.kube.observed import BINDING_WARNING, CLAIM_WARNING, START_WARNINGS, Reading, Warnings
from finetune_operator.kube.pod import IMAGE_PROBLEMS, START_PROBLEMS, Pod
from finetune_operator.policy import remediation

NO_POD_SECONDS = 10.0
PENDING_SECONDS = 15.0
UNREACHABLE_SECONDS = 45.0
IGNORED_SECONDS = 30.0
LOST_SECONDS = 30.0
"""How long after its grace period a deleted pod may exist before its node counts as lost."""
_CLAIM_FIXES = (
    ("not found", "create this claim in the job's namespace"),
    ("being deleted", "create it again once it is gone"),
    ("unbound", "give the claim a storage class that provisions its volume, or create a matching volume"),
)
_PREEMPTION = re.compile(r"( (no new claims to deallocate|still not schedulable),)? preemption: .*", re.DOTALL)
"""What the scheduler writes after the causes; the first part is of a scheduler with resource claims."""
_UNCREATED_CLAIM = re.compile(r"waiting for ephemeral volume controller")
_CLAIM = re.compile(
    r'persistentvolumeclaim "[^"]+" (not found|is being deleted)|pod has unbound immediate PersistentVolumeClaims'
)


@dataclass(frozen=True)
class EventQuery:
    """An object whose Warning events may name the cause."""

    kind: str
    uid: str


@dataclass(frozen=True)
class Diagnosis:
    """A reason for condition Running, and the events to read for more."""

    reason: Reason
    detail: str = ""
    query: EventQuery | None = None
    check_after: float | None = None


def diagnose(child: Job, pods: Sequence[Pod], warnings: Warnings | None, now: datetime) -> Diagnosis:
    """Return the first known problem that applies, else that the pod is starting."""
    pod = next((one for one in reversed(pods) if not one.is_over), None)
    if pod is None:
        return _diagnose_missing_pod(child, pods, warnings, now)
    if is_lost(pod, now):
        return Diagnosis(Reason.NODE_LOST, explain_lost_node(pod))
    return _diagnose_pending_pod(pod, warnings, now)


def _diagnose_missing_pod(child: Job, pods: Sequence[Pod], warnings: Warnings | None, now: datetime) -> Diagnosis:
    times = [time for time in (child.created, *(pod.ended for pod in pods)) if time and time <= now]
    idle = (now - max(times)).total_seconds() if times else NO_POD_SECONDS
    if idle < NO_POD_SECONDS:
        return Diagnosis(Reason.PODS_STARTING, check_after=NO_POD_SECONDS - idle + 0.5)
    if warnings is None or warnings.uid != child.uid:
        return Diagnosis(Reason.PODS_STARTING, query=EventQuery("Job", child.uid))
    # Of an earlier pod, which was created then, the event of a refusal stays for an hour.
    last = max((pod.created for pod in pods if pod.created), default=EARLIEST)
    refused = _first_message(warnings, START_WARNINGS["Job"], since=last)
    reason = Reason.POD_CREATION_REFUSED if refused else Reason.PODS_STARTING
    detail = remediation.append_fix(reason, refused, child.component)
    return Diagnosis(reason, detail, check_after=NO_POD_SECONDS)


def _diagnose_pending_pod(pod: Pod, warnings: Warnings | None, now: datetime) -> Diagnosis:
    if pod.unschedulable:
        return _diagnose_unschedulable(pod, warnings)
    if pod.waiting_reason in IMAGE_PROBLEMS:
        return Diagnosis(Reason.IMAGE_PULL_FAILED, _explain_image_pull(pod))
    if pod.waiting_reason in START_PROBLEMS:
        message = f"{pod.waiting_reason}: {pod.waiting_message}"
        return Diagnosis(Reason.CONTAINER_ERROR, remediation.append_fix(Reason.CONTAINER_ERROR, message))
    if pod.has_volumes:
        return Diagnosis(Reason.PODS_STARTING)  # its image is being pulled, and its status shows whether that fails
    return _diagnose_by_events(pod, warnings, now)


def _diagnose_unschedulable(pod: Pod, warnings: Warnings | None) -> Diagnosis:
    """Return the scheduler's message, and for a claim that is not created also why, which only an event has."""
    if not _UNCREATED_CLAIM.search(pod.unschedulable):
        return Diagnosis(Reason.UNSCHEDULABLE, _explain_unschedulable(pod.unschedulable))
    if warnings is None or warnings.uid != pod.uid:
        query = EventQuery("Pod", pod.uid)
        return Diagnosis(Reason.UNSCHEDULABLE, _explain_unschedulable(pod.unschedulable), query=query)
    refused = _first_message(warnings, (BINDING_WARNING,))
    return Diagnosis(
        Reason.UNSCHEDULABLE, _explain_unschedulable(refused or pod.unschedulable), check_after=PENDING_SECONDS
    )


def _diagnose_by_events(pod: Pod, warnings: Warnings | None, now: datetime) -> Diagnosis:
    age = (now - pod.created).total_seconds() if pod.created else PENDING_SECONDS
    if age < PENDING_SECONDS:
        return Diagnosis(Reason.PODS_STARTING, check_after=PENDING_SECONDS - age + 0.5)
    if warnings is None or warnings.uid != pod.uid:
        return Diagnosis(Reason.PODS_STARTING, query=EventQuery("Pod", pod.uid))
    if unclaimed := _first_message(warnings, (CLAIM_WARNING,)) if pod.unclaimed else "":
        reason, problem = Reason.UNSCHEDULABLE, unclaimed
    elif failed := _first_message(warnings, set(START_WARNINGS["Pod"]) - {CLAIM_WARNING, BINDING_WARNING}):
        reason, problem = Reason.MOUNT_FAILED, failed
    elif pod.ignored_by and age >= IGNORED_SECONDS:
        claims = f", which waits for its resource claims ({pod.unclaimed})" if pod.unclaimed else ""
        reason, problem = Reason.UNSCHEDULABLE, f"scheduler {pod.ignored_by} has not handled the pod{claims}"
    else:
        reason, problem = Reason.PODS_STARTING, ""
    return Diagnosis(reason, remediation.append_fix(reason, problem), check_after=PENDING_SECONDS)


def is_lost(pod: Pod, now: datetime) -> bool:
    """Return whether the pod is deleted but its node has not confirmed its end, so it must not be replaced."""
    return not pod.is_over and pod.deleting is not None and (now - pod.deleting).total_seconds() > LOST_SECONDS


def explain_lost_node(pod: Pod) -> str:
    """Return what to do about a pod on a lost node."""
    node = pod.node or "(none)"
    gone = f"if it no longer exists, run kubectl delete node {node}"
    return f"node {node} has not confirmed that pod {pod.name} ended: bring the node back, or {gone}"


def _explain_unschedulable(message: str) -> str:
    """Return the scheduler's message without its preemption part, or only the claim if that is the cause, and a fix."""
    found = _CLAIM.search(message)
    if found is None:
        return remediation.append_fix(Reason.UNSCHEDULABLE, _PREEMPTION.sub("", message))
    fix = next(fix for pattern, fix in _CLAIM_FIXES if pattern in found.group())
    return f"{found.group()}: {fix}; the pod then starts"


def _explain_image_pull(pod: Pod) -> str:
    """Return a message that stays the same while the kubelet alternates between pulling and backing off."""
    cause = pod.waiting_message
    for noise in (f'Back-off pulling image "{pod.image}"', "ErrImagePull: ", "ImagePullBackOff: "):
        cause = cause.replace(noise, "")
    message = cause.strip(" :") or pod.waiting_reason
    return remediation.append_fix(Reason.IMAGE_PULL_FAILED, f"{pod.image}: {message}")


def _first_message(warnings: Warnings, reasons: Collection[str], since: datetime = EARLIEST) -> str:
    return next((one.message for one in warnings.items if one.reason in reasons and one.at >= since), "")


def is_unreachable(reading: Reading, now: datetime) -> bool:
    """Return whether the trainer has been unreachable for long enough to report it."""
    since = reading.unreachable_since
    return since is not None and (now - since).total_seconds() >= UNREACHABLE_SECONDS
