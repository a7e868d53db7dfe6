"""The training as one line on a terminal."""

from typing import Any, TextIO

from tqdm import tqdm

from finetune_api.handoff import ProgressReport

LOSSES = {"train_loss": "train", "eval_loss": "eval", "baseline_eval_loss": "baseline"}


class Bar:
    """A tqdm bar over the optimiser steps, with stage and losses."""

    def __init__(self, out: TextIO) -> None:
        self._bar: tqdm[Any] = tqdm(file=out, unit="step", dynamic_ncols=True, leave=True, disable=False, total=None)

    def show(self, report: ProgressReport) -> None:
        """Draw the state."""
        progress, metrics = report.progress, report.metrics
        self._bar.set_description_str(progress.stage or "Starting", refresh=False)
        if progress.total_steps:
            self._bar.total = progress.total_steps
            self._bar.n = progress.step or 0
        losses = {word: getattr(metrics, name) for name, word in LOSSES.items()}
        self._bar.set_postfix({word: f"{loss:.4g}" for word, loss in losses.items() if loss is not None}, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.close()
