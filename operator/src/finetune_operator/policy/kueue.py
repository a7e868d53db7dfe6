"""Kueue: set condition QuotaReserved with the reason why a Job waits, and its queue. Never starts a Job."""

import re

from finetune_api.names import Component, ConditionType, Reason
from finetune_api.status import WorkloadRef
from finetune_api.text.printable import printable
from finetune_operator.kube.objects import Job
from finetune_operator.kube.observed import Observed
from finetune_operator.kube.workload import Workload
from finetune_operator.manifests.effective_spec import own_queue, queue_name
from finetune_operator.policy import remediation
from finetune_operator.policy.decision import ConditionChange, Context, Effect, set_condition

C, R = ConditionType, Reason
DEACTIVATED = "Deactivated"
"""Kueue's eviction reason of a deactivated Workload."""
_NOISE = re.compile(r"couldn't assign flavors to pod set \S+: ")
_CAUSES = (
    (re.compile(r"(LocalQueue|ClusterQueue) \S+ doesn't exist"), R.QUEUE_NOT_FOUND),
    (re.compile(r"is (stopped|inactive|terminating)"), R.QUEUE_STOPPED),
    (re.compile(r"(?i)topology|requested level"), R.NO_MATCHING_TOPOLOGY),
    (
        re.compile(r"unavailable in ClusterQueue|does not provide|maximum capacity|node affinity|untolerated taint"),
        R.NO_MATCHING_FLAVOR,
    ),
)
"""Reasons by the first pattern that matches Kueue's message, because Kueue's own reason is nearly always Pending."""


def may_hold(child: Job) -> bool:
    """Return whether Kueue may have a Workload for the Job: it has a queue, or another controller has suspended it."""
    return not child.is_over and (child.queue is not None or (child.is_suspended and not child.is_ours_to_resume))


def is_queued(context: Context, child: Job) -> bool:
    """Return whether the Job waits for Kueue, installed or not."""
    is_foreign = child.is_suspended and not child.is_ours_to_resume and not child.is_over
    return is_foreign and (child.queue is not None or context.observed.workload_of(child) is not None)


def record_workload(context: Context) -> None:
    """Record the Workload of the current Job."""
    if context.observed.workloads_error:
        return
    child = _current(context)
    workload = context.observed.workload_of(child) if child else None
    context.status.workload_ref = WorkloadRef(name=workload.name) if workload else None


def check_quota(context: Context) -> Effect:
    """Set condition QuotaReserved of the current Job; absent if the job is in no queue."""
    child = _current(context)
    workload = context.observed.workload_of(child) if child else None
    if child and (error := context.observed.workloads_error):
        return set_condition(C.QUOTA_RESERVED, "Unknown", R.API_UNAVAILABLE, str(error))
    if child is None or (workload is None and (child.queue is None or not child.is_suspended)):
        return Effect(conditions=(ConditionChange(C.QUOTA_RESERVED, None),))
    if workload and workload.has_quota and not workload.eviction_reason:
        reason = R.ADMITTED if workload.is_admitted else R.QUOTA_RESERVED
        shown = set_condition(C.QUOTA_RESERVED, "True", reason, _reserved(child, workload))
    else:
        reason, detail = _wait(context, child, workload)
        shown = set_condition(C.QUOTA_RESERVED, "False", reason, f"Job {child.name} {detail}")
    return shown + _move(context, child, workload)


def has_left_queue(context: Context, child: Job) -> bool:
    """Return whether a Job must be replaced because the job names no queue any more.

    Without its label Kueue ignores the Job, but not its Workload, which would keep its place in the queue and its quota
    for as long as the Job exists. A queue that the operator did not choose would be chosen again for the next Job.
    """
    observed = context.observed
    is_kueue_there = observed.workloads is not None and not observed.workloads_error
    is_ours = child.queue is not None and child.is_queued_by_us
    return is_kueue_there and is_ours and queue_name(observed.job, Component(child.component)) is None


