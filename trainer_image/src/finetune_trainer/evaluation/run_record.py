"""The record of one run, from which the report, the model cards and the status are made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from finetune_api.comparing.comparison import Comparison, Parts, compare
from finetune_api.comparing.groups import EVALUATED_PROMPTS, EVALUATED_ROWS
from finetune_api.comparing.measured import MeasuredRows
from finetune_api.evaluation import EvaluationMetric, EvaluationStatus, Verdict
from finetune_api.handoff import JobConfig
from finetune_api.objectives import SAMPLED
from finetune_api.spec import Mode
from finetune_api.status import DatasetStatus, EarlyStoppingStatus, Resolved
from finetune_trainer.data.rows import Message
from finetune_trainer.evaluation.ability import Ability, describe_ability
from finetune_trainer.evaluation.gate_rules import MergeCheck
from finetune_trainer.evaluation.gguf_rules import GgufCheck
from finetune_trainer.evaluation.held_out_answers import HeldOutAnswers, describe_answers
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.kept_steps import KeptStep
from finetune_trainer.evaluation.measurements import Measured, RewardPoint
from finetune_trainer.evaluation.verdict import describe


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
    """The greedy answers of base, tuned model and full model to one question; `turns` are its prompt's."""

    prompt: str
    base: str
    tuned: str
    merged: str | None = None
    expected: str | None = None
    is_expected: bool | None = None
    """Whether the tuned model's answer matches `expected`."""
    reference: str | None = None
    """The answer in the held-out row from which the prompt is."""
    turns: list[Message] = field(default_factory=list)


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
class Served:
    """The base in 16 bits on the held-out rows, without and with the trained adapter, or why it was not measured."""

    before: Measured | RewardPoint | None = None
    after: Measured | RewardPoint | None = None
    obstacle: str = ""


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
    chosen_template: str | None = None
    """The chat template that the job chose, in a few words."""
    context_length: int | None = None
    """The model's longest context in tokens, if its configuration states it."""
    prompt_tokens: tuple[int, ...] = ()
    """The length of each of `evaluation.prompts`, rendered, in tokens."""
    loader: str = "AutoModelForCausalLM"
    """The class of transformers that loads the model as it was trained."""
    is_tokenizer_read_otherwise: bool = False
    """Whether transformers reads other tokens with the base's tokenizer than those of an adapter's training."""


