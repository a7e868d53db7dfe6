"""Pods whose own container has ended while one that others have added, such as the proxy of a service mesh, runs on.

Kubernetes does not count such a pod as ended: its Job would never end, and its GPUs would stay allocated.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from finetune_operator.kube.pod import Pod

LINGER_SECONDS = 60.0
"""How long a container of others may run on, for example to send the last lines of a log."""


def seconds_left(pods: Sequence[Pod], now: datetime, recorded: Mapping[str, datetime] | None = None) -> float | None:
    """Return for how many seconds a Job may wait for containers of others, from 0; None unless it waits for nothing
    else. Of pods whose end is recorded, that counts: the clock of a node may be ahead."""
    found = lingering(pods)
    if not found or any(not pod.is_over for pod in pods):
        return None
    known = [recorded[pod.uid] for pod in pods if pod.uid in recorded] if recorded else []
    ends = known or [pod.ended for pod in found if pod.ended]
    passed = (now - max(ends)).total_seconds() if ends else LINGER_SECONDS
    return min(max(0.0, LINGER_SECONDS - passed), LINGER_SECONDS)


def lingering(pods: Sequence[Pod]) -> list[Pod]:
    """Return the pods whose own container has ended, and that are neither ended nor being deleted."""
    return [pod for pod in pods if pod.exit_code is not None and pod.is_alive and pod.deleting is None]


def describe(pods: Sequence[Pod]) -> str:
    """Return which containers run on."""
    found = lingering(pods)
    what = found[0].companions if found else ""
    return f"container {what} of pod {found[0].name} ran on after the trainer's" if what else "a container ran on"
