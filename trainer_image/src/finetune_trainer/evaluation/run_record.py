"""Everything that the report of one run says."""

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
    """The training samples in figures; shares are between 0 and 1, lengths in tokens."""

    train_rows: int
    validation_rows: int
    samples: int
    truncated_share: float
    labelled_share: float
    median_length: int
    longest: int
    full_length_p99: int
    desirable: int | None = None
    """How many samples are liked answers; None where answers are not judged."""
    histogram: tuple[tuple[int, int], ...] = ()
    """Classes of length before anything is cut: the longest length of each, and how many samples are in it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question answered greedily by the base before training, by the tuned model after it, by the full model."""

    prompt: str
    base: str
    tuned: str
    merged: str | None = None
    expected: str | None = None
    is_expected: bool | None = None
    """Whether the tuned model's answer holds what is expected."""


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
    """One prompt answered by the model before the training and after it, with what each answer earns."""

    prompt: str
    base: str
    base_reward: float
    tuned: str
    tuned_reward: float


@dataclass(frozen=True, slots=True)
class ScoreCheck:
    """A saved reward model, read back and compared with the model as trained on held-out texts."""

    precision: str
    texts: int
    largest_difference: float


@dataclass(frozen=True, slots=True)
class Machine:
    """What the run used; bytes and seconds."""

    device: str
    peak_memory_bytes: int
    gpu_memory_bytes: int | None
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Licence:
    """What the base model's own card says of its licence, in the words of the Hugging Face hub."""

    identifiers: tuple[str, ...]
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the report says of the base model beside its address."""

    licence: Licence | None = None
    is_template_made: bool = False
    """Whether the model has no chat template of its own, so that a plain one was used."""
    context_length: int | None = None
    """The most tokens that it reads, where its configuration says so."""
    prompt_tokens: tuple[int, ...] = ()
    """The length of each of `evaluation.prompts`, rendered."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that the report says."""

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
    """What preflight wrote about the rows: `dataset/summary.json`."""
    evaluation: EvaluationStatus = field(default_factory=EvaluationStatus)
    """What the gates say."""
    base: BaseFacts = field(default_factory=BaseFacts)

    @property
    def last_step(self) -> int:
        """The last optimiser step."""
        return self.history.train[-1].step if self.history.train else 0

    @property
    def start(self) -> str:
        """What the model is called as it was before the training."""
        return "initial adapter" if self.config.spec.tuning.initial_adapter else "base model"

    @property
    def rows_per_step(self) -> float:
        """How many rows a step holds on average, which packing makes another figure than that of its sequences."""
        return self.samples.samples * (self.settings.num_train_epochs or 0.0) / max(self.settings.total_steps or 0, 1)
