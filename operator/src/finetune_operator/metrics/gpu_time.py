"""GPU time by namespace, counted while trainers run, and kept when a job ends or is deleted."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from prometheus_client.core import CounterMetricFamily

from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.policy.history import bookkeeping


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a job's last state: of thousands of jobs, the whole states would be most of the memory."""

    uid: str
    runs: int
    gpu_seconds: float
    pods: frozenset[str]
    """UIDs of the pods in its history."""
    gpus: int
    """GPUs of the run that trains now; 0 if none does."""
    began: datetime | None
    ended: datetime | None
    """The end of that run, if it was not observed yet but is known."""

    @classmethod
    def of(cls, job: FineTuneJob) -> Self:
        """Reduce the state of a job; a merge holds no GPU."""
        status, run = job.status, job.status.current_run
        is_training = run is not None and run.start_time is not None and not status.trained_weights
        missing = bookkeeping.read(status).pod_missing_since_time
        return cls(
            uid=job.uid,
            runs=status.runs or 0,
            gpu_seconds=status.gpu_seconds or 0,
            pods=frozenset(one.pod_uid for one in status.history or [] if one.pod_uid),
            gpus=(count_gpus(job.spec) if run.gpus is None else run.gpus) if run and is_training else 0,
            began=run.start_time if run else None,
            ended=missing or (status.completion_time if job.is_finished else None),
        )


class GpuTime:
    """Counter of the GPU time of running trainers since this process started.

    A run is counted from its start, or from the start of the process if it began before: an earlier process counted
    it until then. So the counter starts at 0 after a restart, and no second is in two processes. The time in which no
    operator runs is not counted.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._started = clock()
        self._jobs: dict[Key, _Seen] = {}
        self._ended: dict[str, float] = {}
        """By namespace: GPU seconds of ended runs, and of the runs of removed jobs."""
        self._shown: dict[str, float] = {}
        """By namespace: the highest value so far. A run may have ended some seconds before its end is observed; the
        value then waits until others have caught up, because a counter that decreases counts as restarted."""

    def update(self, job: FineTuneJob) -> None:
        """Count the runs that have ended since the job was last seen."""
        self._ended.setdefault(job.key.namespace, 0.0)
        known, seen = self._jobs.get(job.key), _Seen.of(job)
        if known and known.uid != job.uid:
            self.remove(job.key)
            known = None
        if known and (seen.runs, seen.gpu_seconds) < (known.runs, known.gpu_seconds):
            return  # the watch delivers a status from before the known one, which came with the answer to a write
        if known:
            self._ended[job.key.namespace] += self._seconds_of_new_runs(known, job)
        if job.is_settled and job.status.current_run is None:
            self._jobs.pop(job.key, None)  # nothing is added to it any more
        else:
            self._jobs[job.key] = seen

    def remove(self, key: Key) -> None:
        """Keep the time of a job that is removed."""
        if known := self._jobs.pop(key, None):
            self._ended[key.namespace] += self._seconds_of_current_run(known)

    def collect(self) -> CounterMetricFamily:
        """Return the series of every namespace that has or had a job."""
        family = CounterMetricFamily(
            "finetune_namespace_gpu_seconds",
            "Time of running trainers since the operator started, multiplied by their GPUs.",
            labels=["namespace"],
        )
        # A scrape runs in a thread: a job in a new namespace may begin in between.
        totals = defaultdict(float, self._ended)
        for key, seen in list(self._jobs.items()):
            totals[key.namespace] += self._seconds_of_current_run(seen)
        for namespace, seconds in totals.items():
            self._shown[namespace] = max(seconds, self._shown.get(namespace, 0.0))
            family.add_metric([namespace], self._shown[namespace])
        return family

    def _seconds_of_new_runs(self, known: _Seen, job: FineTuneJob) -> float:
        """Return the GPU seconds that were recorded since, without those before this process started."""
        added = (job.status.gpu_seconds or 0) - known.gpu_seconds
        new = [run for run in job.status.history or [] if run.pod_uid not in known.pods]
        before = sum(
            (min(run.end_time, self._started) - run.start_time).total_seconds()
            for run in new
            if run.start_time and run.end_time and run.start_time < self._started
        )
        return max(0.0, added - before * (known.gpus or count_gpus(job.spec)))

    def _seconds_of_current_run(self, seen: _Seen) -> float:
        """Return the GPU seconds of the running trainer so far."""
        if not seen.gpus or seen.began is None:
            return 0.0
        seconds = ((seen.ended or self._clock()) - max(seen.began, self._started)).total_seconds()
        return max(0.0, seconds) * seen.gpus


def count_gpus(spec: FineTuneJobSpec | None) -> int:
    """Return the GPUs that a job requests, in all its pods; 0 if its spec cannot be read."""
    return spec.resources.num_nodes * spec.resources.gpus_per_node if spec else 0
