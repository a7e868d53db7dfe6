"""Prometheus metrics: the operator's own, and each job's, read from its status and removed with the job.

Times are timestamps, not ages; an unknown value has no series.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from finetune_api import __version__
from finetune_api.names import PLURAL, ConditionType, Phase
from finetune_api.spec import FineTuneJobSpec, Method, ResumePolicy
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.policy import counters

disable_created_metrics()  # type: ignore[no-untyped-call]
JOB_LABELS = ["namespace", "name"]
UNKNOWN = "Unknown"
RESULTS = ("done", "conflict", "error", "bug")
"""Results of a reconcile: `error` is an error of the API server, `bug` an unexpected exception."""
WATCHED = (PLURAL, "jobs", "pods")
SpecAndStatus = tuple[FineTuneJobSpec | None, FineTuneJobStatus]
_METHODS = frozenset(Method)
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
"""Pattern of codes and format names; a job has at most 64 of each."""


class JobCollector:
    """Builds the series of every known FineTuneJob from its latest status at each scrape."""

    def __init__(self) -> None:
        self._jobs: dict[Key, SpecAndStatus] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def update(self, job: FineTuneJob) -> None:
        """Replace the stored status of the job."""
        self._jobs[job.key] = (job.spec, job.status)

    def remove(self, key: Key) -> None:
        """Remove every series of a job."""
        self._jobs.pop(key, None)

    def retain(self, keys: Iterable[Key]) -> list[Key]:
        """Remove the jobs that are not among the keys, and return their keys."""
        known = set(keys)
        gone = [key for key in self._jobs if key not in known]
        for key in gone:
            del self._jobs[key]
        return gone

    def collect(self) -> Iterator[Metric]:
        """Return all series; the registry calls this at each scrape."""
        jobs = list(self._jobs.items())
        info = InfoMetricFamily("finetune_job", "Objective and method of the job.", labels=JOB_LABELS)
        phase = GaugeMetricFamily("finetune_job_status_phase", "1 for the job's phase.", labels=[*JOB_LABELS, "phase"])
        gpus = GaugeMetricFamily("finetune_job_gpus", "GPUs that the job requests, in all its pods.", labels=JOB_LABELS)
        saves = GaugeMetricFamily(
            "finetune_job_saves_checkpoints",
            "1 if the job saves checkpoints, 0 with resumePolicy Never.",
            labels=JOB_LABELS,
        )
        for key, (spec, status) in jobs:
            where = [key.namespace, key.name]
            info.add_metric(where, {"objective": spec.objective.value if spec else "", "method": _method(spec, status)})
            for one in Phase:
                phase.add_metric([*where, one.value], float(status.phase == one))
            if spec:
                gpus.add_metric(where, spec.resources.nodes * spec.resources.gpus_per_node)
                saves.add_metric(where, spec.checkpoint.resume_policy is ResumePolicy.AUTO)
        yield from (info, phase, gpus, saves)
        yield from _reason_series(jobs)
        yield from _row_series(jobs)
        for family, values in _status_series():
            for key, (_, status) in jobs:
                value = values(status)
                if value is not None:
                    family.add_metric([key.namespace, key.name], value)
            yield family


def _method(spec: FineTuneJobSpec | None, status: FineTuneJobStatus) -> str:
    """Return the resolved method, or the requested one if a trainer reports an unknown method."""
    resolved = status.resolved.method if status.resolved else None
    requested = spec.tuning.method.value if spec else ""
    return resolved if resolved in _METHODS else requested


def _reason_series(jobs: "list[tuple[Key, SpecAndStatus]]") -> Iterator[Metric]:
    labels = [*JOB_LABELS, "reason"]
    failed = GaugeMetricFamily("finetune_job_failed", "1 for a failed job, by reason.", labels=labels)
    failures = CounterMetricFamily("finetune_job_failures", "Failed runs, by reason.", labels=labels)
    preemptions = CounterMetricFamily("finetune_job_preemptions", "Preempted runs, by reason.", labels=labels)
    for key, (_, status) in jobs:
        where = [key.namespace, key.name]
        found = status.condition(ConditionType.FAILED)
        if found and found.status == "True":
            failed.add_metric([*where, counters.known(found.reason)], 1)
        for family, total, counts in (
            (failures, status.failures, status.failures_by_reason),
            (preemptions, status.preemptions, status.preemptions_by_reason),
        ):
            for reason, count in _by_reason(total, counts).items():
                family.add_metric([*where, reason], count)
    yield from (failed, failures, preemptions)


def _by_reason(total: int | None, counts: dict[str, int] | None) -> dict[str, int]:
    """Return the counts by known reason; those that an earlier operator counted without a reason are `Unknown`."""
    found: dict[str, int] = {}
    for reason, count in (counts or {}).items():
        found[counters.known(reason)] = found.get(counters.known(reason), 0) + count
    unknown = (total or 0) - sum(found.values())
    return found | ({UNKNOWN: unknown} if unknown > 0 else {})


def _row_series(jobs: "list[tuple[Key, SpecAndStatus]]") -> Iterator[Metric]:
    for name, text, label, field in _ROWS:
        family = GaugeMetricFamily(f"finetune_job_{name}", text, labels=[*JOB_LABELS, label])
        for key, (_, status) in jobs:
            counts: dict[str, int] = (status.dataset and getattr(status.dataset, field)) or {}
            for word, count in counts.items():
                if _LABEL.fullmatch(word):
                    family.add_metric([key.namespace, key.name, word], count)
        yield family


def _status_series() -> Iterator[tuple[GaugeMetricFamily | CounterMetricFamily, "Read"]]:
    for name, text, read in _GAUGES:
        yield GaugeMetricFamily(f"finetune_job_{name}", text, labels=JOB_LABELS), read
    for name, text, read in _COUNTERS:
        yield CounterMetricFamily(f"finetune_job_{name}", text, labels=JOB_LABELS), read


Read = Callable[[FineTuneJobStatus], float | None]


def _reader(*path: str, scale: float = 1.0) -> Read:
    """Return a function that reads one number of a status, or None if it is unknown."""

    def read(status: FineTuneJobStatus) -> float | None:
        value: object = status
        for name in path:
            value = getattr(value, name, None)
        if value is None:
            return None
        stamp = getattr(value, "timestamp", None)
        return float(stamp() if stamp else value) * scale  # type: ignore[arg-type]

    return read


def _queue_seconds(status: FineTuneJobStatus) -> float | None:
    if status.queued_time is None or status.start_time is None:
        return None
    return max(0.0, (status.start_time - status.queued_time).total_seconds())


_GAUGES: list[tuple[str, str, Read]] = [
    ("progress_ratio", "Share of the steps done.", _reader("progress", "percent", scale=0.01)),
    ("train_loss", "Training loss, nats per token.", _reader("metrics", "train_loss")),
    ("eval_loss", "Latest evaluation loss, nats per token.", _reader("metrics", "eval_loss")),
    ("best_eval_loss", "Lowest evaluation loss, nats per token.", _reader("metrics", "best_eval_loss")),
    ("baseline_eval_loss", "Evaluation loss before training.", _reader("metrics", "baseline_eval_loss")),
    ("reward", "Reward of the sampled answers.", _reader("metrics", "reward")),
    ("eval_reward", "Reward of the answers to held-out prompts.", _reader("metrics", "eval_reward")),
    ("baseline_eval_reward", "Held-out reward before training.", _reader("metrics", "baseline_eval_reward")),
    ("reward_margin", "Held-out reward of chosen minus rejected answers.", _reader("metrics", "reward_margin")),
    ("reward_accuracy_ratio", "Share of held-out pairs ranked correctly.", _reader("metrics", "reward_accuracy")),
    ("kl", "KL divergence from the reference, nats per token.", _reader("metrics", "kl")),
    ("step", "Optimiser steps done.", _reader("progress", "step")),
    ("planned_steps", "Optimiser steps planned.", _reader("progress", "total_steps")),
    ("tokens_per_second", "Trained input tokens per second.", _reader("metrics", "tokens_per_second")),
    ("dataset_rows", "Rows read.", _reader("dataset", "rows")),
    ("dataset_accepted_rows", "Rows that can be trained on.", _reader("dataset", "accepted")),
    ("dataset_rejected_rows", "Rows that were skipped.", _reader("dataset", "rejected")),
    ("estimated_gpu_memory_bytes", "Estimated GPU memory.", _reader("resolved", "estimated_gpu_memory_bytes")),
    ("gpu_memory_peak_bytes", "Peak of allocated GPU memory.", _reader("metrics", "gpu_memory_peak_bytes")),
    ("learning_rate", "Learning rate of the last step.", _reader("metrics", "learning_rate")),
    ("early_stopped", "1 if early stopping ended the training.", _reader("early_stopping", "stopped")),
    ("gate_passed", "1 if every gate was met, 0 if one was not.", _reader("evaluation", "is_met")),
    (
        "queued_timestamp_seconds",
        "When the job was accepted and not suspended.",
        _reader("queued_time"),
    ),
    ("queue_seconds", "Time between acceptance and the first run, including preflight.", _queue_seconds),
    ("start_timestamp_seconds", "Start of the first run.", _reader("start_time")),
    ("completion_timestamp_seconds", "When the trainer Job ended.", _reader("completion_time")),
    ("checkpoint_timestamp_seconds", "When the last checkpoint was saved.", _reader("checkpoint", "saved_time")),
    ("checkpoint_save_seconds", "Duration of saving the last checkpoint.", _reader("checkpoint", "save_seconds")),
    (
        "last_moved_timestamp_seconds",
        "When the running trainer last finished a step, a row or a transfer.",
        _reader("current_run", "last_moved_time"),
    ),
    (
        "last_progress_timestamp_seconds",
        "When the trainer last reported progress.",
        _reader("progress", "last_updated_time"),
    ),
]
_ROWS = [
    ("dataset_rows_by_format", "Accepted rows, by format.", "format", "format"),
    ("dataset_rejected_rows_by_code", "Skipped rows, by reject code.", "code", "rejected_by_code"),
    ("dataset_repaired_rows_by_code", "Repaired rows, by repair code.", "code", "repaired_by_code"),
]
_COUNTERS = [
    ("runs", "Ended trainer pods.", _reader("runs")),
    ("active_seconds", "Total duration of ended runs.", _reader("active_seconds")),
    ("gpu_seconds", "Total duration of ended runs, multiplied by their GPUs.", _reader("gpu_seconds")),
]


class Metrics:
    """All metrics of the operator process."""

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
            "finetune_operator_reconcile", "Reconciles of a job, by result.", ["result"], registry=self.registry
        )
        self.seconds = Histogram(
            "finetune_operator_reconcile_seconds", "Duration of a reconcile of a job.", registry=self.registry
        )
        self.requests = Counter(
            "finetune_operator_api_requests",
            "Requests to the API server, except for watches.",
            ["verb", "code"],
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "finetune_operator_queue_depth", "Jobs waiting to be reconciled.", registry=self.registry
        )
        self.last_event = Gauge(
            "finetune_operator_last_event_timestamp_seconds",
            "Last watch event, or the start of the operator before the first, by resource.",
            ["resource"],
            registry=self.registry,
        )
        self.pulls = Counter(
            "finetune_operator_progress_pulls", "Polls of a trainer's progress, by result.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self._started = time.time()
        for result in RESULTS:
            self.reconciles.labels(result)
        for result in ("answered", "failed"):
            self.pulls.labels(result)

    def update_gauges(self, queue_depth: int, last_event: Mapping[str, float]) -> None:
        """Set the gauges whose values are kept elsewhere, before a scrape."""
        self.queue_depth.set(queue_depth)
        for resource in {*WATCHED, *last_event}:
            self.last_event.labels(resource).set(last_event.get(resource, self._started))
