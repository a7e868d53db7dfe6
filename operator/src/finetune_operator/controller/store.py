"""Everything that a reconcile reads: FineTuneJobs with their Jobs, pods and Workloads, kept by the watches."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

import orjson

from finetune_operator.controller.mirror import Mirror
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import FineTuneJob, Job, Key
from finetune_operator.kube.pod import Pod
from finetune_operator.kube.workload import Workload

Kind = Literal["finetunejobs", "jobs", "pods", "workloads"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_READ = 128
"""Jobs that are kept as objects, too, at about 25 KiB each."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is kept of a finished job, which is read again from the API server if anything is left to do."""

    uid: str
    version: int
    removes_children_at: datetime | None
    """When its Jobs are removed; None if they stay."""


@dataclass(frozen=True, slots=True)
class Open:
    """A job that is not settled, as the text that it is read from: as objects it would take ten times the memory."""

    key: Key
    uid: str
    version: int
    text: bytes


@dataclass
class Store:
    """The objects of all open jobs. Old states are possible: what cannot be taken back needs a live read."""

    jobs: Mirror[Open | Settled] = field(default_factory=Mirror)
    _read: OrderedDict[str, FineTuneJob] = field(default_factory=OrderedDict)
    """By UID, the jobs that were put or read last."""
    children: Mirror[Job] = field(default_factory=Mirror)
    pods: Mirror[Pod] = field(default_factory=Mirror)
    workloads: Mirror[Workload] = field(default_factory=Mirror)
    problems: dict[tuple[Kind, str | None], ClusterError] = field(default_factory=dict)
    """Why a kind cannot be listed in a namespace, or in all; what is known of it may then be old, or nothing."""
    has_kueue: bool = False
    """Whether Workloads are watched."""
    needs_kueue: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a Job that Kueue may hold was looked at without Workloads."""
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

    def find(self, key: Key) -> Open | Settled | None:
        """Return the latest state of a job."""
        return max(self.jobs.of(key), key=lambda one: one.version, default=None)

    def has_open(self, key: Key) -> bool:
        """Return whether there is a job that is not settled."""
        return isinstance(self.find(key), Open)

    def read_open(self, key: Key) -> FineTuneJob | None:
        """Return a job that is not settled."""
        found = self.find(key)
        if not isinstance(found, Open):
            return None
        known = self._read.get(found.uid)
        if known is None or known.version != found.version:
            known = FineTuneJob.from_object(orjson.loads(found.text))
            self._keep_read(known)
        return known

    def put_job(self, job: FineTuneJob, removes_children_at: datetime | None) -> bool:
        """Take the state of a job; of a settled one, only what is needed to remove its Jobs is kept."""
        if job.is_settled:
            is_new = self.jobs.put(job.key, Settled(job.uid, job.version, removes_children_at))
            if is_new:
                self._read.pop(job.uid, None)
                self._drop_children(job.key)
            return is_new
        is_new = self.jobs.put(job.key, Open(job.key, job.uid, job.version, job.text))
        if is_new:
            self._keep_read(job)
        return is_new

    def _keep_read(self, job: FineTuneJob) -> None:
        self._read[job.uid] = job
        self._read.move_to_end(job.uid)
        if len(self._read) > MAX_READ:
            self._read.popitem(last=False)

    def remove_job(self, key: Key, uid: str | None = None) -> None:
        """Remove a deleted job, and what is known of its children; without a UID, the job is removed already."""
        if uid:
            self.jobs.remove(uid)
            self._read.pop(uid, None)
        if not self.has_open(key):
            self._drop_children(key)

    def _drop_children(self, key: Key) -> None:
        for mirror in (self.children, self.pods, self.workloads):
            mirror.drop(key)