def find_refusal(observed: Observed) -> str:
    """Return why the job cannot run in its queue, until its spec changes; an empty string if it can.

    A Job of a queue of MultiKueue runs in another cluster: its pods wait there for a ConfigMap that only this cluster
    has, with the GPUs of their node, and neither they nor their result can be read here.
    """
    moved = next((one for one in observed.own if observed.is_for_other_cluster(one) and not one.is_over), None)
    if moved:
        component = Component(moved.component)
        is_own = moved.queue is not None and moved.queue == own_queue(observed.job, component)
        queue = f"{component}'s queue {moved.queue}" if is_own else f"queue {moved.queue}"
        cause = f"{queue} belongs to MultiKueue, which runs Jobs in other clusters without their ConfigMap"
        return remediation.append_fix(R.MULTIKUEUE_UNSUPPORTED, cause)
    known = observed.job.status.condition(C.ACCEPTED)
    if known and known.reason == R.MULTIKUEUE_UNSUPPORTED and known.observed_generation == observed.job.generation:
        return known.message.rstrip(".")
    return ""


def eviction(context: Context, child: Job) -> tuple[str, str] | None:
    """Return the reason and message of Kueue's eviction; None if the operator deactivated the Workload."""
    workload = context.observed.workload_of(child)
    if workload is None or not child.is_suspended or not workload.eviction_reason:
        return None
    if workload.eviction_reason == DEACTIVATED and workload.is_ours_to_activate:
        return None
    return workload.eviction_reason[:64], printable(f"Kueue: {workload.eviction_message}")[:1024]


def _current(context: Context) -> Job | None:
    own = [one for one in context.observed.own if may_hold(one) and not one.is_deleting]
    attempts = [one for one in own if one.is_attempt]
    return max(attempts or own, key=lambda one: one.attempt, default=None)


def _reserved(child: Job, workload: Workload) -> str:
    where = f"Job {child.name} has quota in ClusterQueue {workload.cluster_queue}"
    return where if workload.is_admitted else f"{where}, and waits for its admission checks"


def _wait(context: Context, child: Job, workload: Workload | None) -> tuple[Reason, str]:
    where = f"waits in queue {child.queue}"
    if workload is None and context.observed.workloads is None:
        return R.KUEUE_MISSING, remediation.append_fix(R.KUEUE_MISSING, f"{where}, but this cluster has no Kueue")
    if workload is None:
        return R.WAITING_FOR_QUOTA, f"{where}, which Kueue has not processed yet"
    if not workload.is_active:
        return R.WORKLOAD_INACTIVE, _inactive(context, workload)
    if child.queue is None:
        return R.QUEUE_MISSING, remediation.append_fix(
            R.QUEUE_MISSING, "has no queue, and Kueue suspends such Jobs in this cluster"
        )
    message = workload.eviction_message if workload.has_quota else workload.message
    words = _NOISE.sub("", message).strip() or "Kueue has not processed it yet"
    reason = next((reason for pattern, reason in _CAUSES if pattern.search(words)), R.WAITING_FOR_QUOTA)
    return reason, remediation.append_fix(reason, f"{where}: {words}")


def _inactive(context: Context, workload: Workload) -> str:
    if workload.is_ours_to_activate:
        return "is not queued while the job is suspended" if context.spec.suspend else "is not queued yet"
    last = f" ({workload.eviction_message})" if workload.eviction_message else ""
    return f"was deactivated{last}: set spec.active of Workload {workload.name} to true"


def _move(context: Context, child: Job, workload: Workload | None) -> Effect:
    """Move a waiting Job at once when its queue is changed, because the first queue may never admit it.

    Where Kueue is installed, a Job whose queue is removed is replaced instead.
    """
    wanted = queue_name(context.observed.job, Component(child.component))
    has_quota = workload is not None and workload.has_quota
    if context.acceptance.is_refused or not child.is_suspended or wanted == child.queue or has_quota:
        return Effect()
    if wanted is not None or (context.observed.workloads is None and not context.spec.suspend):
        return Effect(move_to_queue=(child, wanted))
    return Effect()
