"""Suspend and resume: write the request first, then apply it to the Job; no counter changes.

Suspended is what the user asked for; Queued is a Job that a queue or another controller holds.
"""

from collections.abc import Sequence

from finetune_api.names import ConditionType, Reason
from finetune_operator.kube.errors import Refused
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy import kueue, remediation
from finetune_operator.policy.conditions import suspended_since
from finetune_operator.policy.decision import (
    OBSTACLE_SECONDS,
    SOON_SECONDS,
    Context,
    Effect,
    check_lost_node,
    requeue_in,
    set_condition,
)
from finetune_operator.policy.pods import pod_diagnosis

C, R = ConditionType, Reason


def check_suspension(context: Context) -> Effect:
    """Set condition Suspended, from spec.suspend, and Queued, from the Job, which other controllers may suspend."""
    own = context.observed.own
    not_queued = set_condition(C.QUEUED, "False", R.NOT_QUEUED)
    if context.spec.suspend:
        effect = set_condition(C.SUSPENDED, "True", R.USER_REQUESTED) + not_queued
        return effect if own else effect + set_condition(C.RUNNING, "False", R.NOT_STARTED)
    effect = set_condition(C.SUSPENDED, "False", R.NOT_SUSPENDED)
    suspended = (one for one in own if one.is_suspended and not one.is_over)
    foreign = next((one for one in suspended if not one.is_ours_to_resume), None)
    if foreign is None:
        return effect + not_queued
    reason = R.QUEUED_BY_KUEUE if kueue.is_queued(context, foreign) else R.JOB_SUSPENDED
    return effect + set_condition(C.QUEUED, "True", reason, f"Job {foreign.name}")


def hold_or_release(context: Context, child: Job, pods: Sequence[Pod]) -> Effect | None:
    """Return what to do about an open Job that must not run now or is not running yet; None if it may run."""
    alive = [pod for pod in pods if not pod.is_over]
    if context.spec.suspend:
        record_stop_request(context, alive)
        return _hold(context, child, alive)
    if child.is_suspended and child.is_ours_to_resume:
        return _release(context, child, alive, Effect(resume=child))
    workload = context.observed.workload_of(child)
    if workload and not workload.is_active and workload.is_ours_to_activate:
        return _release(context, child, alive, Effect(activate=workload))
    if not context.observed.workloads_error:  # else the operator may have suspended it through its Workload
        record_stopping(context, child, alive)
    if not child.is_suspended:
        return None
    if not alive and (refused := _check_refused_start(context, child)):
        return refused
    reason = R.QUEUED_BY_KUEUE if kueue.is_queued(context, child) else R.JOB_SUSPENDED
    return _show_stopping(context, alive, reason, f"Job {child.name}")


def record_stopping(context: Context, child: Job, alive: Sequence[Pod]) -> None:
    """Record that another controller has suspended the Job, because its pod can end after the Job is resumed."""
    run = context.status.current_run
    if run is None or run.stopping_reason == R.NO_PROGRESS:
        return
    if child.is_suspended and run.stopping_reason in {None, R.JOB_SUSPENDED}:
        run.stopping_reason, run.stopping_message = kueue.eviction(context, child) or (R.JOB_SUSPENDED, None)
    elif not child.is_suspended and any(pod.uid == run.pod_uid and not pod.deleting for pod in alive):
        run.stopping_reason = run.stopping_message = None  # resumed before the pod was stopped


def record_stop_request(context: Context, alive: Sequence[Pod]) -> None:
    """Record that the current run is stopped because the user suspends the job."""
    run = context.status.current_run
    if run and not run.stopping_reason and any(pod.uid == run.pod_uid and not pod.deleting for pod in alive):
        run.stopping_reason = R.USER_REQUESTED


def _hold(context: Context, child: Job, alive: Sequence[Pod]) -> Effect:
    observed, stored = context.observed, context.stored
    if isinstance(observed.obstacle, Refused):
        return show_refused_stop(context, alive)
    effect = _show_stopping(context, alive, R.NOT_STARTED)
    workload = observed.workload_of(child)
    is_written = suspended_since(stored) is not None and stored.current_run == context.status.current_run
    if not is_written:
        return effect + requeue_in(0)
    if workload:
        return effect + Effect(deactivate=workload if workload.is_active else None)
    if kueue.may_hold(child) and (child.is_suspended or observed.workloads_error):
        return effect  # Kueue may create its Workload, or it is not readable yet
    if observed.workloads is not None and kueue.may_hold(child):
        return effect + requeue_in(SOON_SECONDS)  # Kueue stops it, once its Workload exists
    return effect if child.is_suspended or child.is_deleting else effect + Effect(suspend=child)


def show_refused_stop(context: Context, pods: Sequence[Pod]) -> Effect:
    """Set condition Running of a Job that the API server refuses to suspend or to delete, if it does."""
    obstacle = context.observed.obstacle
    if not isinstance(obstacle, Refused):
        return Effect()
    is_running = any(pod.is_running for pod in pods)
    detail = remediation.append_fix(R.STOP_REFUSED, str(obstacle))
    return set_condition(C.RUNNING, "True" if is_running else "False", R.STOP_REFUSED, detail)


def _check_refused_start(context: Context, child: Job) -> Effect | None:
    """Return condition Running of a Job that the API server refuses to resume or to move; None if it does not."""
    obstacle = context.observed.obstacle
    if not isinstance(obstacle, Refused):
        return None
    detail = remediation.append_fix(R.POD_CREATION_REFUSED, f"Job {child.name} is not changed: {obstacle}")
    return set_condition(C.RUNNING, "False", R.POD_CREATION_REFUSED, detail)


def _show_stopping(context: Context, alive: Sequence[Pod], reason: Reason, detail: str = "") -> Effect:
    """Set condition Running of a Job that must have no pods: which still run, or why there are none."""
    if lost := check_lost_node(context, alive):
        return lost
    if alive:
        stopping = set_condition(C.RUNNING, "False", R.STOPPING, alive[0].name)
        return stopping + requeue_in(pod_diagnosis.LOST_SECONDS)
    return set_condition(C.RUNNING, "False", reason, detail)


def _release(context: Context, child: Job, alive: Sequence[Pod], resume: Effect) -> Effect:
    """Resume only when no pod from before the suspension is running, because two trainers must never run at once."""
    if lost := check_lost_node(context, alive):
        return lost + requeue_in(OBSTACLE_SECONDS)
    if alive:
        detail = f"waiting until {alive[0].name} from before the suspension is gone"
        return set_condition(C.RUNNING, "False", R.BACKING_OFF, detail) + requeue_in(OBSTACLE_SECONDS)
    if refused := _check_refused_start(context, child):
        return refused
    effect = set_condition(C.RUNNING, "False", R.TRAINED if context.status.trained_weights else R.PODS_STARTING)
    if suspended_since(context.stored):
        return effect + requeue_in(0)
    return effect if context.is_blocked else effect + resume
