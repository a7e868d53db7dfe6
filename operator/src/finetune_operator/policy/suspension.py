"""Suspend and resume: what the user wants is written first, then done to the Job, and costs no counter."""

from finetune_api.names import ConditionType, Reason
from finetune_operator.kube.errors import Refused
from finetune_operator.kube.objects import Job, Pod, Workload
from finetune_operator.policy import kueue, pod_diagnosis
from finetune_operator.policy.decision import SOON_SECONDS, Draft
from finetune_operator.policy.run_outcome import suspended_since

C, R = ConditionType, Reason


def decide(draft: Draft) -> None:
    """Condition Suspended, from the user's wish and from what others did to the Job; nothing is created meanwhile."""
    foreign = next((one for one in draft.observed.own if one.is_suspended and not one.is_ours_to_resume), None)
    if draft.spec.suspend:
        draft.conditions.set(C.SUSPENDED, "True", R.USER_REQUESTED)
        draft.is_blocked = True
    elif foreign and kueue.is_queued(draft, foreign):
        draft.conditions.set(C.SUSPENDED, "True", R.QUEUED_BY_KUEUE, f"Job {foreign.name}")
    elif foreign and not foreign.is_over:
        draft.conditions.set(C.SUSPENDED, "True", R.JOB_SUSPENDED, f"Job {foreign.name}")
    else:
        draft.conditions.set(C.SUSPENDED, "False", R.NOT_SUSPENDED)
    if draft.spec.suspend and not draft.observed.own:
        draft.conditions.set(C.RUNNING, "False", R.NOT_STARTED)


def is_held(draft: Draft, child: Job, pods: tuple[Pod, ...]) -> bool:
    """Whether an open Job must not run now, or does not run yet; what is to be done about it is decided."""
    alive = [pod for pod in pods if not pod.is_over]
    if draft.spec.suspend:
        _hold(draft, child, alive)
        return True
    if child.is_suspended and child.is_ours_to_resume:
        _release(draft, child, alive)
        return True
    workload = draft.observed.workload_of(child)
    if workload and not workload.is_active and workload.is_ours_to_activate:
        _release(draft, child, alive, workload)
        return True
    _note_stopping(draft, child, alive)
    if child.is_suspended:
        reason = R.QUEUED_BY_KUEUE if kueue.is_queued(draft, child) else R.JOB_SUSPENDED
        _show_stopping(draft, alive, reason, f"Job {child.name}")
    return child.is_suspended


def _note_stopping(draft: Draft, child: Job, alive: list[Pod]) -> None:
    """That somebody else has suspended the Job is written while it shows, for its pod may end after that is over."""
    run = draft.status.current_run
    if run is None or run.stopping == R.NO_PROGRESS:
        return
    if child.is_suspended and run.stopping in {None, R.JOB_SUSPENDED}:
        run.stopping, run.stopping_message = kueue.eviction(draft, child) or (R.JOB_SUSPENDED, None)
    elif not child.is_suspended and any(pod.uid == run.pod_uid and not pod.deleting for pod in alive):
        run.stopping = run.stopping_message = None  # taken back before anything came of it


def _hold(draft: Draft, child: Job, alive: list[Pod]) -> None:
    run = draft.status.current_run
    if run and not run.stopping and any(pod.uid == run.pod_uid and not pod.deleting for pod in alive):
        run.stopping = R.USER_REQUESTED
    is_written = suspended_since(draft.stored) is not None and draft.stored.current_run == draft.status.current_run
    if isinstance(draft.observed.obstacle, Refused):
        return
    _show_stopping(draft, alive, R.NOT_STARTED)
    workload = draft.observed.workload_of(child)
    if not is_written:
        draft.decision.again_in(0)
    elif workload:
        draft.decision.deactivate = workload if workload.is_active else None
    elif child.is_suspended and kueue.may_hold(child):
        draft.decision.again_in(kueue.AGAIN_SECONDS)  # Kueue has no Workload for it yet, and may make one
    elif draft.observed.workloads is not None and kueue.may_hold(child):
        draft.decision.again_in(SOON_SECONDS)  # it is Kueue's to stop, once its Workload is known
    elif not child.is_suspended and not child.is_deleting:
        draft.decision.suspend = child


def _show_stopping(draft: Draft, alive: list[Pod], reason: Reason, detail: str = "") -> None:
    """What still runs of a Job that is to have no pods, or why it has none."""
    lost = next((pod for pod in alive if pod_diagnosis.is_lost(pod, draft.observed.now)), None)
    if lost:
        draft.conditions.set(C.RUNNING, "Unknown", R.NODE_LOST, pod_diagnosis.explain_lost_node(lost))
    elif alive:
        draft.conditions.set(C.RUNNING, "False", R.STOPPING, alive[0].name)
        draft.decision.again_in(pod_diagnosis.LOST_SECONDS)
    else:
        draft.conditions.set(C.RUNNING, "False", reason, detail)


def _release(draft: Draft, child: Job, alive: list[Pod], workload: Workload | None = None) -> None:
    """Only when nothing of the time before runs any more, for two trainers must never run at once."""
    lost = next((pod for pod in alive if pod_diagnosis.is_lost(pod, draft.observed.now)), None)
    if lost:
        draft.conditions.set(C.RUNNING, "Unknown", R.NODE_LOST, pod_diagnosis.explain_lost_node(lost))
    elif alive:
        detail = f"waiting until {alive[0].name} of the time before the suspension is gone"
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, detail)
    else:
        draft.conditions.set(C.RUNNING, "False", R.PODS_STARTING)
    if alive:
        draft.decision.again_in(SOON_SECONDS)
    elif suspended_since(draft.stored):
        draft.decision.again_in(0)
    elif draft.is_blocked:
        return
    elif workload:
        draft.decision.activate = workload
    else:
        draft.decision.resume = child
