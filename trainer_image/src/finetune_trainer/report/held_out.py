"""What is measured on held-out rows, told in the terms of the objective: tokens, pairs, judged answers or rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from finetune_api.objectives import Objective
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured, RewardPoint
from finetune_trainer.report.text import number, percent, table

NORMAL_95 = 1.96


class Unit(Enum):
    """What an objective's figures are means over; the value names several of them."""

    TOKENS = "tokens"
    PAIRS = "pairs"
    ANSWERS = "answers"
    PROMPTS = "prompts"


@dataclass(frozen=True, slots=True)
class Terms:
    """How an objective's figures are called; `loss` is the title of its loss, with the unit."""

    unit: Unit
    loss: str
    legend: str


_TOKENS = Terms(
    Unit.TOKENS,
    "loss, nats per trained token",
    "Losses are nats per trained token, weighted by token. Perplexity is the exponential of the loss.",
)
_DPO = Terms(
    Unit.PAIRS,
    "loss per pair",
    "Each pair weighs the same. A reward is `dpo.beta` times the change in an answer's log-probability since the "
    "reference; the margin is that of the chosen less that of the rejected answer, and the accuracy the share of pairs "
    "in which it is above zero. A loss of 0.693 is that of a coin.",
)
_KTO = Terms(
    Unit.ANSWERS,
    "loss per answer",
    "Each judged answer weighs the same. A reward is `kto.beta` times the change in an answer's log-probability since "
    "the reference; the margin is the mean of the liked less that of the disliked answers. Before the training "
    "the loss is half of the answers' weight.",
)
_SCORES = Terms(
    Unit.PAIRS,
    "loss per pair",
    "Each pair weighs the same. The margin is the score of the chosen less that of the rejected answer, and the "
    "accuracy the share of pairs in which it is above zero. A loss of 0.693 is that of a coin.",
)
_REWARDS = Terms(
    Unit.PROMPTS,
    "loss of the policy, no measure of success",
    "One answer is sampled for each prompt, at `rlhf.temperature`. ± is the half-width of a 95 % interval. The "
    "published model was chosen among the evaluations by its reward and then measured once more with other "
    "random numbers, for the highest of several measurements owes something to luck.",
)
TERMS = {
    Objective.DPO: _DPO,
    Objective.KTO: _KTO,
    Objective.REWARD_MODEL: _SCORES,
    Objective.RLHF: _REWARDS,
}


def terms_of(objective: Objective) -> Terms:
    """The terms of an objective."""
    return TERMS.get(objective, _TOKENS)


def loss_table(objective: Objective, start: str, baseline: Measured | None, final: Measured | None) -> str:
    """The model before the training, which is called `start`, and after it; empty where nothing was measured."""
    found = [(name, one) for name, one in ((start, baseline), ("tuned model", final)) if one is not None]
    if not found:
        return ""
    unit = terms_of(objective).unit
    if unit is Unit.TOKENS:
        rows = [[name, number(one.loss), number(one.perplexity), str(one.tokens)] for name, one in found]
        return table(["held-out rows", "loss", "perplexity", "tokens"], rows)
    if unit is Unit.PAIRS:
        rows = [
            [name, number(one.loss), number(one.reward_margin), _share(one.reward_accuracy), str(one.tokens)]
            for name, one in found
        ]
        return table(["held-out pairs", "loss", "margin", "accuracy", "pairs"], rows)
    rows = [[name, number(one.loss), number(one.reward_margin), str(one.tokens)] for name, one in found]
    return table(["held-out answers", "loss", "margin", "answers"], rows)


def reward_table(start: str, history: History) -> str:
    """The policy before and after; empty where nothing was measured."""
    points = ((start, history.baseline_reward()), ("tuned model", history.final_reward))
    rows = [_reward_row(name, point) for name, point in points if point is not None]
    header = ["held-out prompts", "mean reward", "±", "tokens per answer", "cut off", "prompts"]
    return table(header, rows) if rows else ""


def _reward_row(name: str, point: RewardPoint) -> Sequence[str]:
    error = point.standard_error
    interval = number(None if error is None else NORMAL_95 * error, 2)
    length, cut = number(point.completion_length, 3), percent(point.clipped_share)
    return [name, number(point.reward), interval, length, cut, str(point.prompts)]


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)
