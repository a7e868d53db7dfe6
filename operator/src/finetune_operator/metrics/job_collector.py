"""What a scrape shows of the jobs: the series of each, and by namespace what outlives them."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from prometheus_client.core import CounterMetricFamily, Metric

from finetune_api.names import ConditionType, Phase
from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.metrics.gpu_time import GpuTime
from finetune_operator.metrics.jobs import HEADERS, PHASES, UNKNOWN, JobLines, render
from finetune_operator.policy.history import counters

PAST = timedelta(days=1)
"""How long after its end a job has a series for each phase."""


class JobCollector:
    """The series of every known FineTuneJob, rendered when a job changes: a scrape only joins them."""

    def __init__(
        self,
        gpu_time: GpuTime | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        keeps_finished: timedelta | None = None,
    ) -> None:
        self._jobs: dict[Key, JobLines] = {}
        self._open: dict[Key, str] = {}
        """UIDs of the jobs that were not finished when they were last seen."""
        self._ended: Counter[tuple[str, str, str]] = Counter()
        """By namespace, phase and reason: the jobs that have ended since this process started."""
        self._gpu_time = gpu_time or GpuTime()
        self._clock = clock
        self._keeps_finished = keeps_finished

    def __len__(self) -> int:
        return len(self._jobs)

    def update(self, job: FineTuneJob) -> None:
        """Replace the series of the job."""
        self._gpu_time.update(job)
        self._count_end(job)
        lines = render(job)
        if self._is_expired(lines):
            self._jobs.pop(job.key, None)
        else:
            self._jobs[job.key] = lines

    def remove(self, key: Key) -> None:
        """Remove every series of a job; its GPU time and its end stay in those of its namespace."""
        self._jobs.pop(key, None)
        self._open.pop(key, None)
        self._gpu_time.remove(key)

    def remove_expired(self) -> None:
        """Remove the series of the jobs that ended too long ago."""
        for key in [key for key, lines in self._jobs.items() if self._is_expired(lines)]:
            del self._jobs[key]

    def keys(self) -> set[Key]:
        """Return the keys of all jobs that have series."""
        return set(self._jobs)

    def collect(self) -> Iterator[Metric]:
        """Return the series of the namespaces, for a registry."""
        yield self._gpu_time.collect()
        ended = CounterMetricFamily(
            "finetune_namespace_ended_jobs",
            "Jobs that ended since the operator started, by their last phase and its reason.",
            labels=["namespace", "phase", "reason"],
        )
        for labels, count in self._ended.copy().items():
            ended.add_metric(labels, count)
        yield ended

    def expose(self) -> bytes:
        """Return the series of all jobs as text; any thread may call this while jobs change."""
        jobs = list(self._jobs.values())  # one step of the interpreter, so no job changes within
        now = self._clock()
        past = [(one, one.completed is not None and now - one.completed > PAST) for one in jobs]
        parts = []
        for number, header in enumerate(HEADERS):
            parts.append(header)
            if number == PHASES:
                parts += [one.past_phase if is_past else one.lines[number] for one, is_past in past]
            else:
                parts += [one.lines[number] for one in jobs]
        return b"".join(parts)

    def _count_end(self, job: FineTuneJob) -> None:
        """Count a job that ends; one that had ended before was counted by an earlier process."""
        if not job.is_finished:
            self._open[job.key] = job.uid
        elif self._open.pop(job.key, None) == job.uid:
            kind = ConditionType.FAILED if job.status.is_true(ConditionType.FAILED) else ConditionType.COMPLETE
            found = job.status.condition(kind)
            reason = counters.known(found.reason) if found else UNKNOWN
            phase = Phase.FAILED if kind is ConditionType.FAILED else Phase.SUCCEEDED
            self._ended[job.key.namespace, phase.value, reason] += 1

    def _is_expired(self, lines: JobLines) -> bool:
        ended, kept = lines.completed, self._keeps_finished
        return ended is not None and kept is not None and self._clock() - ended > kept
