"""What a training run leaves behind: plain data, from which metrics.jsonl, the report and the status are made."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from finetune_trainer.evaluation.gate_rules import GateResult, Observation


@dataclass(frozen=True, slots=True)
class Measured:
    """A held-out loss, with its standard error over batches of rows.

    The loss is the mean over `tokens` trained tokens, in nats; where an objective compares answers, over that many
    pairs or rows. The margin is the mean reward of the preferred answers less that of the others.
    """

    loss: float
    tokens: int
    standard_error: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None

    def figures(self) -> dict[str, float]:
        """What was measured beside the loss, by the names of the status."""
        return _known(reward_margin=self.reward_margin, reward_accuracy=self.reward_accuracy)

    @property
    def perplexity(self) -> float:
        """`exp(loss)`, or infinity where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf  # the largest float is e^709


def token_mean(batches: Sequence[tuple[float, int]]) -> Measured:
    """The mean over all tokens, from each batch's mean loss and number of trained tokens."""
    tokens = sum(count for _, count in batches)
    loss = sum(mean * count for mean, count in batches) / max(tokens, 1)
    if len(batches) < 2 or not tokens:
        return Measured(loss, tokens)
    squares = sum(((mean - loss) * count) ** 2 for mean, count in batches)
    error = math.sqrt(squares * len(batches) / (len(batches) - 1)) / tokens
    return Measured(loss, tokens, error)


