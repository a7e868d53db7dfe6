"""What the model could do before the training and still can: its answers to multiple-choice questions, compared."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.comparing.comparison import Comparison, compare
from finetune_api.evaluation import AbilityStatus, EvaluationMetric, Gate

BATCH_TOKENS = 8192
"""Tokens of a question's choices that are read at once, with padding."""


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether each question was answered correctly, before and after the training."""

    before: list[bool]
    after: list[bool]

    @property
    def comparison(self) -> Comparison | None:
        """The paired comparison of the shares of correct answers; None if they are not of the same questions.

        The weights were not chosen on these questions, so the interval is not widened for the choice.
        """
        return self.compare()

    def compare(self, choices: int = 1) -> Comparison | None:
        """Return the same for weights that were chosen from so many evaluations of these questions."""
        return compare(EvaluationMetric.REWARD, _parts(self.before), _parts(self.after), choices)

    @property
    def has_forgotten(self) -> bool:
        """Whether the interval of the difference is below zero."""
        found = self.comparison
        return found is not None and found.high is not None and found.high < 0

    @property
    def gained(self) -> int:
        """Questions that only the tuned model answers correctly."""
        return sum(new and not old for old, new in zip(self.before, self.after, strict=False))

    @property
    def lost(self) -> int:
        """Questions that only the model before the training answers correctly."""
        return sum(old and not new for old, new in zip(self.before, self.after, strict=False))


def _parts(answers: Sequence[bool]) -> list[tuple[float, int]]:
    return [(float(one), 1) for one in answers]


def describe_ability(ability: Ability) -> str:
    """Return the difference in one sentence, in percent and percentage points with the 95 % interval."""
    found = ability.comparison
    if found is None:
        return "general ability was not compared: the questions before and after are not the same"
    change = describe_change(found, f"{len(ability.after)} questions")
    return f"general ability {'lost: ' if ability.has_forgotten else ''}{change}"


def ability_status(ability: Ability | None) -> AbilityStatus | None:
    """Return the figures in percent and percentage points."""
    found = ability.comparison if ability else None
    if ability is None or found is None:
        return None
    return AbilityStatus(questions=len(ability.after), **to_percent(found))


def to_percent(found: Comparison) -> dict[str, float | None]:
    """Return the shares of correct answers in percent, and their difference in points, by the names of a status."""
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return {
        "before_percent": 100 * found.before,
        "after_percent": 100 * found.after,
        "difference_points": 100 * found.difference,
        "difference_low_points": low,
        "difference_high_points": high,
    }


def describe_change(found: Comparison, count: str) -> str:
    """Return both shares and their difference, with the 95 % interval."""
    change = f"{100 * found.difference:+.1f} percentage points"
    if found.low is not None and found.high is not None:
        change += f" (95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return f"{100 * found.before:.1f} % → {100 * found.after:.1f} % of {count}, {change}"


def find_forgotten(gate: Gate | None, ability: Ability | None, obstacle: str = "") -> list[str]:
    """Return why `gate.maxForgotten` is not met; empty if it is met or not set."""
    if gate is None or gate.max_forgotten is None:
        return []
    found = ability.comparison if ability else None
    if ability is None or found is None:
        why = obstacle or "the questions were not asked before and after"
        return [f"there is no general ability to compare with maxForgotten {gate.max_forgotten:g}: {why}"]
    if 100 * (ability.lost - ability.gained) / len(ability.after) <= gate.max_forgotten:
        return []
    return [f"{describe_ability(ability)}, more than maxForgotten {gate.max_forgotten:g}"]
