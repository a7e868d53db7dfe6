"""How many answers to held-out rows are correct before the training and after it, with the interval of the
difference."""

from dataclasses import dataclass, field

from finetune_api.comparing.comparison import Comparison
from finetune_api.evaluation import AnswersStatus, Gate
from finetune_trainer.evaluation.ability import Ability, describe_change, to_percent

SHOWN = 5
"""Wrong answers in the report."""


@dataclass(frozen=True, slots=True)
class WrongAnswer:
    """An answer of the tuned model that differs from the row's own."""

    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True, slots=True)
class FrequentAnswer:
    """The answer that the tuned model gives most often, to how many rows, and how many rows share their own answer."""

    text: str
    rows: int
    rows_that_share_theirs: int


@dataclass(frozen=True, slots=True)
class HeldOutAnswers:
    """Whether the answer to each row was correct, before and after the training, and the first wrong ones after it."""

    counted: Ability
    wrong: list[WrongAnswer] = field(default_factory=list)
    frequent: FrequentAnswer | None = None

    @property
    def rows(self) -> int:
        """The number of rows that were answered."""
        return len(self.counted.after)

    def compare(self, choices: int) -> Comparison | None:
        """Return the paired comparison of the shares of correct answers; None if they are not of the same rows.

        The weights were chosen from `choices` evaluations on held-out rows.
        """
        return self.counted.compare(choices)

    @property
    def percent(self) -> float:
        """The share of correct answers of the tuned model."""
        return 100 * sum(self.counted.after) / max(self.rows, 1)


def describe_answers(answers: HeldOutAnswers, choices: int) -> str:
    """Return the shares and their difference in one sentence, with the 95 % interval."""
    found = answers.compare(choices)
    if found is None:
        return f"{answers.percent:.1f} % of {answers.rows} answers to held-out rows are correct"
    return f"correct answers to held-out rows: {describe_change(found, str(answers.rows))}"


def answers_status(answers: HeldOutAnswers | None, choices: int) -> AnswersStatus | None:
    """Return the figures in percent and percentage points."""
    if answers is None:
        return None
    found = answers.compare(choices)
    if found is None:
        return AnswersStatus(rows=answers.rows, after_percent=answers.percent)
    return AnswersStatus(rows=answers.rows, **to_percent(found))


def find_too_few(gate: Gate | None, answers: HeldOutAnswers | None, obstacle: str = "") -> list[str]:
    """Return why `gate.minCorrect` is not met; empty if it is met or not set."""
    if gate is None or gate.min_correct is None:
        return []
    if answers is None:
        why = obstacle or "no held-out row was answered"
        return [f"there are no answers to compare with minCorrect {gate.min_correct:g}: {why}"]
    if answers.percent >= gate.min_correct:
        return []
    correct = sum(answers.counted.after)
    share = f"{correct} of {answers.rows} answers to held-out rows ({answers.percent:.1f} %)"
    return [f"{share} are correct, below minCorrect {gate.min_correct:g}: read the wrong ones in the report"]
