"""What a checkpoint holds beside the library's own files: trained weights, the best ones, and what the run knows."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.handoff import Artifact
from finetune_api.status import Metrics
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.rewards.rollouts import ScoredAnswer

WEIGHTS = "weights.safetensors"
BEST_WEIGHTS = "best.safetensors"
SAVED_RUN = "run.json"


@dataclass
class BaselineOutputs:
    """What the model made of the job's questions, and of prompts shown in the report, before its first step."""

    answers: list[str] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)
    """Of a policy its `ScoredAnswer` answers; what other objectives show before is not used after."""


@dataclass(frozen=True)
class SavedRun:
    """What no other file of a checkpoint tells."""

    before: BaselineOutputs
    metrics: Metrics
    seconds: float

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        written = [asdict(one) for one in self.before.shown if isinstance(one, ScoredAnswer)]
        content = {
            "answers": self.before.answers,
            "written": written,
            "metrics": self.metrics.model_dump(mode="json", by_alias=True, exclude_none=True),
            "seconds": self.seconds,
        }
        path.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "SavedRun":
        """Reads what `write` has written."""
        content = json.loads(path.read_text(encoding="utf-8"))
        before = BaselineOutputs(content["answers"], [ScoredAnswer(**one) for one in content["written"]])
        return cls(before, Metrics.model_validate(content["metrics"]), content["seconds"])


def add_best_weights(folder: Path, best: Path, plateau: Plateau, step: int) -> None:
    """Puts the best weights into a checkpoint, unless they are those of its own step; a link, for they may be large."""
    if plateau.best_step not in {None, step}:
        os.link(best, folder / BEST_WEIGHTS)


def restore_best_weights(folder: Path, best: Path, plateau: Plateau) -> None:
    """Puts the best weights of a checkpoint to where those of a run lie."""
    if plateau.best_step is None:
        return
    source = folder / BEST_WEIGHTS
    shutil.copyfile(source if source.exists() else folder / WEIGHTS, best)


def add_history(folder: Path, history: History) -> None:
    """Puts the lines of metrics.jsonl into a checkpoint."""
    shutil.copyfile(history.path, folder / Artifact.METRICS)


def replay_evaluations(history: History, plateau: Plateau) -> None:
    """Patience and best step are those of the evaluations so far."""
    for evaluation in history.training_evaluations():
        plateau.update(evaluation.step, evaluation.loss)
    for reward in history.rewards:
        if reward.step:
            plateau.update(reward.step, -reward.reward)
