"""`logs`: what the pod of the current run writes, and with -f that of each run after it, until the job ends."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from finetune_api.names import ANNOTATION_INDEX, Component, ConditionType
from kubectl_finetune.cluster import Cluster
from kubectl_finetune.describe import why
from kubectl_finetune.errors import NotFound, Unreachable
from kubectl_finetune.figures import clean
from kubectl_finetune.job import Job, Object
from kubectl_finetune.patience import patiently

WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Wanted:
    """Which pod's log, and how much of it."""

    component: Component = Component.TRAINER
    rank: int = 0
    tail: int | None = None
    timestamps: bool = False


def read(cluster: Cluster, name: str, wanted: Wanted) -> Iterator[bytes]:
    """The log of the newest pod, as far as it is written."""
    job, pod = _look(cluster, name, wanted)
    if pod is None:
        removed = "its pods are removed" if job.has_ended else f"no {wanted.component.value} pod is there yet"
        raise NotFound(f"{job.name} has no log: {removed}", why(job))
    if waiting := waits_for(pod):
        raise NotFound(f"pod {pod['metadata']['name']} has not started: {waiting}", why(job))
    yield from cluster.read_log(pod, follow=False, tail=wanted.tail, timestamps=wanted.timestamps)


def follow(cluster: Cluster, name: str, wanted: Wanted, say: Callable[[str], None]) -> Iterator[bytes]:
    """The log of this run and of those after it; what is waited for is said once."""
    look = partial(_look, cluster, name, wanted)
    followed: dict[str, bool] = {}
    said = ""
    job, pod = look()
    while True:
        uid = pod["metadata"]["uid"] if pod else ""
        if pod and not waits_for(pod) and not followed.get(uid):
            say(f"--- pod {pod['metadata']['name']}" + (", again from here" if uid in followed else ""))
            tail = 0 if uid in followed else wanted.tail
            with contextlib.suppress(Unreachable):
                yield from cluster.read_log(pod, follow=True, tail=tail, timestamps=wanted.timestamps)
            time.sleep(WAIT_SECONDS)
            job, pod = patiently(look, WAIT_SECONDS)
            followed[uid] = not _runs(pod, uid)
            continue
        if _is_done(job, wanted):
            return
        waiting = f"{job.phase}: {why(job)}" if job.is_seen else why(job)
        if waiting != said:
            said = waiting
            say(f"waiting: {waiting}")
        time.sleep(WAIT_SECONDS)
        job, pod = patiently(look, WAIT_SECONDS)


def _look(cluster: Cluster, name: str, wanted: Wanted) -> tuple[Job, Object | None]:
    job = cluster.get_job(name)
    return job, newest(cluster.list_pods(job, wanted.component), wanted.rank)


def newest(pods: list[Object], rank: int) -> Object | None:
    """The newest pod of that rank; a pod without a rank is the only one of its Job."""
    mine = [pod for pod in pods if int((pod["metadata"].get("annotations") or {}).get(ANNOTATION_INDEX) or 0) == rank]
    return mine[-1] if mine else None


def waits_for(pod: Object) -> str:
    """Why the container has not started; empty where it has."""
    status = pod.get("status") or {}
    states = [one.get("state") or {} for one in status.get("containerStatuses") or []]
    if any("running" in state or "terminated" in state for state in states):
        return ""
    for state in states:
        waiting = state.get("waiting") or {}
        return clean(f"{waiting.get('reason', 'waiting')} {waiting.get('message', '')}".strip())
    unscheduled = [one for one in status.get("conditions") or [] if one.get("message")]
    return clean(unscheduled[0]["message"]) if unscheduled else str(status.get("phase", "Pending"))


def _runs(pod: Object | None, uid: str) -> bool:
    """Whether it is still that pod, and its container runs: only the connection to its log has ended."""
    if pod is None or pod["metadata"]["uid"] != uid:
        return False
    states = [one.get("state") or {} for one in (pod.get("status") or {}).get("containerStatuses") or []]
    return any("running" in state for state in states)


def _is_done(job: Job, wanted: Wanted) -> bool:
    is_checked = wanted.component is Component.PREFLIGHT and job.status.is_true(ConditionType.VALIDATED)
    return job.has_ended or is_checked
