"""The series of the jobs, read from their status. Times are timestamps, not ages; an unknown value has no series."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.evaluation import EvaluationMetric, Verdict
from finetune_api.inputs.sources import DatasetFormat
from finetune_api.names import ConditionType, Phase
from finetune_api.spec import FineTuneJobSpec, Method, ResumePolicy
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.metrics.exposition import COUNTER, GAUGE, build_header, build_labels, build_line
from finetune_operator.metrics.gpu_time import count_gpus
from finetune_operator.policy.conditions import waiting_reason
from finetune_operator.policy.history import counters

UNKNOWN = "Unknown"
VERDICTS = frozenset(Verdict)
GATE_RESULTS = frozenset({"Passed", "NotMet", "NotRun"})
"""Results of a gate that is configured."""
EVALUATION_METRICS = frozenset(EvaluationMetric)
PHASE_TEXT = "1 for the job's phase, 0 for the others until a day after its end."
Words = dict[tuple[str, ...], float]
Read = Callable[[FineTuneJobStatus], float | None]
ReadWords = Callable[[FineTuneJobStatus], Words]
_METHODS = frozenset(Method)


@dataclass(frozen=True, slots=True)
class JobLines:
    """The rendered series of a job: what is kept of it until the next state, because jobs are many and scrapes too."""

    lines: tuple[bytes, ...]
    """In the order of `HEADERS`."""
    past_phase: bytes
    """The series of its phase alone."""
    completed: datetime | None


def render(job: FineTuneJob) -> JobLines:
    """Return the series of a job."""
    labels = build_labels({"name": job.key.name, "namespace": job.key.namespace})
    return JobLines(
        lines=tuple(read(job, labels) for _, read in _FAMILIES),
        past_phase=_render_phases(job, labels, only_own=True),
        completed=job.status.completion_time if job.is_finished else None,
    )


def _render_info(job: FineTuneJob, labels: str) -> bytes:
    objective = job.spec.objective.value if job.spec else ""
    words = build_labels({"objective": objective, "method": _method(job.spec, job.status)})
    return build_line("finetune_job_info", f"{labels},{words}", 1.0)


def _render_phases(job: FineTuneJob, labels: str, *, only_own: bool = False) -> bytes:
    """Return 1 for the phase of a job, and 0 for the others: alerts look back over hours."""
    phases = [one for one in Phase if job.status.phase == one or not only_own]
    return b"".join(
        build_line("finetune_job_status_phase", f'{labels},phase="{one.value}"', float(job.status.phase == one))
        for one in phases
    )


def _method(spec: FineTuneJobSpec | None, status: FineTuneJobStatus) -> str:
    """Return the resolved method, or the requested one if a trainer reports an unknown method."""
    resolved = status.resolved.method if status.resolved else None
    requested = spec.tuning.method.value if spec else ""
    return resolved if resolved in _METHODS else requested


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


def _waiting(status: FineTuneJobStatus) -> Words:
    reason = waiting_reason(status)
    return {(counters.known(reason),): 1} if reason else {}


def _failed(status: FineTuneJobStatus) -> Words:
    found = status.condition(ConditionType.FAILED)
    return {(counters.known(found.reason),): 1} if found and found.status == "True" else {}


def _by_reason(total: int | None, counts: dict[str, int] | None) -> Words:
    """Return the counts by known reason; those that an earlier operator counted without a reason are `Unknown`."""
    found: dict[str, int] = {}
    for reason, count in (counts or {}).items():
        found[counters.known(reason)] = found.get(counters.known(reason), 0) + count
    unknown = (total or 0) - sum(found.values())
    return {(reason,): count for reason, count in (found | ({UNKNOWN: unknown} if unknown > 0 else {})).items()}


def _verdict(status: FineTuneJobStatus) -> Words:
    """Return the verdict; a word outside its closed set has no series."""
    found = status.evaluation
    return {(found.verdict,): 1} if found and found.verdict in VERDICTS else {}


def _gates(status: FineTuneJobStatus) -> Words:
    found = status.evaluation
    results = (("Evaluation", found.gate), ("FullModel", found.merge_gate), ("GGUF", found.gguf_gate)) if found else ()
    return {(gate, result): 1 for gate, result in results if result in GATE_RESULTS}


def _difference(field: str) -> ReadWords:
    def read(status: FineTuneJobStatus) -> Words:
        found = status.evaluation
        if found is None or found.metric not in EVALUATION_METRICS:
            return {}
        value = getattr(found, field)
        return {} if value is None else {(found.metric,): value}

    return read


def _rows(field: str, words: Collection[str]) -> ReadWords:
    def read(status: FineTuneJobStatus) -> Words:
        counts: dict[str, int] = (status.dataset and getattr(status.dataset, field)) or {}
        return {(word,): count for word, count in _by_word(counts, words).items()}

    return read


_DIFFERENCES = [
    ("difference", "Held-out loss or reward after training, minus that before."),
    ("difference_low", "Lower end of the 95 % interval of the difference."),
    ("difference_high", "Upper end of the 95 % interval of the difference."),
]


def _by_word(counts: Mapping[str, int], words: Collection[str]) -> dict[str, int]:
    """Return the counts by word; those of other words, as of a newer trainer, are together `Unknown`."""
    found = {word: count for word, count in counts.items() if word in words}
    unknown = sum(counts.values()) - sum(found.values())
    return found | ({UNKNOWN: unknown} if unknown > 0 else {})


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
        "correct_answers_ratio",
        "Share of the answers to held-out rows that are correct after training.",
        _reader("evaluation", "answers", "after_percent", scale=0.01),
    ),
    (
        "baseline_correct_answers_ratio",
        "Share of the answers to held-out rows that are correct before training.",
        _reader("evaluation", "answers", "before_percent", scale=0.01),
    ),
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
    (
        "completion_timestamp_seconds",
        "When the job ended, successfully or not: the end of its last Job, or the time of a deadline or limit.",
        _reader("completion_time"),
    ),
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
    ("runs", "Ended trainer and merge pods.", _reader("runs")),
    ("active_seconds", "Total duration of ended runs.", _reader("active_seconds")),
    ("gpu_seconds", "Total duration of ended runs, multiplied by their GPUs.", _reader("gpu_seconds")),
]


def _of_spec(read: Callable[[FineTuneJobSpec], float]) -> Callable[[FineTuneJob], float | None]:
    return lambda job: float(read(job.spec)) if job.spec else None


def _of_status(read: Read) -> Callable[[FineTuneJob], float | None]:
    return lambda job: read(job.status)


Render = Callable[[FineTuneJob, str], bytes]
Family = tuple[bytes, Render]
"""The header of a metric, and the function that renders the series of a job from it and its labels."""


def _value_family(kind: str, name: str, text: str, read: Callable[[FineTuneJob], float | None]) -> Family:
    """Return a metric with at most one series for each job."""
    full = _full_name(kind, name)

    def render_value(job: FineTuneJob, labels: str) -> bytes:
        value = read(job)
        return b"" if value is None else build_line(full, labels, value)

    return build_header(full, kind, text), render_value


def _word_family(kind: str, name: str, text: str, extra: list[str], read: ReadWords) -> Family:
    """Return a metric with a series for each word that a job has."""
    full = _full_name(kind, name)

    def render_words(job: FineTuneJob, labels: str) -> bytes:
        found = read(job.status)
        return b"".join(
            build_line(full, f"{labels},{build_labels(dict(zip(extra, words, strict=True)))}", value)
            for words, value in found.items()
        )

    return build_header(full, kind, text), render_words


def _full_name(kind: str, name: str) -> str:
    return f"finetune_job_{name}_total" if kind == COUNTER else f"finetune_job_{name}"


_GATE_TEXT = (
    "1 for the result of a configured gate; gate FullModel compares the full model with the trained one, GGUF its GGUF "
    "files with the full model."
)
PHASES = 1
"""The place of the phases in `HEADERS`."""
_FAMILIES: list[Family] = [
    (build_header("finetune_job_info", GAUGE, "Objective and method of the job."), _render_info),
    (build_header("finetune_job_status_phase", GAUGE, PHASE_TEXT), _render_phases),
    *(_value_family(GAUGE, name, text, _of_spec(spec)) for name, text, spec in _FROM_SPEC),
    *(_value_family(GAUGE, name, text, _of_status(status)) for name, text, status in _GAUGES),
    *(_value_family(COUNTER, name, text, _of_status(status)) for name, text, status in _COUNTERS),
    _word_family(GAUGE, "waiting", "1 for a job that waits, by reason.", ["reason"], _waiting),
    _word_family(GAUGE, "failed", "1 for a failed job, by reason.", ["reason"], _failed),
    _word_family(
        COUNTER,
        "failures",
        "Failed runs, by reason.",
        ["reason"],
        lambda status: _by_reason(status.failures, status.failures_by_reason),
    ),
    _word_family(
        COUNTER,
        "preemptions",
        "Preempted runs, by reason.",
        ["reason"],
        lambda status: _by_reason(status.preemptions, status.preemptions_by_reason),
    ),
    _word_family(GAUGE, "verdict", "1 for the verdict on the result of the job.", ["verdict"], _verdict),
    _word_family(GAUGE, "gate_result", _GATE_TEXT, ["gate", "result"], _gates),
    *(_word_family(GAUGE, name, text, ["metric"], _difference(name)) for name, text in _DIFFERENCES),
    *(_word_family(GAUGE, name, text, [label], _rows(field, words)) for name, text, label, field, words in _ROWS),
]
"""The metrics of a job, in the order of the exposition."""
HEADERS = tuple(header for header, _ in _FAMILIES)
