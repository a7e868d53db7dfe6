"""The log of the current run's pod, and on request of each run after it, until the job ends."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from finetune_api.names import ANNOTATION_INDEX, TRAINER_CONTAINER, Component, ConditionType, Reason
from finetune_api.text.printable import printable
from finetune_client.cluster.client import Cluster
from finetune_client.cluster.connection import RETRIES, retry_unreachable
from finetune_client.cluster.job import Job, Object
from finetune_client.errors import NotFound, Unreachable, WrongUse

WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Wanted:
    """The pod to read, and how much of its log."""

    component: Component = Component.TRAINER
    rank: int = 0
    tail: int | None = None
    timestamps: bool = False


def read(cluster: Cluster, name: str, wanted: Wanted) -> Iterator[bytes]:
    """Yield the log of the newest pod, as far as it is written."""
    job, pod = _look(cluster, name, wanted)
    if pod is None:
        raise _explain_missing(job, wanted)
    if waiting := waits_for(pod):
        raise NotFound(f"pod {pod['metadata']['name']} has not started: {waiting}", job.why)
    yield from cluster.read_log(pod, follow=False, tail=wanted.tail, timestamps=wanted.timestamps)


def follow(cluster: Cluster, name: str, wanted: Wanted, say: Callable[[str], None]) -> Iterator[bytes]:
    """Yield the log of this run and of those after it; report each reason for waiting once."""
    look = partial(_look, cluster, name, wanted)
    streams: dict[str, _Stream] = {}
    reported = ""
    job, pod = look()
    while True:
        uid = pod["metadata"]["uid"] if pod else ""
        stream = streams.setdefault(uid, _Stream(cluster, pod, wanted)) if pod and not waits_for(pod) else None
        if stream and not stream.is_over:
            yield from stream.read(say)
            time.sleep(WAIT_SECONDS)
            job, pod = retry_unreachable(look, WAIT_SECONDS)
            stream.is_over = stream.is_over or not stream.is_worth_another(pod)
            continue
        if _is_done(job, wanted):
            if not streams:
                raise _explain_missing(job, wanted)
            return
        waiting = f"{job.phase}: {job.why}" if job.is_observed else job.why
        if waiting != reported:
            reported = waiting
            say(f"waiting: {waiting}")
        time.sleep(WAIT_SECONDS)
        job, pod = retry_unreachable(look, WAIT_SECONDS)


class _Stream:
    """The log of one pod; it is requested again if the connection ends or the log is unavailable at first."""

    def __init__(self, cluster: Cluster, pod: Object, wanted: Wanted) -> None:
        self.is_over = False
        self._cluster, self._pod, self._wanted = cluster, pod, wanted
        self._has_begun = False
        self._refusals: list[Unreachable] = []
        self._reported = ""

    def read(self, say: Callable[[str], None]) -> Iterator[bytes]:
        """Yield what is written until the connection ends; after the first read only new lines."""
        tail = 0 if self._has_begun else self._wanted.tail
        self._say(f"--- pod {self._pod['metadata']['name']}" + (", again from here" if self._has_begun else ""), say)
        try:
            for chunk in self._cluster.read_log(self._pod, follow=True, tail=tail, timestamps=self._wanted.timestamps):
                self._has_begun, self._reported = True, ""
                yield chunk
        except Unreachable as error:
            self._refusals.append(error)
            self._say(f"waiting: {error.message}", say)
        except NotFound:
            # The pod was removed after it was listed; the next request returns the job's state.
            self._refusals.clear()
        else:
            self._refusals.clear()

    def is_worth_another(self, pod: Object | None) -> bool:
        """Return whether the pod still runs, or has ended and its log could not be read yet."""
        uid = self._pod["metadata"]["uid"]
        is_unread = bool(self._refusals) and not self._has_begun and pod is not None and pod["metadata"]["uid"] == uid
        if is_unread and len(self._refusals) > RETRIES and not _runs(pod, uid):
            raise self._refusals[-1]
        return is_unread or _runs(pod, uid)

    def _say(self, text: str, say: Callable[[str], None]) -> None:
        if text not in self._reported.splitlines():
            self._reported += f"{text}\n"
            say(text)


def _look(cluster: Cluster, name: str, wanted: Wanted) -> tuple[Job, Object | None]:
    job = cluster.get_job(name)
    pod = newest(cluster.list_pods(job, wanted.component), wanted.rank)
    if pod is None:
        _require_rank(job, wanted)
    return job, pod


def _require_rank(job: Job, wanted: Wanted) -> None:
    """Raise WrongUse for a rank that no pod of the job will have."""
    if wanted.component is Component.PREFLIGHT and wanted.rank:
        raise WrongUse(f"{job.name} has no preflight pod of rank {wanted.rank}: preflight has one pod", "choose rank 0")
    last = int(job.field("resources.numNodes") or 1) - 1
    if wanted.rank > last:
        ranks = f"its ranks are 0 to {last}" if last else "its only rank is 0"
        raise WrongUse(f"{job.name} has no pod of rank {wanted.rank}: {ranks}", "choose one of these")


def _explain_missing(job: Job, wanted: Wanted) -> NotFound:
    """Return why no pod has a log."""
    accepted = job.status.condition(ConditionType.ACCEPTED)
    if job.has_ended and accepted and accepted.status == "False":
        return NotFound(f"{job.name} has no log: it failed before it had a pod", job.why)
    if wanted.component is Component.TRAINER and job.has_ended and not job.status.is_true(ConditionType.VALIDATED):
        return NotFound(f"{job.name} was never trained: preflight did not pass: add --preflight", job.why)
    validated = job.status.condition(ConditionType.VALIDATED)
    if wanted.component is Component.TRAINER and job.has_ended and validated and validated.reason == Reason.ADOPTED:
        return NotFound(f"{job.name} was never trained: its result was already published: add --preflight", job.why)
    if job.has_ended:
        return NotFound(f"{job.name} has no log: its pods are removed", job.why)
    if _is_done(job, wanted):
        return NotFound(f"{job.name} has no log: its preflight pod is removed", job.why)
    return NotFound(f"{job.name} has no log: no {wanted.component.value} pod exists yet", job.why)


def newest(pods: list[Object], rank: int) -> Object | None:
    """Return the newest pod of that rank; a pod without a rank is the only one of its Job."""
    matching = [
        pod for pod in pods if ((pod["metadata"].get("annotations") or {}).get(ANNOTATION_INDEX) or "0") == str(rank)
    ]
    return matching[-1] if matching else None


def waits_for(pod: Object) -> str:
    """Return why the trainer's container has not started; empty if it has."""
    status, state = pod.get("status") or {}, _read_state(pod)
    if "running" in state or "terminated" in state:
        return ""
    if "waiting" in state:
        waiting = state["waiting"]
        return printable(f"{waiting.get('reason', 'waiting')} {waiting.get('message', '')}".strip())
    unscheduled = [one for one in status.get("conditions") or [] if one.get("message")]
    return printable(unscheduled[0]["message"]) if unscheduled else str(status.get("phase", "Pending"))


def _runs(pod: Object | None, uid: str) -> bool:
    """Return whether the container of that pod still runs, so that only the connection has ended."""
    return pod is not None and pod["metadata"]["uid"] == uid and "running" in _read_state(pod)


def _read_state(pod: Object) -> Object:
    """Return the state of the trainer's container; others, such as the proxy of a service mesh, have their own."""
    found = (pod.get("status") or {}).get("containerStatuses") or []
    return next((one.get("state") or {} for one in found if one.get("name") == TRAINER_CONTAINER), {})


def _is_done(job: Job, wanted: Wanted) -> bool:
    is_checked = wanted.component is Component.PREFLIGHT and job.status.is_true(ConditionType.VALIDATED)
    return job.has_ended or is_checked
