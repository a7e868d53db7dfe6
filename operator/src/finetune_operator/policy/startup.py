"""Why an open Job has no running pod, as condition Running; preflight's pod meets the same troubles first."""

from dataclasses import replace

from finetune_api.names import Component, ConditionType, Reason
from finetune_operator.kube.objects import Job, Pod
from finetune_operator.policy import pod_diagnosis, rank_outcomes, runs
from finetune_operator.policy.decision import Draft
from finetune_operator.policy.pod_diagnosis import Diagnosis

C, R = ConditionType, Reason


def watch_start(draft: Draft, child: Job, pods: tuple[Pod, ...]) -> None:
    """Says what the pods wait for, and asks for another look when that may change without an event."""
    running = next((pod for pod in pods if pod.is_running), None)
    if child.nodes == 1 and running and not pod_diagnosis.is_lost(running, draft.observed.now):
        draft.conditions.set(C.RUNNING, "False", R.NOT_STARTED)
        return
    lead, concerned, found = _find(draft, child, pods)
    draft.decision.fetch_events_for = found.query
    last = runs.last_sentence(draft.status)
    if runs.has_succeeded(draft.status, child):
        draft.conditions.set(C.RUNNING, "False", R.FINISHED)
    elif draft.events_forbidden and found.query:
        draft.conditions.set(C.RUNNING, "False", R.API_DENIED, str(draft.observed.obstacle))
    elif found.reason is R.NODE_LOST:
        draft.conditions.set(C.RUNNING, "Unknown", R.NODE_LOST, found.detail, prefix=lead)
    elif child.nodes > 1 and child.failed_pods:
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, "a pod has failed, and the others are told to end")
    elif found.reason is R.PODS_STARTING and child.component == Component.PREFLIGHT:
        draft.conditions.set(C.RUNNING, "False", R.NOT_STARTED)
    elif found.reason is R.PODS_STARTING and not [pod for pod in concerned if not pod.is_over] and last:
        draft.conditions.set(C.RUNNING, "False", R.BACKING_OFF, last, prefix=lead)
    else:
        draft.conditions.set(C.RUNNING, "False", found.reason, found.detail, prefix=lead)


def _find(draft: Draft, child: Job, pods: tuple[Pod, ...]) -> tuple[str, tuple[Pod, ...], Diagnosis]:
    """The worst trouble: what it is about, the pods that have it, and what it is."""
    observed = draft.observed
    if child.nodes == 1:
        found = pod_diagnosis.diagnose(child, pods, observed.warnings, observed.now)
        _again(draft, found)
        return "", pods, found
    ranks = rank_outcomes.missing(child, pods, observed.now)
    troubles = []
    for rank in ranks:
        mine = tuple(pod for pod in pods if pod.rank == rank)
        found = pod_diagnosis.diagnose(child, mine, observed.warnings, observed.now)
        _again(draft, found)
        if observed.warnings:  # an answer takes the place of the one before: no second question in the same look
            found = replace(found, query=None)
        troubles.append((f"{child.nodes - len(ranks)} of {child.nodes} pods run; {_named(rank, mine)}: ", mine, found))
    return min(troubles, key=lambda one: _weight(one[2]), default=("", pods, Diagnosis(R.PODS_STARTING)))


def _again(draft: Draft, found: Diagnosis) -> None:
    if found.check_after is not None:
        draft.decision.again_in(found.check_after)


def _named(rank: int, pods: tuple[Pod, ...]) -> str:
    alive = next((pod for pod in reversed(pods) if not pod.is_over), None)
    return rank_outcomes.called(alive) if alive else f"pod {rank} (not there)"


def _weight(found: Diagnosis) -> tuple[bool, bool, bool]:
    return (found.reason is not R.NODE_LOST, found.reason is R.PODS_STARTING, found.query is None)
