"""The record of one run, from which the report, the model cards and the status are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.evaluation import EvaluationStatus
from finetune_api.handoff import JobConfig
from finetune_api.status import DatasetStatus, EarlyStoppingStatus, Resolved
from finetune_trainer.evaluation.gate_rules import MergeCheck
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured


@dataclass(frozen=True, slots=True)
class SampleStats:
    """Figures of the training samples; shares are between 0 and 1, lengths in tokens."""

    train_rows: int
    validation_rows: int
    samples: int
    truncated_share: float
    labelled_share: float
    median_length: int
    longest: int
    full_length_p99: int
    desirable: int | None = None
    """Number of desirable answers; None if answers have no label."""
    histogram: tuple[tuple[int, int], ...] = ()
    """Classes of length before truncation: the longest length of each, and its number of samples."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The greedy answers of base, tuned model and full model to one question."""

    prompt: str
    base: str
    tuned: str
    merged: str | None = None
    expected: str | None = None
    is_expected: bool | None = None
    """Whether the tuned model's answer matches `expected`."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """A held-out pair with the trained reward model's scores."""

    prompt: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float


@dataclass(frozen=True, slots=True)
class RewardedAnswer:
    """One prompt with the answers before and after the training, and their rewards."""

    prompt: str
    base: str
    base_reward: float
    tuned: str
    tuned_reward: float


@dataclass(frozen=True, slots=True)
class ScoreCheck:
    """The comparison of a saved reward model, read back, with the model as trained, on held-out texts."""

    precision: str
    texts: int
    largest_difference: float


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources that the run used, in bytes and seconds."""

    device: str
    peak_memory_bytes: int
    gpu_memory_bytes: int | None
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence that the base model's own card states, by the keys of the Hugging Face hub."""

    identifiers: tuple[str, ...]
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """Facts about the base model for the report."""

    licence: Licence | None = None
    is_template_made: bool = False
    """Whether a plain chat template was used because the model has none of its own."""
    context_length: int | None = None
    """The model's longest context in tokens, if its configuration states it."""
    prompt_tokens: tuple[int, ...] = ()
    """The length of each of `evaluation.prompts`, rendered, in tokens."""


@dataclass(frozen=True)
class RunRecord:
    """All data of the report."""

    config: JobConfig
    settings: Resolved
    dataset: DatasetStatus
    samples: SampleStats
    previews: list[list[tuple[str, bool]]]
    history: History
    baseline: Measured | None
    final: Measured | None
    best_step: int | None
    early_stopping: EarlyStoppingStatus | None
    trainable_parameters: int
    answers: list[Answer]
    merge: MergeCheck | None
    machine: Machine
    score_check: ScoreCheck | None = None
    scored_pairs: list[ScoredPair] = field(default_factory=list)
    rewarded_answers: list[RewardedAnswer] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Preflight's summary of the rows: `dataset/summary.json`."""
    evaluation: EvaluationStatus = field(default_factory=EvaluationStatus)
    """The results of the gates."""
    base: BaseFacts = field(default_factory=BaseFacts)

    @property
    def last_step(self) -> int:
        """The last optimiser step."""
        return self.history.train[-1].step if self.history.train else 0

    @property
    def start(self) -> str:
        """The name of the model before the training."""
        return "initial adapter" if self.config.spec.tuning.initial_adapter else "base model"

    @property
    def rows_per_step(self) -> float:
        """The average number of rows in a step; with packing it differs from the number of sequences."""
        return self.samples.samples * (self.settings.num_train_epochs or 0.0) / max(self.settings.total_steps or 0, 1)
