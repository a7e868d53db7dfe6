"""A recommendation for the next run, and the type of the rules that make one."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_trainer.evaluation.run_record import RunRecord

UNUSABLE = 2.0
"""The effect of what makes the result itself doubtful; shares are at most 1."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to do, and why."""

    advice: str
    evidence: str
    effect: float = 0.0
    """How much it concerns, by which recommendations are ranked: the share of rows, steps, loss or memory, or
    `UNUSABLE`."""


Rule = Callable[[RunRecord], Recommendation | None]
"""Returns what it recommends; None if the run does not have the fault."""
