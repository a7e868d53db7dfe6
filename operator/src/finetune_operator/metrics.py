"""Prometheus metrics: the operator's own, and each job's from its status, gone with the job."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from finetune_api import __version__
from finetune_api.names import Phase
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.objects import Job, Key

JOB_LABELS = ["namespace", "name"]


class JobCollector:
    """The series of every known FineTuneJob, made from its last seen status at each scrape."""

    def __init__(self) -> None:
        self._jobs: dict[Key, tuple[FineTuneJobSpec | None, FineTuneJobStatus]] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def show(self, job: Job) -> None:
        """Takes over the job's current status."""
        self._jobs[job.key] = (job.spec, job.status)

    def remove(self, key: Key) -> None:
        """Drops every series of a job."""
        self._jobs.pop(key, None)

    def retain(self, keys: Iterable[Key]) -> list[Key]:
        """Drops the jobs that are not among the keys; returns them."""
        known = set(keys)
        gone = [key for key in self._jobs if key not in known]
        for key in gone:
            del self._jobs[key]
        return gone

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        jobs = list(self._jobs.items())
        info = InfoMetricFamily("finetune_job", "What a job trains.", labels=JOB_LABELS)
        phase = GaugeMetricFamily("finetune_job_status_phase", "1 for the job's phase.", labels=[*JOB_LABELS, "phase"])
        for key, (spec, status) in jobs:
            where = [key.namespace, key.name]
            method = (status.resolved and status.resolved.method) or (spec.tuning.method.value if spec else "")
            info.add_metric(where, {"objective": spec.objective.value if spec else "", "method": method})
            for one in Phase:
                phase.add_metric([*where, one.value], float(status.phase == one))
        yield info
        yield phase
        for family, values in _families():
            for key, (_, status) in jobs:
                value = values(status)
                if value is not None:
                    family.add_metric([key.namespace, key.name], value)
            yield family


def _families() -> Iterator[tuple[GaugeMetricFamily | CounterMetricFamily, "Reader"]]:
    for name, text, read in _GAUGES:
        yield GaugeMetricFamily(f"finetune_job_{name}", text, labels=JOB_LABELS), read
    for name, text, read in _COUNTERS:
        yield CounterMetricFamily(f"finetune_job_{name}", text, labels=JOB_LABELS), read


class Reader:
    """Reads one number of a status, or None where it is not known."""

    def __init__(self, *path: str, scale: float = 1.0) -> None:
        self._path = path
        self._scale = scale

    def __call__(self, status: FineTuneJobStatus) -> float | None:
        """The number."""
        value: object = status
        for name in self._path:
            value = getattr(value, name, None)
        if value is None:
            return None
        stamp = getattr(value, "timestamp", None)
        return float(stamp() if stamp else value) * self._scale  # type: ignore[arg-type]


_GAUGES = [
    ("progress_ratio", "Share of the steps done.", Reader("progress", "percent", scale=0.01)),
    ("train_loss", "Training loss, nats per token.", Reader("metrics", "train_loss")),
    ("eval_loss", "Latest evaluation loss, nats per token.", Reader("metrics", "eval_loss")),
    ("best_eval_loss", "Lowest evaluation loss, nats per token.", Reader("metrics", "best_eval_loss")),
    ("baseline_eval_loss", "Evaluation loss of the untouched model.", Reader("metrics", "baseline_eval_loss")),
    ("learning_rate", "Learning rate of the last step.", Reader("metrics", "learning_rate")),
    ("early_stopped", "1 when patience ran out.", Reader("early_stopping", "stopped")),
    ("start_timestamp_seconds", "Start of the first run.", Reader("start_time")),
    ("completion_timestamp_seconds", "When the trainer Job ended.", Reader("completion_time")),
    (
        "last_progress_timestamp_seconds",
        "When the trainer was last heard.",
        Reader("progress", "last_updated_time"),
    ),
]
_COUNTERS = [
    ("runs", "Ended trainer pods.", Reader("runs")),
    ("failures", "Failed runs.", Reader("failures")),
    ("preemptions", "Preempted runs.", Reader("preemptions")),
]


class Metrics:
    """All metrics of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = JobCollector()
        self.registry.register(self.jobs)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("finetune_operator_build", "Version of the operator.", registry=self.registry).info(
            {"version": __version__}
        )
        self.reconciles = Counter(
            "finetune_operator_reconcile", "Looks at a job, by result.", ["result"], registry=self.registry
        )
        self.seconds = Histogram(
            "finetune_operator_reconcile_seconds", "Duration of a look at a job.", registry=self.registry
        )
        self.requests = Counter(
            "finetune_operator_api_requests", "Requests to the API server.", ["verb", "code"], registry=self.registry
        )
        self.queue_depth = Gauge(
            "finetune_operator_queue_depth", "Jobs waiting to be looked at.", registry=self.registry
        )
        self.last_event = Gauge(
            "finetune_operator_last_event_timestamp_seconds",
            "Last watch event, by resource.",
            ["resource"],
            registry=self.registry,
        )
        self.pulls = Counter(
            "finetune_operator_progress_pulls", "Looks at a trainer's progress, by result.", ["result"],
            registry=self.registry,
        )  # fmt: skip
