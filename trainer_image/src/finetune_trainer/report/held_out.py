"""Figures on held-out rows in the terms of the objective: tokens, pairs, judged answers or rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from finetune_api.comparing.comparison import compare
from finetune_api.evaluation import EvaluationMetric
from finetune_api.objectives import Dpo, LossType, Objective
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.evaluation.kept_steps import KeptStep, describe_steps
from finetune_trainer.evaluation.measurements import Measured, RewardPoint
from finetune_trainer.evaluation.run_record import RunRecord
from finetune_trainer.report.text import NOTHING, code, number, percent, table


class Unit(Enum):
    """The unit over which an objective's figures are means; the value is its plural."""

    TOKENS = "tokens"
    PAIRS = "pairs"
    ANSWERS = "answers"
    PROMPTS = "prompts"


@dataclass(frozen=True, slots=True)
class Terms:
    """The names of an objective's figures; `loss` is the title of its loss, with the unit."""

    unit: Unit
    loss: str
    legend: str
    has_perplexity: bool = False
    """Whether the loss is the negative logarithm of a probability."""


_BY_CHANCE = "Random guessing has a loss of 0.693."
_LOGISTIC = frozenset({LossType.SIGMOID, LossType.ROBUST, LossType.SIGMOID_NORM})
"""The losses of DPO that are -log(1/2) for a margin of zero."""
_TOKENS = Terms(
    Unit.TOKENS,
    "loss, nats per trained token",
    "Losses are nats per trained token, weighted by token. Perplexity is the exponential of the loss.",
    has_perplexity=True,
)
_DPO = Terms(
    Unit.PAIRS,
    "loss per pair",
    "Each pair has the same weight. A reward is `dpo.beta` times the difference in log-probability from the reference. "
    "The margin is the chosen answer's reward minus the rejected one's; the accuracy is the share of pairs with a "
    "margin above zero.",
)
_KTO = Terms(
    Unit.ANSWERS,
    "loss per answer",
    "Each judged answer has the same weight. A reward is `kto.beta` times the difference in log-probability from the "
    "reference; the margin is the mean of the desirable answers minus that of the undesirable ones. Before training "
    "the loss is half of the answers' weight.",
)
_SCORES = Terms(
    Unit.PAIRS,
    "loss per pair",
    "Each pair has the same weight. The margin is the chosen answer's score minus the rejected one's; the accuracy is "
    f"the share of pairs with a margin above zero. {_BY_CHANCE}",
)
_REWARDS = Terms(
    Unit.PROMPTS,
    "loss of the policy, not a measure of success",
    "One answer is sampled for each prompt, at `rlhf.temperature`. ± is the half-width of a 95 % interval. The "
    "published model is the one with the highest reward in an evaluation. It was measured again with other random "
    "numbers, because the highest of several measurements is partly luck.",
)
_DIVERGENCE = Terms(
    Unit.TOKENS,
    "divergence from the teacher, nats per token",
    "The loss is the divergence of the model's probabilities from the teacher's, by `distillation.beta` and at "
    "`distillation.temperature`, in nats per token of the teacher's answers to these prompts, which it wrote once, "
    "before the training: 0 is the teacher itself. The training loss is that on the model's own answers.",
)
TERMS = {
    Objective.DPO: _DPO,
    Objective.KTO: _KTO,
    Objective.REWARD_MODEL: _SCORES,
    Objective.RLHF: _REWARDS,
    Objective.DISTILLATION: _DIVERGENCE,
}


def find_terms(objective: Objective) -> Terms:
    """Return the terms of an objective."""
    return TERMS.get(objective, _TOKENS)


def describe_terms(spec: FineTuneJobSpec) -> str:
    """Return the legend of a job's figures."""
    legend, dpo = find_terms(spec.objective).legend, spec.dpo or Dpo()
    is_by_chance = dpo.loss_type in _LOGISTIC and not dpo.sft_weight
    return f"{legend} {_BY_CHANCE}" if spec.objective is Objective.DPO and is_by_chance else legend


def held_out_table(record: RunRecord) -> str:
    """Return a table of the model before and after the training, as served first; empty if nothing was measured."""
    named = _named(record)
    points = [(name, one) for name, one in named if isinstance(one, RewardPoint)]
    if points:
        header = ["held-out prompts", "mean reward", "±", "tokens per answer", "cut off", "prompts"]
        return table(header, [_reward_row(name, point) for name, point in points])
    found = [(name, one) for name, one in named if isinstance(one, Measured)]
    return _loss_table(find_terms(record.config.spec.objective), found) if found else ""


