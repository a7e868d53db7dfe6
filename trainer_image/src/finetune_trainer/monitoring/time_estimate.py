"""Estimate of the time to the last step, from the durations of the steps and evaluations so far."""

import math

EVALUATIONS = frozenset({"Baseline", "Evaluating"})
"""Stages that do not repeat with every step."""


class TimeEstimate:
    """The time left in training; `observe` is called at every change of the progress, with a clock's reading.

    The pace is that of the steps after the first one, which also compiles kernels and allocates memory. Evaluations
    count separately, each as long as the one before it; before the first one, as long as the baseline.
    """

    def __init__(self) -> None:
        self._stage: str | None = None
        self._now: float | None = None
        self._start: int | None = None
        """The step at which the run began: 0, or that of the checkpoint."""
        self._first: int | None = None
        """The first step that ended in this run."""
        self._step = 0
        self._seconds = 0.0
        """Time since the first step ended, without evaluations."""
        self._pace: float | None = None
        self._evaluation = 0.0
        """Duration of the last evaluation."""
        self._evaluating = 0.0
        """Duration so far of the current evaluation."""

    def observe(self, stage: str | None, step: int | None, now: float) -> None:
        """Add the time since the last reading to the stage that was current then, and note the step."""
        self._add(0.0 if self._now is None else now - self._now)
        if self._stage in EVALUATIONS and stage not in EVALUATIONS:
            self._evaluation, self._evaluating = self._evaluating, 0.0
        self._stage, self._now = stage, now
        if step is not None:
            self._note(step)

    def remaining(self, total: int, eval_steps: int | None) -> int | None:
        """Return the estimated seconds to the end of the last step; None before the second step has ended."""
        steps = max(0, total - self._step)
        if steps and self._pace is None:
            return None
        seconds = steps * (self._pace or 0.0) + self._evaluation * count_evaluations(self._step, total, eval_steps)
        if self._stage in EVALUATIONS:
            seconds += max(0.0, self._evaluation - self._evaluating)
        return math.ceil(seconds)

    def _add(self, seconds: float) -> None:
        if self._stage in EVALUATIONS:
            self._evaluating += seconds
        elif self._first is not None:
            self._seconds += seconds

    def _note(self, step: int) -> None:
        if self._start is None or step < self._step:  # with less memory, the run starts again
            self._start, self._first, self._seconds, self._pace = step, None, 0.0, None
        elif self._first is None and step > self._start:
            self._first = step
        elif self._first is not None and step > self._step:
            self._pace = self._seconds / (step - self._first)
        self._step = step


def count_evaluations(step: int, total: int, every: int | None) -> int:
    """Return how many evaluations are due after a step: one every so many steps, and one after the last step."""
    if not every or step >= total:
        return 0
    return total // every - step // every + (1 if total % every else 0)
