"""The series of the jobs, read from their status. Times are timestamps, not ages; an unknown value has no series."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_api.names import ConditionType, Phase
from finetune_api.sources import DatasetFormat
from finetune_api.spec import FineTuneJobSpec, Method, ResumePolicy
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.metrics.gpu_time import GpuTime, count_gpus
from finetune_operator.policy import counters
from finetune_operator.policy.conditions import waiting_reason

JOB_LABELS = ["namespace", "name"]
UNKNOWN = "Unknown"
VERDICTS = frozenset(Verdict)
GATE_RESULTS = frozenset({"Passed", "NotMet", "NotRun"})
"""Results of a gate that is configured."""
EVALUATION_METRICS = frozenset(EvaluationMetric)
Jobs = list[FineTuneJob]
_METHODS = frozenset(Method)


class JobCollector:
    """Builds the series of every known FineTuneJob from its latest status at each scrape."""

    def __init__(self, gpu_time: GpuTime | None = None) -> None:
        self._jobs: dict[Key, FineTuneJob] = {}
        self._gpu_time = gpu_time or GpuTime()

    def __len__(self) -> int:
        return len(self._jobs)

    def update(self, job: FineTuneJob) -> None:
        """Replace the stored status of the job."""
        self._jobs[job.key] = job
        self._gpu_time.update(job)

    def remove(self, key: Key) -> None:
        """Remove every series of a job; its GPU time stays in that of its namespace."""
        self._jobs.pop(key, None)
        self._gpu_time.remove(key)

    def keys(self) -> set[Key]:
        """Return the keys of all jobs."""
        return set(self._jobs)

    def retain(self, keys: Iterable[Key], among: Iterable[Key] | None = None) -> list[Key]:
        """Remove the jobs, or those among some, that are not among the keys, and return their keys."""
        known = set(keys)
        gone = [key for key in (self._jobs if among is None else among) if key not in known and key in self._jobs]
        for key in gone:
            self.remove(key)
        return gone

    def collect(self) -> Iterator[Metric]:
        """Return all series; the registry calls this at each scrape."""
        jobs = list(self._jobs.values())
        info = InfoMetricFamily("finetune_job", "Objective and method of the job.", labels=JOB_LABELS)
        phase = GaugeMetricFamily("finetune_job_status_phase", "1 for the job's phase.", labels=[*JOB_LABELS, "phase"])
        for job in jobs:
            objective = job.spec.objective.value if job.spec else ""
            info.add_metric(_labels(job), {"objective": objective, "method": _method(job.spec, job.status)})
            for one in Phase:
                phase.add_metric([*_labels(job), one.value], float(job.status.phase == one))
        yield from (info, phase)
        yield from _spec_series(jobs)
        yield from _reason_series(jobs)
        yield from _result_series(jobs)
        yield from _row_series(jobs)
        for family, read in _status_series():
            for job in jobs:
                value = read(job.status)
                if value is not None:
                    family.add_metric(_labels(job), value)
            yield family
        yield self._gpu_time.collect()


def _labels(job: FineTuneJob) -> list[str]:
    return [job.key.namespace, job.key.name]


def _method(spec: FineTuneJobSpec | None, status: FineTuneJobStatus) -> str:
    """Return the resolved method, or the requested one if a trainer reports an unknown method."""
    resolved = status.resolved.method if status.resolved else None
    requested = spec.tuning.method.value if spec else ""
    return resolved if resolved in _METHODS else requested


def _spec_series(jobs: Jobs) -> Iterator[Metric]:
    for name, text, read in _FROM_SPEC:
        family = GaugeMetricFamily(f"finetune_job_{name}", text, labels=JOB_LABELS)
        for job in jobs:
            if job.spec:
                family.add_metric(_labels(job), read(job.spec))
        yield family


def _must_improve(spec: FineTuneJobSpec) -> bool:
    return bool(spec.evaluation.gate and spec.evaluation.gate.must_improve)


_FROM_SPEC: list[tuple[str, str, Callable[[FineTuneJobSpec], float]]] = [
    ("gpus", "GPUs that the job requests, in all its pods.", count_gpus),
    (
        "saves_checkpoints",
        "1 if the job saves checkpoints, 0 with resumePolicy Never.",
        lambda spec: spec.checkpoint.resume_policy is ResumePolicy.AUTO,
    ),
    ("must_improve", "1 if evaluation.gate.mustImprove is set, else 0.", _must_improve),
]


def _reason_series(jobs: Jobs) -> Iterator[Metric]:
    labels = [*JOB_LABELS, "reason"]
    waiting = GaugeMetricFamily("finetune_job_waiting", "1 for a job that waits, by reason.", labels=labels)
    failed = GaugeMetricFamily("finetune_job_failed", "1 for a failed job, by reason.", labels=labels)
    failures = CounterMetricFamily("finetune_job_failures", "Failed runs, by reason.", labels=labels)
    preemptions = CounterMetricFamily("finetune_job_preemptions", "Preempted runs, by reason.", labels=labels)
    for job in jobs:
        status = job.status
        if reason := waiting_reason(status):
            waiting.add_metric([*_labels(job), counters.known(reason)], 1)
        found = status.condition(ConditionType.FAILED)
        if found and found.status == "True":
            failed.add_metric([*_labels(job), counters.known(found.reason)], 1)
        for family, total, counts in (
            (failures, status.failures, status.failures_by_reason),
            (preemptions, status.preemptions, status.preemptions_by_reason),
        ):
            for reason, count in _by_reason(total, counts).items():
                family.add_metric([*_labels(job), reason], count)
    yield from (waiting, failed, failures, preemptions)


def _by_reason(total: int | None, counts: dict[str, int] | None) -> dict[str, int]:
    """Return the counts by known reason; those that an earlier operator counted without a reason are `Unknown`."""
    found: dict[str, int] = {}
    for reason, count in (counts or {}).items():
        found[counters.known(reason)] = found.get(counters.known(reason), 0) + count
    unknown = (total or 0) - sum(found.values())
    return found | ({UNKNOWN: unknown} if unknown > 0 else {})


def _result_series(jobs: Jobs) -> Iterator[Metric]:
    """Yield verdicts, differences and gate results; a word outside its closed set has no series."""
    verdict = GaugeMetricFamily(
        "finetune_job_verdict", "1 for the verdict on the result of the job.", labels=[*JOB_LABELS, "verdict"]
    )
    gates = GaugeMetricFamily(
        "finetune_job_gate_result",
        "1 for the result of a configured gate; gate FullModel compares the full model with the trained one.",
        labels=[*JOB_LABELS, "gate", "result"],
    )
    for job in jobs:
        found = job.status.evaluation
        if found and found.verdict in VERDICTS:
            verdict.add_metric([*_labels(job), found.verdict], 1)
        for gate, result in (("Evaluation", found.gate), ("FullModel", found.merge_gate)) if found else ():
            if result in GATE_RESULTS:
                gates.add_metric([*_labels(job), gate, result], 1)
    yield from (verdict, gates)
    for name, text, field in _DIFFERENCES:
        family = GaugeMetricFamily(f"finetune_job_{name}", text, labels=[*JOB_LABELS, "metric"])
        for job in jobs:
            found = job.status.evaluation
            value = getattr(found, field, None)
            if found and value is not None and found.metric in EVALUATION_METRICS:
                family.add_metric([*_labels(job), found.metric], value)
        yield family


_DIFFERENCES = [
    ("difference", "Held-out loss or reward after training, minus that before.", "difference"),
    ("difference_low", "Lower end of the 95 % interval of the difference.", "difference_low"),
    ("difference_high", "Upper end of the 95 % interval of the difference.", "difference_high"),
]


def _row_series(jobs: Jobs) -> Iterator[Metric]:
    for name, text, label, field, words in _ROWS:
        family = GaugeMetricFamily(f"finetune_job_{name}", text, labels=[*JOB_LABELS, label])
        for job in jobs:
            counts: dict[str, int] = (job.status.dataset and getattr(job.status.dataset, field)) or {}
            for word, count in _by_word(counts, words).items():
                family.add_metric([*_labels(job), word], count)
        yield family


def _by_word(counts: Mapping[str, int], words: Collection[str]) -> dict[str, int]:
    """Return the counts by word; those of other words, as of a newer trainer, are together `Unknown`."""
    found = {word: count for word, count in counts.items() if word in words}
    unknown = sum(counts.values()) - sum(found.values())
    return found | ({UNKNOWN: unknown} if unknown > 0 else {})


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


def _start_wait_seconds(status: FineTuneJobStatus) -> float | None:
    if status.eligible_time is None or status.start_time is None:
        return None
    return max(0.0, (status.start_time - status.eligible_time).total_seconds())


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
    ("dataset_accepted_rows", "Rows that can be trained on.", _reader("dataset", "accepted_rows")),
    ("dataset_rejected_rows", "Rows that were skipped.", _reader("dataset", "rejected_rows")),
    ("estimated_gpu_memory_bytes", "Estimated GPU memory.", _reader("resolved", "estimated_gpu_memory_bytes")),
    ("gpu_memory_peak_bytes", "Peak of allocated GPU memory.", _reader("metrics", "gpu_memory_peak_bytes")),
    ("learning_rate", "Learning rate of the last step.", _reader("metrics", "learning_rate")),
    ("early_stopped", "1 if early stopping ended the training.", _reader("early_stopping", "stopped")),
    (
        "general_ability_ratio",
        "Share of the questions on general ability answered correctly after training.",
        _reader("evaluation", "ability", "after_percent", scale=0.01),
    ),
    (
        "baseline_general_ability_ratio",
        "Share of the questions on general ability answered correctly before training.",
        _reader("evaluation", "ability", "before_percent", scale=0.01),
    ),
    (
        "forgotten",
        "1 if the 95 % interval of the difference in general ability is below zero, else 0.",
        _reader("evaluation", "ability", "has_forgotten"),
    ),
    ("gate_passed", "1 if every gate was met, 0 if one was not.", _reader("evaluation", "is_met")),
    (
        "eligible_timestamp_seconds",
        "Since when the job could start: accepted, and not suspended.",
        _reader("eligible_time"),
    ),
    (
        "start_wait_seconds",
        "Time from when the job could start until its first run, including preflight and queue.",
        _start_wait_seconds,
    ),
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
        "When the trainer last reported progress; up to a minute earlier if its reports have no news.",
        _reader("progress", "last_updated_time"),
    ),
]
_ROWS = [
    ("dataset_rows_by_format", "Accepted rows, by format.", "format", "rows_by_format", frozenset(DatasetFormat)),
    (
        "dataset_rejected_rows_by_code",
        "Skipped rows, by reject code.",
        "code",
        "rejected_rows_by_code",
        frozenset(RejectCode),
    ),
    (
        "dataset_repaired_rows_by_code",
        "Repaired rows, by repair code.",
        "code",
        "repaired_rows_by_code",
        frozenset(RepairCode),
    ),
]
_COUNTERS = [
    ("runs", "Ended trainer pods.", _reader("runs")),
    ("active_seconds", "Total duration of ended runs.", _reader("active_seconds")),
    ("gpu_seconds", "Total duration of ended runs, multiplied by their GPUs.", _reader("gpu_seconds")),
]
