"""Early stopping and the choice of the best step."""

import math
from dataclasses import dataclass
from typing import Self

from finetune_api.evaluation import EarlyStopping
from finetune_api.status import Resolved


@dataclass
class Plateau:
    """Early stopping and the best step, from the sequence of evaluation losses alone."""

    patience: int | None
    min_delta: float = 0.0
    warmup: int = 0
    """Number of first evaluations that do not count against patience."""
    best_loss: float = math.inf
    best_step: int | None = None
    without_improvement: int = 0
    _reference: float = math.inf
    _seen: int = 0

    @classmethod
    def of(cls, early: EarlyStopping | None) -> Self:
        """Return that of a job; without early stopping, it only finds the best step."""
        return cls(early.patience, early.min_delta, early.warmup_evaluations) if early else cls(None)

    def update(self, step: int, loss: float) -> bool:
        """Add an evaluation, and return whether it is the lowest so far. A fall of `min_delta` resets the count."""
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
        """Return whether the training must stop."""
        return self.patience is not None and self.without_improvement >= self.patience


def explain_idle_patience(early: EarlyStopping | None, settings: Resolved) -> str:
    """Return why early stopping cannot end a training before its last step; empty if it can."""
    if early is None or not settings.eval_steps or not settings.total_steps:
        return ""
    evaluations = math.ceil(settings.total_steps / settings.eval_steps)
    needed = max(1, early.warmup_evaluations) + early.patience  # the first one has nothing to compare with
    if needed < evaluations:
        return ""
    return (
        f"earlyStopping cannot stop this training before its last step: it needs {needed} evaluations, and there are "
        f"{evaluations}, every {settings.eval_steps} of {settings.total_steps} steps: lower evaluation.steps or "
        "earlyStopping.patience"
    )