@dataclass(frozen=True)
class RunRecord:
    """All data of the report; `baseline`, `final` and the history are figures of the model in training."""

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
    served: Served | None = None
    """The model as it will be served, if that is not the one in training."""
    ability: Ability | None = None
    """Its answers to the questions on general ability."""
    held_out: HeldOutAnswers | None = None
    """Its answers to the rows of `evaluation.answers`."""
    compared_rows: int = 0
    """Number of held-out rows that were measured."""
    score_check: ScoreCheck | None = None
    gguf: GgufCheck | None = None
    """The files of `output.gguf`, compared with the full model."""
    kept: list[KeptStep] = field(default_factory=list)
    """The steps whose adapters are published in addition to the result, the best first."""
    scored_pairs: list[ScoredPair] = field(default_factory=list)
    rewarded_answers: list[RewardedAnswer] = field(default_factory=list)
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Preflight's summary of the rows: `dataset/summary.json`."""
    evaluation: EvaluationStatus = field(default_factory=EvaluationStatus)
    """The verdict and the results of the gates."""
    base: BaseFacts = field(default_factory=BaseFacts)

    @property
    def last_step(self) -> int:
        """The last optimiser step."""
        return self.history.train[-1].step if self.history.train else 0

    @property
    def is_rewarded(self) -> bool:
        """Whether the result is judged by a reward and not by a loss."""
        return bool(self.history.rewards or self.history.final_reward)

    @property
    def judged(self) -> tuple[Measured | RewardPoint | None, Measured | RewardPoint | None]:
        """The figures before and after the training of the model that will be served."""
        if self.served:
            return self.served.before, self.served.after
        if self.is_rewarded:
            return self.history.baseline_reward(), self.history.final_reward
        return self.baseline, self.final

    @property
    def judged_loss(self) -> float | None:
        """The held-out loss of the tuned model as it will be served."""
        after = self.judged[1]
        return after.loss if isinstance(after, Measured) else None

    @cached_property
    def comparison(self) -> Comparison | None:
        """The paired comparison of the served model before and after; None if one of them was not measured."""
        before, after = self.judged
        if before is None or after is None:
            return None
        metric = EvaluationMetric.REWARD if self.is_rewarded else EvaluationMetric.LOSS
        return compare(metric, _parts(before), _parts(after), self.choices, after.owners)

    @property
    def compared_prompts(self) -> int:
        """Number of different prompts of the held-out rows that were measured."""
        after = self.judged[1]
        return len({prompt for _, prompt in after.owners}) if after and after.owners else self.compared_rows

    @property
    def most_compared(self) -> int:
        """The largest number of held-out rows that are measured, however many there are."""
        return EVALUATED_PROMPTS if self.config.spec.objective in SAMPLED else EVALUATED_ROWS

    @property
    def verdict(self) -> Verdict:
        """Whether the model that will be served is better than before the training."""
        return self.comparison.verdict if self.comparison else Verdict.NOT_EVALUATED

    @cached_property
    def detail(self) -> str:
        """The verdict in one sentence, with answers that do not match their pattern."""
        sentence = describe(
            self.comparison,
            start=self.start,
            rows=self.compared_rows,
            prompts=self.compared_prompts,
            most=self.most_compared,
            obstacle=self.obstacle,
        )
        missed = [str(at) for at, one in enumerate(self.answers, 1) if one.is_expected is False]
        parts = [sentence, f"the answer to prompt {', '.join(missed)} misses its pattern" if missed else ""]
        parts += [describe_answers(self.held_out, self.choices)] if self.held_out else []
        parts += [describe_ability(self.ability)] if self.ability else []
        return "; ".join(part for part in parts if part)

    @property
    def choices(self) -> int:
        """The number of evaluations from which the published weights were chosen."""
        points = self.history.rewards if self.is_rewarded else self.history.evaluations
        return sum(point.step > 0 for point in points)

    @property
    def obstacle(self) -> str:
        """Why there is no comparison; empty if there is one."""
        before, after = self.judged
        if self.served and self.served.obstacle:
            return self.served.obstacle
        if after is None:
            return "no rows were held out"
        if before is None:
            return f"the {self.start} was not measured (evaluation.baseline is false)"
        return "" if self.comparison else "the figures before and after are not of the same rows"

    @property
    def epochs_seen(self) -> float:
        """The passes over the training rows that the last step completed."""
        return self.history.train[-1].epoch if self.history.train else 0.0

    @property
    def reads_single_rows(self) -> bool:
        """Whether each row is one sample of the training loop, so that the epochs give the number of rows exactly."""
        is_sampled = self.config.spec.objective in SAMPLED
        return not is_sampled and not self.settings.packing and self.samples.samples == self.samples.train_rows

    @property
    def is_evaluation(self) -> bool:
        """Whether an existing adapter was evaluated, and nothing was trained."""
        return self.config.spec.mode is Mode.EVALUATE

    @property
    def start(self) -> str:
        """The name of the model that the result is compared with."""
        is_continued = self.config.spec.tuning.initial_adapter and not self.is_evaluation
        return "initial adapter" if is_continued else "base model"

    @property
    def rows_per_step(self) -> float:
        """The average number of rows in the steps that were done; with packing it is not the number of sequences."""
        return self.samples.samples * self.epochs_seen / max(self.last_step, 1)


def measured_rows(record: RunRecord, rows_sha256: str) -> MeasuredRows | None:
    """Return the judged figure row by row, for comparisons with other results; None if there is none or it is not
    finite."""
    after, metric = record.judged[1], EvaluationMetric.REWARD if record.is_rewarded else EvaluationMetric.LOSS
    if after is None or not all(math.isfinite(mean) for mean, _ in _parts(after)):
        return None
    return MeasuredRows(
        metric=metric,
        rows_sha256=rows_sha256,
        evaluations=record.choices,
        parts=list(_parts(after)),
        owners=list(after.owners),
    )


def _parts(measured: Measured | RewardPoint) -> Parts:
    """Return the values whose mean the figure is, with their weights."""
    if isinstance(measured, RewardPoint):
        return [(reward, 1) for reward in measured.rewards]
    return measured.batches
