"""Everything that the report of one run says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.evaluation import EvaluationStatus
from finetune_api.handoff import JobConfig
from finetune_api.status import DatasetStatus, EarlyStoppingStatus, Resolved
from finetune_trainer.evaluation.record import (
    Answer,
    BaseFacts,
    History,
    Machine,
    Measured,
    MergeCheck,
    RewardedAnswer,
    SampleStats,
    ScoreCheck,
    ScoredPair,
)


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
