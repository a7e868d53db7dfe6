"""The files of a checkpoint that the library does not write: trained weights, best weights, the run's state."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.status import Metrics
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.rewards.rollouts import ScoredAnswer

WEIGHTS = "weights.safetensors"
BEST_WEIGHTS = "best.safetensors"
REFERENCE = "reference.safetensors"
"""The reference's log-probabilities of every row, which only DPO and KTO have."""
SAVED_RUN = "run.json"


@dataclass
class BaselineOutputs:
    """The model's outputs before its first step: answers to the job's prompts, and samples for the report."""

    answers: list[str] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)
    """A policy's `ScoredAnswer`s; other objectives do not use theirs after the training."""
    ability: list[bool] = field(default_factory=list)
    """Whether each question on general ability was answered correctly."""
    questions_sha256: str = ""
    """Digest of the questions that `answers` belong to, because the job's prompts may change."""


@dataclass(frozen=True)
class SavedRun:
    """The state that no other file of a checkpoint holds."""

    before: BaselineOutputs
    metrics: Metrics
    seconds: float
    kept: list[int] = field(default_factory=list)
    """The steps whose weights are kept for `checkpoint.keep`."""

    def write(self, path: Path) -> None:
        """Write the state as JSON."""
        written = [asdict(one) for one in self.before.shown if isinstance(one, ScoredAnswer)]
        content = {
            "answers": self.before.answers,
            "questions_sha256": self.before.questions_sha256,
            "written": written,
            "ability": self.before.ability,
            "metrics": self.metrics.to_wire(),
            "seconds": self.seconds,
            "kept": self.kept,
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "SavedRun":
        """Read a file that `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        written = [ScoredAnswer(**one) for one in content["written"]]
        asked = content.get("questions_sha256", "")
        before = BaselineOutputs(content["answers"], written, content.get("ability", []), asked)
        metrics = Metrics.model_validate(content["metrics"])
        return cls(before, metrics, content["seconds"], content.get("kept", []))


def add_best_weights(folder: Path, best: Path, plateau: Plateau, step: int) -> None:
    """Link the best weights into a checkpoint, unless they are those of its own step."""
    if plateau.best_step not in {None, step}:
        os.link(best, folder / BEST_WEIGHTS)


def restore_best_weights(folder: Path, best: Path, plateau: Plateau) -> None:
    """Copy the best weights of a checkpoint to the run's file."""
    if plateau.best_step is None:
        return
    source = folder / BEST_WEIGHTS
    shutil.copyfile(source if source.exists() else folder / WEIGHTS, best)


def add_reference(folder: Path, reference: Path | None) -> None:
    """Link the reference's log-probabilities into a checkpoint, if the objective has any."""
    if reference and reference.exists():
        os.link(reference, folder / REFERENCE)


def restore_reference(folder: Path, reference: Path) -> None:
    """Copy the reference's log-probabilities of a checkpoint to the run's file, if it has any."""
    if (folder / REFERENCE).exists():
        shutil.copyfile(folder / REFERENCE, reference)


def replay_evaluations(history: History, plateau: Plateau) -> None:
    """Update early stopping with the evaluations so far, without those of weights that nothing had changed yet."""
    first = history.first_change()
    if first is None:
        return
    for evaluation in history.evaluations:
        if evaluation.step >= first:
            plateau.update(evaluation.step, evaluation.loss)
    for reward in history.rewards:
        if reward.step >= first:
            plateau.update(reward.step, -reward.reward)
