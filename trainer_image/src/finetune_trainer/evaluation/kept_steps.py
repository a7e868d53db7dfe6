"""The steps whose adapters are published in addition to the result: the choice, and their figures."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.handoff import Artifact
from finetune_trainer.evaluation.history import History


@dataclass(frozen=True, slots=True)
class KeptStep:
    """A published step with its held-out loss or, of objective RLHF, its reward; without held-out rows it has none."""

    step: int
    epoch: float | None = None
    loss: float | None = None
    reward: float | None = None

    @property
    def folder(self) -> str:
        """The folder of its adapter in the result."""
        return kept_folder(self.step)


def kept_folder(step: int) -> str:
    """Return the folder of a kept step's adapter in the result."""
    return f"{Artifact.KEPT}/step-{step:06d}"


def find_kept(result: Path) -> list[int]:
    """Return the steps whose adapters are in the folder of the result."""
    return sorted(int(path.name.removeprefix("step-")) for path in (result / Artifact.KEPT).glob("step-*"))


def rank_steps(steps: Iterable[int], history: History) -> list[int]:
    """Return the steps, the best first: by held-out loss or reward; without held-out rows, the last first."""
    scores = {point.step: point.loss for point in history.evaluations}
    scores |= {point.step: -point.reward for point in history.rewards}
    return sorted(steps, key=lambda step: (scores.get(step, -step), step))


def describe_steps(steps: Iterable[int], history: History) -> list[KeptStep]:
    """Return the steps with their figures, the best first."""
    epochs = {point.step: point.epoch for point in history.train}
    losses = {point.step: point.loss for point in history.evaluations}
    rewards = {point.step: point.reward for point in history.rewards}
    return [
        KeptStep(step, epochs.get(step), losses.get(step), rewards.get(step)) for step in rank_steps(steps, history)
    ]
