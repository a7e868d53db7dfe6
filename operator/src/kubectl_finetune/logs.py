"""`logs`: what the pod of the current run writes, and with -f that of each run after it, until the job ends."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune_api.names import ANNOTATION_INDEX, Component, ConditionType
from kubectl_finetune.cluster import Cluster
from kubectl_finetune.describe import why
from kubectl_finetune.errors import NotFound
from kubectl_finetune.figures import clean
from kubectl_finetune.job import Job, Object

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
    job = cluster.get_job(name)
    pod = newest(cluster.list_pods(job, wanted.component), wanted.rank)
    if pod is None:
        removed = "its pods are removed" if job.has_ended else f"no {wanted.component.value} pod is there yet"
        raise NotFound(f"{job.name} has no log: {removed}", why(job))
    if waiting := waits_for(pod):
        raise NotFound(f"pod {pod['metadata']['name']} has not started: {waiting}", why(job))
    yield from cluster.read_log(pod, follow=False, tail=wanted.tail, timestamps=wanted.timestamps)


def follow(cluster: Cluster, name: str, wanted: Wanted, say: Callable[[str], None]) -> Iterator[bytes]:
    """The log of this run and of those after it; what is waited for is said once."""
    followed: dict[str, bool] = {}
    said = ""
    while True:
        job = cluster.get_job(name)
        pod = newest(cluster.list_pods(job, wanted.component), wanted.rank)
        uid = pod["metadata"]["uid"] if pod else ""
        if pod and not waits_for(pod) and not followed.get(uid):
            say(f"--- pod {pod['metadata']['name']}" + (", again from here" if uid in followed else ""))
            tail = 0 if uid in followed else wanted.tail
            yield from cluster.read_log(pod, follow=True, tail=tail, timestamps=wanted.timestamps)
            followed[uid] = _is_over(cluster, job, wanted, uid)
            continue
        if _is_done(job, wanted):
            return
        waiting = f"{job.phase}: {why(job)}" if job.is_seen else why(job)
        if waiting != said:
            said = waiting
            say(f"waiting: {waiting}")
        time.sleep(WAIT_SECONDS)


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


def _is_over(cluster: Cluster, job: Job, wanted: Wanted, uid: str) -> bool:
    """Whether the pod has ended, or only the connection to its log."""
    for pod in cluster.list_pods(job, wanted.component):
        if pod["metadata"]["uid"] == uid:
            states = [one.get("state") or {} for one in (pod.get("status") or {}).get("containerStatuses") or []]
            return not any("running" in state for state in states)
    return True


def _is_done(job: Job, wanted: Wanted) -> bool:
    is_checked = wanted.component is Component.PREFLIGHT and job.status.is_true(ConditionType.VALIDATED)
    return job.has_ended or is_checked