@dataclass(frozen=True, slots=True)
class TrainPoint:
    """One optimiser step."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens_per_second: float
    seconds: float
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    reward: float | None = None
    kl: float | None = None
    completion_length: float | None = None
    clipped_share: float | None = None
    flat_share: float | None = None

    def figures(self) -> dict[str, float]:
        """What the objective measures beside its loss, by the names of the status."""
        return _known(
            reward_margin=self.reward_margin, reward_accuracy=self.reward_accuracy, reward=self.reward, kl=self.kl
        )


def _known(**figures: float | None) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


@dataclass(frozen=True, slots=True)
class EvalPoint:
    """One evaluation; step 0 is the untouched model."""

    step: int
    measured: Measured

    @property
    def loss(self) -> float:
        """The held-out loss."""
        return self.measured.loss


@dataclass(frozen=True, slots=True)
class RewardPoint:
    """The mean reward of one answer to each held-out prompt, with its standard error; step 0 is the untouched model."""

    step: int
    reward: float
    prompts: int
    completion_length: float
    clipped_share: float
    standard_error: float | None = None


def reward_mean(step: int, rewards: Sequence[float], *, completion_length: float, clipped_share: float) -> RewardPoint:
    """The point of these rewards; lengths are in tokens, clipped is an answer that did not end by itself."""
    error = statistics.stdev(rewards) / math.sqrt(len(rewards)) if len(rewards) > 1 else None
    return RewardPoint(step, statistics.fmean(rewards), len(rewards), completion_length, clipped_share, error)


@dataclass
class History:
    """Every step and evaluation in order, each also a line of metrics.jsonl the moment it happens."""

    path: Path
    train: list[TrainPoint] = field(default_factory=list)
    evaluations: list[EvalPoint] = field(default_factory=list)
    rewards: list[RewardPoint] = field(default_factory=list)
    final_reward: RewardPoint | None = None
    resumed_from: list[int] = field(default_factory=list)
    """The step of each checkpoint that the training went on from, in order."""

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def take_over(self, path: Path) -> None:
        """Goes on from the lines that an earlier run left."""
        text = path.read_text(encoding="utf-8")
        self.path.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            values = json.loads(line)
            kind = values.pop("kind")
            if kind == "resume":
                self.resumed_from.append(values["step"])
            elif kind == "train":
                self.train.append(TrainPoint(**({"grad_norm": None} | values)))
            elif "reward" in values:
                self.rewards.append(RewardPoint(**values))
            else:
                self.evaluations.append(EvalPoint(values.pop("step"), Measured(**values)))
        step = self.train[-1].step if self.train else 0
        self.resumed_from.append(step)
        self._append("resume", {"step": step})

    def has_evaluated(self, step: int) -> bool:
        """Whether the weights of that step were evaluated."""
        evaluated = {point.step for point in self.evaluations} | {point.step for point in self.rewards}
        return step in evaluated

    def add_step(self, point: TrainPoint) -> None:
        """Records an optimiser step."""
        self.train.append(point)
        self._append("train", asdict(point))

    def add_evaluation(self, step: int, measured: Measured) -> None:
        """Records an evaluation."""
        self.evaluations.append(EvalPoint(step, measured))
        self._append("eval", {"step": step} | asdict(measured))

    def add_reward(self, point: RewardPoint) -> None:
        """Records a held-out reward."""
        self.rewards.append(point)
        self._append("eval", asdict(point))

    def set_final_reward(self, point: RewardPoint) -> None:
        """Records the reward of what is published, measured apart from those that it was chosen by."""
        self.final_reward = point
        self._append("final", asdict(point))

    def evaluations_of_training(self) -> list[EvalPoint]:
        """The evaluations after step 0."""
        return [point for point in self.evaluations if point.step > 0]

    def baseline(self) -> Measured | None:
        """The evaluation of the untouched model."""
        return next((point.measured for point in self.evaluations if point.step == 0), None)

    def baseline_reward(self) -> RewardPoint | None:
        """The reward of the untouched model."""
        return next((point for point in self.rewards if point.step == 0), None)

    def tokens_per_second(self) -> float | None:
        """Median over the steps; the first, which warms caches, counts only when it is alone."""
        rates = [point.tokens_per_second for point in (self.train[1:] or self.train)]
        return statistics.median(rates) if rates else None

    def _append(self, kind: str, values: dict[str, object]) -> None:
        known = {key: value for key, value in values.items() if value is not None}
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"kind": kind} | known, allow_nan=False) + "\n")


@dataclass
class Plateau:
    """Early stopping and the best step, decided on the sequence of evaluation losses alone."""

    patience: int | None
    min_delta: float = 0.0
    warmup: int = 0
    """How many of the first evaluations patience does not count."""
    best_loss: float = math.inf
    best_step: int | None = None
    without_improvement: int = 0
    _reference: float = math.inf
    _seen: int = 0

    def observe(self, step: int, loss: float) -> bool:
        """Takes in an evaluation; returns whether it is the lowest so far. A fall of `min_delta` renews patience."""
        self._seen += 1
        if loss < self._reference - self.min_delta:
            self._reference = loss
            self.without_improvement = 0
        elif self._seen > self.warmup:
            self.without_improvement += 1
        is_best = loss < self.best_loss
        if is_best:
            self.best_loss, self.best_step = loss, step
        return is_best

    @property
    def is_exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.without_improvement >= self.patience


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
class MergeCheck:
    """The full model before the gate: what was seen of each candidate, and which of them is published."""

    precision: str
    trained_loss: float | None
    """Of the model as trained, on the tokens that the candidates are judged on."""
    candidates: list[Observation]
    faults: list[list[str]]
    """Why a candidate may not be published, for each of them."""
    chosen: Observation | None
    not_run: str = ""
    """Why the gate could not judge."""
    seconds: float = 0.0

    @property
    def result(self) -> GateResult:
        """What the gate said."""
        if self.chosen:
            return GateResult.PASSED
        return GateResult.NOT_RUN if self.not_run else GateResult.NOT_MET

    @property
    def sentence(self) -> str:
        """Why there is no full model, and what to change; empty where there is one."""
        if self.chosen:
            return ""
        if self.not_run:
            return f"the full model is withheld, for its gate could not be run: {self.not_run}"
        told = "; ".join(faults[0] for faults in self.faults if faults)
        wider = WIDER[self.precision]
        return f"the full model in {self.precision} is withheld: {told}. Set output.merge to {wider}"


WIDER = {"FP16": "BF16 or FP32", "BF16": "FP32", "FP32": "None"}
"""What to ask for in place of a number format that is too narrow for the weights."""


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
