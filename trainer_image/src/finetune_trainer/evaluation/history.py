"""The history of a training: every step and evaluation, as `metrics.jsonl` holds it."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from finetune_trainer.evaluation.measurements import EvalPoint, Measured, RewardPoint, TrainPoint


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

    def load(self, path: Path) -> None:
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

    def training_evaluations(self) -> list[EvalPoint]:
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