def kept_table(record: RunRecord) -> str:
    """Return a table of the result's adapter and of the kept ones, the best first; empty if none is kept."""
    if not record.kept:
        return ""
    result = record.best_step if record.best_step is not None else record.last_step
    name = "held-out reward" if record.is_rewarded else "held-out loss"
    rows = []
    for one in [*describe_steps([result], record.history), *record.kept]:
        folder = "`adapter/`, the result" if one.step == result else code(f"{one.folder}/")
        figure = one.reward if record.is_rewarded else one.loss
        rows.append([str(one.step), number(one.epoch, 3), number(figure), _from_result(record, result, one), folder])
    return table(["step", "epochs", name, "from the result", "folder"], rows)


def _from_result(record: RunRecord, result: int, kept: KeptStep) -> str:
    """Return by how much a kept step's loss differs from that of the result, which is the best of the evaluations."""
    losses = {point.step: point.measured.batches for point in record.history.evaluations}
    if kept.step == result or not losses.keys() >= {result, kept.step}:
        return NOTHING
    owners = record.final.owners if record.final else ()
    batches = losses[result], losses[kept.step]
    found = compare(EvaluationMetric.LOSS, *batches, owners=owners, earlier=record.choices)
    return found.change_with_interval if found else NOTHING


def reward_parts_table(record: RunRecord) -> str:
    """Return a table of each computed reward before and after the training, without its weight; empty if none was
    measured."""
    named = zip((record.start, "tuned model"), record.judged, strict=True)
    points = {name: one.parts for name, one in named if isinstance(one, RewardPoint) and one.parts}
    if not points:
        return ""
    header = ["reward", "weight", *(f"mean, {name}" for name in points), *(f"at zero, {name}" for name in points)]
    rows = []
    for at, reward in enumerate(record.config.spec.rewards):
        parts = [found[at] for found in points.values()]
        means, shares = [number(one.mean) for one in parts], [percent(one.zero_share) for one in parts]
        rows.append([f"{at + 1}. {reward.type.value}", number(reward.weight), *means, *shares])
    return table(header, rows)


def _named(record: RunRecord) -> list[tuple[str, Measured | RewardPoint | None]]:
    """Return each measured model by its name."""
    in_training: tuple[Measured | RewardPoint | None, ...] = (record.baseline, record.final)
    if record.is_rewarded:
        in_training = (record.history.baseline_reward(), record.history.final_reward)
    names = (record.start, "tuned model")
    if record.served is None:
        return list(zip(names, in_training, strict=True))
    served = [(f"{name}, as served (16-bit base)", one) for name, one in zip(names, record.judged, strict=True)]
    own = [(f"{name}, in training (4-bit base)", one) for name, one in zip(names, in_training, strict=True)]
    return [*served, *own]


def _loss_table(terms: Terms, found: Sequence[tuple[str, Measured]]) -> str:
    unit = terms.unit
    if unit is Unit.TOKENS and not terms.has_perplexity:
        rows = [[name, number(one.loss), str(one.tokens)] for name, one in found]
        return table(["held-out rows", "divergence", "tokens"], rows)
    if unit is Unit.TOKENS:
        rows = [[name, number(one.loss), number(one.perplexity), str(one.tokens)] for name, one in found]
        return table(["held-out rows", "loss", "perplexity", "tokens"], rows)
    if unit is Unit.PAIRS:
        rows = [
            [name, number(one.loss), number(one.reward_margin), percent(one.reward_accuracy), str(one.tokens)]
            for name, one in found
        ]
        return table(["held-out pairs", "loss", "margin", "accuracy", "pairs"], rows)
    rows = [[name, number(one.loss), number(one.reward_margin), str(one.tokens)] for name, one in found]
    return table(["held-out answers", "loss", "margin", "answers"], rows)


def _reward_row(name: str, point: RewardPoint) -> Sequence[str]:
    length, cut = number(point.completion_length, 3), percent(point.clipped_share)
    return [name, number(point.reward), number(point.half_width, 2), length, cut, str(point.prompts)]
