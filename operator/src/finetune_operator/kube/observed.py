"""What one look at the cluster found: the input of every decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.handoff import ProgressReport
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import FineTuneJob, Job, Pod, Workload

Relatives = Mapping[str, FineTuneJob | None]
"""By name: the jobs that one waits for, and those that they wait for in turn; None where there is none."""


@dataclass(frozen=True)
class Target:
    """A running trainer pod whose progress may be pulled: its Job was seen to be ours."""

    job_uid: str
    pod_uid: str
    pod_name: str
    ip: str


@dataclass(frozen=True)
class Reading:
    """The last answer of a trainer, or why there is none."""

    pod_uid: str
    at: datetime
    report: ProgressReport | None = None
    unreachable_since: datetime | None = None
    problem: str = ""


@dataclass(frozen=True)
class Warnings:
    """Warning events of one object, newest first, as (reason, message)."""

    uid: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Observed:
    """One look at the cluster: all that a decision is made from."""

    job: FineTuneJob
    now: datetime
    children: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] | None = None
    """Kueue's Workloads of the own Jobs; None where there is no Kueue, or nothing to ask it."""
    relatives: Relatives = field(default_factory=dict)
    reading: Reading | None = None
    warnings: Warnings | None = None
    obstacle: ClusterError | None = None
    """What kept the operator from acting on an earlier plan of this look."""
    children_unreadable: bool = False
    """Whether children and pods could not be read: their absence then means nothing."""

    @property
    def own(self) -> tuple[Job, ...]:
        """The Jobs of this very FineTuneJob, not of an earlier one of the same name."""
        return tuple(child for child in self.children if child.owner_uid == self.job.uid)

    @property
    def leftovers(self) -> tuple[str, ...]:
        """Names of what is still there of an earlier FineTuneJob of the same name."""
        return tuple(sorted(child.name for child in self.children if child.owner_uid != self.job.uid))

    def workload_of(self, child: Job) -> Workload | None:
        """What Kueue knows of that Job."""
        return next((one for one in self.workloads or () if one.job_uid == child.uid), None)

    def pods_of(self, job_uid: str) -> tuple[Pod, ...]:
        """The pods whose controller is that Job, oldest first."""
        mine = [pod for pod in self.pods if pod.job_uid and pod.job_uid == job_uid]
        return tuple(sorted(mine, key=lambda pod: (pod.created is not None, pod.created, pod.name)))
