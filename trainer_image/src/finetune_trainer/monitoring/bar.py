"""The progress bar of a run on a terminal, and log lines that do not break it."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

from tqdm import tqdm

from finetune_api.handoff import ProgressReport

LOSSES = {"train_loss": "train", "eval_loss": "eval", "baseline_eval_loss": "baseline"}
BEFORE_STEPS = "{desc} [{elapsed}{postfix}]"
WITH_STEPS = "{desc} |{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"
"""Without tqdm's own time left, which counts loading and baseline as time of steps."""


class Bar:
    """A tqdm bar over the optimiser steps, with stage, time left and losses."""

    def __init__(self, out: TextIO) -> None:
        self._bar: tqdm[Any] = tqdm(
            file=out, dynamic_ncols=True, leave=True, disable=False, total=None, bar_format=BEFORE_STEPS
        )

    def show(self, report: ProgressReport, share: str) -> None:
        """Draw the state; `share` is the completed share of the current stage, as text."""
        progress = report.progress
        if progress.total_steps:
            self._bar.bar_format = WITH_STEPS
            self._bar.total = progress.total_steps
            self._bar.n = progress.step or 0
        self._bar.set_description_str(describe_stage(report, share), refresh=False)
        self._bar.set_postfix_str(", ".join(_list_figures(report)), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Close the bar; the last state remains visible."""
        self._bar.close()


def describe_stage(report: ProgressReport, share: str) -> str:
    """Return the stage and its completed share, for example `Baseline 76%`."""
    progress = report.progress
    if progress.stage == "Training" and progress.step is not None:
        return f"Training {progress.display}"
    return f"{progress.stage or 'Starting'}{share}"


def _list_figures(report: ProgressReport) -> Iterator[str]:
    left = report.progress.estimated_remaining_seconds
    if left:
        yield f"{tqdm.format_interval(left)} left"
    for name, word in LOSSES.items():
        loss = getattr(report.metrics, name)
        if loss is not None:
            yield f"{word}={loss:.4g}"


class AboveBar(io.TextIOBase):
    """A stream whose complete lines are written above the bars on standard output."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._rest = ""

    def write(self, text: str) -> int:
        """Write the complete lines, and keep the rest for the next call."""
        lines, end, self._rest = (self._rest + text).rpartition("\n")
        if end:
            with tqdm.external_write_mode(file=sys.stdout):
                self._out.write(lines + end)
                self._out.flush()
        return len(text)

    def end_line(self) -> None:
        """Write what is left without a line end."""
        if self._rest:
            self.write("\n")

    def isatty(self) -> bool:
        """Return whether the stream below is a terminal."""
        return self._out.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream below."""
        return self._out.fileno()


@contextmanager
def logs_above_bar() -> Iterator[None]:
    """Write log lines, and what libraries write to standard error, above a bar on the same terminal."""
    before = sys.stderr
    above = AboveBar(before)
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
    moved = [handler for handler in handlers if handler.stream is before]
    for handler in moved:
        handler.setStream(above)
    try:
        with redirect_stderr(above):
            yield
    finally:
        for handler in moved:
            handler.setStream(before)
        above.end_line()
