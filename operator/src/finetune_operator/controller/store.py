"""Everything that a reconcile reads: FineTuneJobs with their Jobs, pods and Workloads, kept by the watches."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from finetune_operator.controller.mirror import Mirror
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import FineTuneJob, Job, Key, Pod, Workload

Kind = Literal["finetunejobs", "jobs", "pods", "workloads"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Settled:
    """What is kept of a finished job, which is read again from the API server if anything is left to do."""

    uid: str
    version: int
    removes_children_at: datetime | None
    """When its Jobs are removed; None if they stay."""


@dataclass
class Store:
    """The objects of all open jobs. Old states are possible: what cannot be taken back needs a live read."""

    jobs: Mirror[FineTuneJob | Settled] = field(default_factory=Mirror)
    children: Mirror[Job] = field(default_factory=Mirror)
    pods: Mirror[Pod] = field(default_factory=Mirror)
    workloads: Mirror[Workload] = field(default_factory=Mirror)
    problems: dict[tuple[Kind, str | None], ClusterError] = field(default_factory=dict)
    """Why a kind cannot be listed in a namespace, or in all; what is known of it may then be old, or nothing."""
    has_kueue: bool = False
    """Whether Workloads are watched."""
    is_synced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once every watch has listed its objects, or cannot."""

    def mirror(self, kind: Kind) -> Mirror[Any]:
        """Return the objects of a kind."""
        found: dict[Kind, Mirror[Any]] = {
            "finetunejobs": self.jobs, "jobs": self.children, "pods": self.pods, "workloads": self.workloads,
        }  # fmt: skip
        return found[kind]

    def find_problem(self, namespace: str, *kinds: Kind) -> ClusterError | None:
        """Return why one of these kinds cannot be listed in a namespace."""
        found = (self.problems.get((kind, where)) for kind in kinds for where in (None, namespace))
        return next((problem for problem in found if problem), None)

    def find(self, key: Key) -> FineTuneJob | Settled | None:
        """Return the latest state of a job."""
        return max(self.jobs.of(key), key=lambda one: one.version, default=None)

    def find_open(self, key: Key) -> FineTuneJob | None:
        """Return a job that is not settled."""
        found = self.find(key)
        return found if isinstance(found, FineTuneJob) else None

    def put_job(self, job: FineTuneJob, removes_children_at: datetime | None) -> bool:
        """Take the state of a job; of a settled one, only what is needed to remove its Jobs is kept."""
        if not job.is_settled:
            return self.jobs.put(job.key, job)
        is_new = self.jobs.put(job.key, Settled(job.uid, job.version, removes_children_at))
        if is_new:
            self._drop_children(job.key)
        return is_new

    def remove_job(self, key: Key, uid: str | None = None) -> None:
        """Remove a deleted job, and what is known of its children; without a UID, the job is removed already."""
        if uid:
            self.jobs.remove(uid)
        if self.find_open(key) is None:
            self._drop_children(key)

    def _drop_children(self, key: Key) -> None:
        for mirror in (self.children, self.pods, self.workloads):
            mirror.drop(key)
