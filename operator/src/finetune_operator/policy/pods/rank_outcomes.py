"""The pods of an attempt train and end together: find missing ranks, and the pod whose end decides the run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from finetune_api.names import Reason
from finetune_operator.kube.objects import Job
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.pods import pod_diagnosis
from finetune_operator.policy.pods.run_outcome import (
    RESULT_FAILED,
    RESULT_PREEMPTED,
    RESULT_SUCCEEDED,
    RESULT_SUSPENDED,
    PodOutcome,
)

WAIT_SECONDS = 5.0
"""How long the end of the first pod waits for the end of the pod that caused it."""
_FOLLOWS = frozenset({Reason.PREEMPTED, Reason.PEER_LOST})
"""Reasons of a pod that ended because another one did."""


@dataclass(frozen=True)
class End:
    """How a pod ended, or how a run counts and which pod decided it."""

    outcome: PodOutcome
    pod: Pod | None

    @property
    def is_failure(self) -> bool:
        """Whether its Job counts it as failed; a pod of another rank reports nothing when it exits with 0."""
        is_done = self.pod is not None and self.pod.rank > 0 and self.pod.exit_code == 0
        return (self.outcome.result == RESULT_FAILED and not is_done) or self.outcome.is_rejection

    def named(self) -> PodOutcome:
        """Return the outcome, with the pod in its message unless it is the first one."""
        if self.pod is None or self.pod.rank == 0:
            return self.outcome
        return replace(self.outcome, message=f"{describe_pod(self.pod)}: {self.outcome.message}")


def describe_pod(pod: Pod) -> str:
    """Return a pod's rank and name."""
    return f"pod {pod.rank} ({pod.name})"


def missing_ranks(child: Job, pods: Sequence[Pod], now: datetime) -> list[int]:
    """Return the ranks without a running pod; a pod that exited with 0 is not missing."""
    running = {pod.rank for pod in pods if pod.is_running and not pod_diagnosis.is_lost(pod, now)}
    present = running | {pod.rank for pod in pods if pod.exit_code == 0}
    return [rank for rank in range(child.nodes) if rank not in present]


def first_cause(ends: Sequence[End]) -> End | None:
    """Return the failure that caused the others: one that no retry fixes, else the first that ended by itself."""

    def order(end: End) -> tuple[bool, bool, float, int]:
        pod = end.pod
        at = pod.ended.timestamp() if pod and pod.ended else 0.0
        return (not end.outcome.is_terminal, bool(pod and pod.deleting), at, pod.rank if pod else 0)

    return min((end for end in ends if end.is_failure), key=order, default=None)


def decide_end(own: End, peers: Sequence[End], *, unseen: bool) -> End:
    """Return how a run of the first pod counts, given the ends of the pods that ran with it.

    `unseen`: the Job counts a failure that the status does not count yet, and no later run can be its cause.
    """
    if own.outcome.result in {RESULT_SUCCEEDED, RESULT_SUSPENDED}:
        return own
    report = own.outcome.report
    if cause := first_cause([own, *peers]):
        return End(replace(cause.named(), report=report), cause.pod)
    if unseen:
        return End(
            PodOutcome(RESULT_FAILED, Reason.UNOBSERVED, "the pod that failed was not observed", report=report), None
        )
    disrupted = next((end for end in peers if end.pod and end.pod.disruption), None)
    if disrupted and own.outcome.reason in _FOLLOWS:
        outcome = replace(disrupted.named(), result=RESULT_PREEMPTED, report=report)
        return End(outcome, disrupted.pod)
    return own


def pods_alive_with(pod: Pod, peers: Sequence[Pod]) -> list[Pod]:
    """Return the pods of other ranks that existed while this one ran."""
    began = pod.started or pod.created
    return [
        peer
        for peer in peers
        if peer.rank != pod.rank
        and not (began and peer.ended and peer.ended < began)
        and not (pod.ended and peer.created and peer.created > pod.ended)
    ]


def is_last(pod: Pod, pods: Sequence[Pod]) -> bool:
    """Return whether no later pod of its rank has run; `pods` are in the order of their creation."""
    later = [one for one in pods if one.rank == pod.rank and (one.is_running or one.counts_as_run)]
    return not later or later[-1].uid == pod.uid


def seconds_to_wait(pod: Pod, pods: Sequence[Pod], now: datetime) -> float:
    """Return how long to wait for the end of a pod that ran with this one and may be the cause of its end."""
    if pod.ended is None or not is_last(pod, pods):
        return 0.0
    left = WAIT_SECONDS - (now - pod.ended).total_seconds()
    is_open = any(peer.is_running for peer in pods_alive_with(pod, pods))
    return left if is_open and 0 < left <= 2 * WAIT_SECONDS else 0.0  # the node's clock may be slightly ahead
