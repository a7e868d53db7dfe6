"""Why an open Job has no running pod, as condition Running; preflight's pod meets the same troubles first."""

from finetune_api.names import Component, ConditionType, Reason
from finetune_operator import runs, trouble
from finetune_operator.draft import Draft
from finetune_operator.objects import ChildJob, Pod

C, R = ConditionType, Reason


def watch_start(draft: Draft, child: ChildJob, pods: tuple[Pod, ...]) -> None:
    """Says what the pod waits for, and asks for another look when that may change without an event."""
    running = next((pod for pod in pods if pod.is_running), None)
    if running and not trouble.is_lost(running, draft.seen.now):
        draft.conditions.set(C.RUNNING, "False", R.NOT_STARTED)
        return
    found = trouble.diagnose(child, pods, draft.seen.warnings, draft.seen.now)
    draft.decision.look_at = found.question
    if found.check_after is not None:
        draft.decision.again_in(found.check_after)
    last = runs.last_sentence(draft.status)
    if runs.has_succeeded(draft.status, child):
        draft.conditions.set(C.RUNNING, "False", R.FINISHED)
    elif draft.is_deaf and found.question:
        draft.conditions.set(C.RUNNING, "False", R.API_DENIED, str(draft.seen.obstacle))
    elif found.reason is R.NODE_LOST:
        draft.conditions.set(C.RUNNING, "Unknown", R.NODE_LOST, found.detail)
    elif found.reason is R.PODS_STARTING and child.component == Component.PREFLIGHT:
        draft.conditions.set(C.RUNNING, "False", R.NOT_STARTED)
    elif found.reason is R.PODS_STARTING and not [pod for pod in pods if not pod.is_over] and last:
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, last)
    else:
        draft.conditions.set(C.RUNNING, "False", found.reason, found.detail)
