"""The observed state of one job: the input of every decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Self

from finetune_api.handoff import ProgressReport
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import LATEST, FineTuneJob, Job
from finetune_operator.kube.pod import Pod
from finetune_operator.kube.workload import Workload

Relatives = Mapping[str, FineTuneJob | None]
"""By name: the jobs that one waits for, and those that they wait for; None if there is no such job."""


@dataclass(frozen=True)
class Target:
    """A running trainer pod to poll for progress; the operator has checked that it owns the Job."""

    job_uid: str
    pod_uid: str
    pod_name: str
    ip: str


@dataclass(frozen=True)
class Reading:
    """The last progress of a trainer, or why there is none."""

    pod_uid: str
    at: datetime
    report: ProgressReport | None = None
    unreachable_since: datetime | None = None
    problem: str = ""
    moved_at: datetime | None = None
    """When the heartbeat was first seen as it is now."""

    @classmethod
    def of(cls, report: ProgressReport, pod_uid: str, at: datetime, last: Self | None) -> Self:
        """Return the reading of a report that follows another one."""
        before = last if last and last.pod_uid == pod_uid and last.report else None
        is_still = before is not None and before.report is not None and before.report.heartbeat == report.heartbeat
        return cls(pod_uid, at, report, moved_at=before.moved_at if before and is_still else at)


CLAIM_WARNING = "FailedResourceClaimCreation"
BINDING_WARNING = "FailedBinding"
"""Why the claim of a pod's own volume is not created, for example a quota or a policy."""
START_WARNINGS = {
    "Pod": ("FailedMount", "FailedAttachVolume", CLAIM_WARNING, BINDING_WARNING),
    "Job": ("FailedCreate",),
}
"""Reasons of the Warning events that name why an object of a kind does not start."""


class WarningEvent(NamedTuple):
    """A Warning event; one without a time counts as new."""

    reason: str
    message: str
    at: datetime = LATEST
    """When it was last observed."""


@dataclass(frozen=True)
class Warnings:
    """Warning events of one object, newest first."""

    uid: str
    items: tuple[WarningEvent, ...]


@dataclass(frozen=True)
class Observed:
    """The observed state, on which a decision is based."""

    job: FineTuneJob
    now: datetime
    children: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] | None = None
    """Kueue's Workloads of the own Jobs; None if there is no Kueue, or no Job that it may hold."""
    workloads_error: ClusterError | None = None
    """Why Workloads could not be listed; `workloads` is then empty, which means nothing."""
    relatives: Relatives = field(default_factory=dict)
    reading: Reading | None = None
    warnings: Warnings | None = None
    obstacle: ClusterError | None = None
    """The error that stopped the action of an earlier plan of this reconcile."""
    children_unreadable: bool = False
    """Whether Jobs and pods could not be read, so that their absence means nothing."""

    @property
    def own(self) -> tuple[Job, ...]:
        """The Jobs of this FineTuneJob, not of an earlier one of the same name."""
        return tuple(child for child in self.children if child.owner_uid == self.job.uid)

    @property
    def leftovers(self) -> tuple[str, ...]:
        """Names of the remaining Jobs of an earlier FineTuneJob of the same name, which the API server removes."""
        return tuple(sorted(one.name for one in self.children if one.owner_uid not in {"", self.job.uid}))

    def find_orphan(self, name: str) -> Job | None:
        """Return a Job without an owner that has this name or may still run; only a user can remove it."""
        orphans = (one for one in self.children if not one.owner_uid)
        return next((one for one in orphans if one.name == name or not one.is_over), None)

    def workload_of(self, child: Job) -> Workload | None:
        """Return the Workload of that Job."""
        return next((one for one in self.workloads or () if one.job_uid == child.uid), None)

    def is_for_other_cluster(self, child: Job) -> bool:
        """Return whether only MultiKueue could run that Job; one that still runs here is not stopped for it."""
        workload = self.workload_of(child)
        is_rejected = workload is not None and workload.is_for_other_cluster
        return child.is_for_other_cluster or (child.is_suspended and is_rejected)

    def pods_of(self, job_uid: str) -> tuple[Pod, ...]:
        """Return the pods whose controller is that Job, oldest first."""
        owned = [pod for pod in self.pods if pod.job_uid and pod.job_uid == job_uid]
        return tuple(sorted(owned, key=lambda pod: (pod.created is not None, pod.created, pod.name)))
