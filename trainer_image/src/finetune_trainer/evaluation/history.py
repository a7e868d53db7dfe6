"""The history of a training: every step and evaluation, as in `metrics.jsonl`."""

import json
import statistics
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune_trainer.evaluation.measurements import EvalPoint, Measured, RewardPart, RewardPoint, TrainPoint


@dataclass
class History:
    """Every step and evaluation in order, each written to `metrics.jsonl` at once."""

    path: Path
    train: list[TrainPoint] = field(default_factory=list)
    evaluations: list[EvalPoint] = field(default_factory=list)
    rewards: list[RewardPoint] = field(default_factory=list)
    final_reward: RewardPoint | None = None
    resumed_from: list[int] = field(default_factory=list)
    """The step of each checkpoint from which the training was resumed, in order."""

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Load the lines of an earlier run, from which the training is resumed."""
        self.read(path)
        step = self.train[-1].step if self.train else 0
        self.resumed_from.append(step)
        self._append("resume", {"step": step})

    def read(self, path: Path) -> None:
        """Read the lines of a completed training."""
        text = path.read_text(encoding="utf-8")
        self.path.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            values = json.loads(line)
            kind = values.pop("kind")
            if kind == "resume":
                self.resumed_from.append(values["step"])
            elif kind == "train":
                self.train.append(TrainPoint(**({"grad_norm": None} | values)))
            elif kind == "final":
                self.final_reward = _read_reward(values)
            elif "reward" in values:
                self.rewards.append(_read_reward(values))
            else:
                self.evaluations.append(EvalPoint(values.pop("step"), Measured(**_as_tuples(values, "batches"))))

    def has_evaluated(self, step: int) -> bool:
        """Return whether the weights of that step were evaluated."""
        evaluated = {point.step for point in self.evaluations} | {point.step for point in self.rewards}
        return step in evaluated

    def add_step(self, point: TrainPoint) -> None:
        """Add an optimiser step."""
        self.train.append(point)
        self._append("train", asdict(point))

    def add_evaluation(self, step: int, measured: Measured) -> None:
        """Add an evaluation."""
        self.evaluations.append(EvalPoint(step, measured))
        # The batches of two evaluations are compared by the owners of the result.
        self._append("eval", {"step": step} | asdict(replace(measured, owners=())))

    def add_reward(self, point: RewardPoint) -> None:
        """Add a held-out reward."""
        self.rewards.append(point)
        self._append("eval", asdict(replace(point, rewards=(), owners=()) if point.step else point))

    def set_final_reward(self, point: RewardPoint) -> None:
        """Set the reward of the published model, measured apart from those by which it was chosen."""
        self.final_reward = point
        self._append("final", asdict(point))

    def first_change(self) -> int | None:
        """Return the first step that changed a weight: until then the model is the one before training."""
        return next((point.step for point in self.train if point.changes_weights), None)

    def training_evaluations(self) -> list[EvalPoint]:
        """Return the evaluations after step 0."""
        return [point for point in self.evaluations if point.step > 0]

    def baseline(self) -> Measured | None:
        """Return the evaluation of the untrained model."""
        return next((point.measured for point in self.evaluations if point.step == 0), None)

    def baseline_reward(self) -> RewardPoint | None:
        """Return the reward of the untrained model."""
        return next((point for point in self.rewards if point.step == 0), None)

    def tokens_per_second(self) -> float | None:
        """Return the median over the steps; the first one, which warms caches, counts only if it is the only one."""
        rates = [point.tokens_per_second for point in (self.train[1:] or self.train)]
        return statistics.median(rates) if rates else None

    def _append(self, kind: str, values: dict[str, object]) -> None:
        known = {key: value for key, value in values.items() if value is not None and value != ()}
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"kind": kind} | known, allow_nan=False) + "\n")


def _read_reward(values: dict[str, Any]) -> RewardPoint:
    parts = tuple(RewardPart(*part) for part in values.get("parts", ()))
    return RewardPoint(**(_as_tuples(_as_tuples(values, "rewards"), "owners") | {"parts": parts}))


def _as_tuples(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the values with that list as tuples, which JSON does not have."""
    found = [tuple(one) if isinstance(one, list) else one for one in values.get(name, ())]
    return values | {name: tuple(found)}
