"""GPU time by namespace, counted while trainers run, and kept when a job ends or is deleted."""

from collections.abc import Callable
from datetime import UTC, datetime

from prometheus_client.core import CounterMetricFamily

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.policy.history import bookkeeping


class GpuTime:
    """Counter of the GPU time of running trainers since this process started.

    A run is counted from its start, or from the start of the process if it began before: an earlier process counted
    it until then. So the counter starts at 0 after a restart, and no second is in two processes. The time in which no
    operator runs is not counted.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._started = clock()
        self._jobs: dict[Key, FineTuneJob] = {}
        self._ended: dict[str, float] = {}
        """By namespace: GPU seconds of ended runs, and of the runs of removed jobs."""
        self._shown: dict[str, float] = {}
        """By namespace: the highest value so far. A run may have ended some seconds before its end is observed; the
        value then waits until others have caught up, because a counter that decreases counts as restarted."""

    def update(self, job: FineTuneJob) -> None:
        """Count the runs that have ended since the job was last seen."""
        self._ended.setdefault(job.key.namespace, 0.0)
        known = self._jobs.get(job.key)
        if known and known.uid != job.uid:
            self.remove(job.key)
            known = None
        if known and _is_older(job.status, known.status):
            return
        if known:
            self._ended[job.key.namespace] += self._seconds_of_new_runs(known.status, job)
        if job.is_settled and job.status.current_run is None:
            self._jobs.pop(job.key, None)  # nothing is added to it any more
        else:
            self._jobs[job.key] = job

    def remove(self, key: Key) -> None:
        """Keep the time of a job that is removed."""
        if job := self._jobs.pop(key, None):
            self._ended[key.namespace] += self._seconds_of_current_run(job)

    def collect(self) -> CounterMetricFamily:
        """Return the series of every namespace that has or had a job."""
        family = CounterMetricFamily(
            "finetune_namespace_gpu_seconds",
            "Time of running trainers since the operator started, multiplied by their GPUs.",
            labels=["namespace"],
        )
        totals = dict(self._ended)
        for job in list(self._jobs.values()):  # a scrape runs in a thread
            totals[job.key.namespace] += self._seconds_of_current_run(job)
        for namespace, seconds in totals.items():
            self._shown[namespace] = max(seconds, self._shown.get(namespace, 0.0))
            family.add_metric([namespace], self._shown[namespace])
        return family

    def _seconds_of_new_runs(self, known: FineTuneJobStatus, job: FineTuneJob) -> float:
        """Return the GPU seconds that were recorded since, without those before this process started."""
        added = (job.status.gpu_seconds or 0) - (known.gpu_seconds or 0)
        uids = {run.pod_uid for run in known.history or []}
        new = [run for run in job.status.history or [] if run.pod_uid not in uids]
        before = sum(
            (min(run.end_time, self._started) - run.start_time).total_seconds()
            for run in new
            if run.start_time and run.end_time and run.start_time < self._started
        )
        return max(0.0, added - before * count_gpus(job.spec))

    def _seconds_of_current_run(self, job: FineTuneJob) -> float:
        """Return the GPU seconds of the running trainer so far; a merge holds no GPU."""
        run = job.status.current_run
        if run is None or run.start_time is None or job.status.trained_weights:
            return 0.0
        missing = bookkeeping.read(job.status).pod_missing_since_time
        ended = missing or (job.status.completion_time if job.is_finished else None)
        seconds = ((ended or self._clock()) - max(run.start_time, self._started)).total_seconds()
        return max(0.0, seconds) * count_gpus(job.spec)


def _is_older(status: FineTuneJobStatus, known: FineTuneJobStatus) -> bool:
    """Return whether a watch delivers a status from before the known one, which came with the answer to a write."""
    return (status.runs or 0, status.gpu_seconds or 0) < (known.runs or 0, known.gpu_seconds or 0)


def count_gpus(spec: FineTuneJobSpec | None) -> int:
    """Return the GPUs that a job requests, in all its pods; 0 if its spec cannot be read."""
    return spec.resources.num_nodes * spec.resources.gpus_per_node if spec else 0
