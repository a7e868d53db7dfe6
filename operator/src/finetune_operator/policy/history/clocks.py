"""Correct the times that a node has written by those of the API server, because a node's clock may be wrong."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_operator.kube.pod import Pod

SLACK = timedelta(seconds=15)
"""How far a node's clock may differ from the API server's without a correction."""
Times = tuple[datetime | None, datetime | None]


def order(pod: Pod, now: datetime) -> tuple[datetime, datetime, str]:
    """Return the sort key of a run: the API server's time of its pod's creation comes first."""
    return (pod.created or now, pod.ended or now, pod.name)


def run_times(pod: Pod, pods: Sequence[Pod], now: datetime) -> Times:
    """Return when a pod started and ended: after its creation, before now, and before the next pod of its rank.

    Both times are moved together, so that the length of the run stays what the node has measured, unless its clock was
    set back in between.
    """
    created, now = pod.created or now, now.replace(microsecond=0)
    later = [other.created for other in pods if other.rank == pod.rank and other.created and other.created > created]
    latest = min([max(now, created), *later])
    started, ended = pod.started, pod.ended
    first, last = started or ended, ended or started
    if first is None or last is None:
        return None, None
    if last < first:
        began = min(max(first, created), latest)
        return began, min(max(last, began), latest)
    move = timedelta(0)
    if first < created - SLACK:
        move = created - first
    if last + move > latest + SLACK:
        move = latest - last
    if move:
        started, ended = started and max(started + move, created), ended and max(ended + move, created)
    return started, ended
