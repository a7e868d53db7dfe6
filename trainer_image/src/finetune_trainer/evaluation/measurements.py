"""Losses and rewards of steps and evaluations."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune_api.comparing.groups import Owners, group_batches
from finetune_api.comparing.intervals import estimate_mean, share_half_width


@dataclass(frozen=True, slots=True)
class Measured:
    """A held-out loss, with its standard error over batches of rows.

    The loss is the mean over `tokens` trained tokens, in nats; if an objective compares answers, over that many pairs
    or rows. The margin is the mean reward of the preferred answers minus that of the others.
    """

    loss: float
    tokens: int
    standard_error: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    half_width: float | None = None
    """Half the width of the loss's 95 % interval."""
    batches: tuple[tuple[float, int], ...] = ()
    """The mean loss and the weight of each batch, in the order of the rows."""
    owners: tuple[tuple[int, int], ...] = ()
    """The weight and the number of the prompt of each sample in this order; empty if all prompts differ."""

    def figures(self) -> dict[str, float]:
        """Return the measurements other than the loss, by their names in the status."""
        return _known(reward_margin=self.reward_margin, reward_accuracy=self.reward_accuracy)

    @property
    def perplexity(self) -> float:
        """`exp(loss)`, or infinity if that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf  # the largest float is e^709


def token_mean(batches: Sequence[tuple[float, int]], owners: Owners = ()) -> Measured:
    """Return the mean over all tokens, from each batch's mean loss and number of trained tokens.

    `owners` are the samples with their prompts, if some have the same one: these are not independent.
    """
    found = estimate_mean(_join(batches, owners))
    tokens = sum(count for _, count in batches)
    return Measured(
        found.mean, tokens, found.error, half_width=found.half_width, batches=tuple(batches), owners=tuple(owners)
    )


def _join(batches: Sequence[tuple[float, int]], owners: Owners) -> list[tuple[float, int]]:
    """Return the sum and the number of tokens of each group of batches."""
    joined = dict[int, tuple[float, int]]()
    for group, (mean, tokens) in zip(group_batches([count for _, count in batches], owners), batches, strict=True):
        total, count = joined.get(group, (0.0, 0))
        joined[group] = (total + mean * tokens, count + tokens)
    return list(joined.values())


@dataclass(frozen=True, slots=True)
class TrainPoint:
    """One optimiser step."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens_per_second: float
    seconds: float
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    reward: float | None = None
    kl: float | None = None
    completion_length: float | None = None
    clipped_share: float | None = None
    flat_share: float | None = None

    @property
    def changes_weights(self) -> bool:
        """Return whether the step changed a weight: one of rate 0, as the first of a warm-up, does not, nor one that
        FP16's loss scaling skipped, nor one of answers whose rewards are equal within each group."""
        return self.learning_rate > 0 and self.grad_norm is not None and self.flat_share != 1.0

    def figures(self) -> dict[str, float]:
        """Return the objective's measurements other than the loss, by their names in the status.

        Margin and accuracy are those of held-out rows there, and not those of the pairs that the step trained.
        """
        return _known(reward=self.reward, kl=self.kl)


def _known(**figures: float | None) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


@dataclass(frozen=True, slots=True)
class EvalPoint:
    """One evaluation; step 0 is the untrained model."""

    step: int
    measured: Measured

    @property
    def loss(self) -> float:
        """The held-out loss."""
        return self.measured.loss


class RewardPart(NamedTuple):
    """One computed reward before its weight, over the answers to the held-out prompts."""

    mean: float
    zero_share: float
    """Share (0 to 1) of the answers whose reward is 0."""


@dataclass(frozen=True, slots=True)
class RewardPoint:
    """The mean reward of one answer to each held-out prompt, with its standard error; step 0 is the untrained model."""

    step: int
    reward: float
    prompts: int
    completion_length: float
    clipped_share: float
    standard_error: float | None = None
    half_width: float | None = None
    """Half the width of the reward's 95 % interval."""
    rewards: tuple[float, ...] = ()
    """The reward of each prompt's answer, in the order of the prompts."""
    parts: tuple[RewardPart, ...] = ()
    """The job's computed rewards, in their order; none of a reward model."""
    owners: tuple[tuple[int, int], ...] = ()
    """A weight of 1 and the number of the prompt of each answer; empty if all prompts differ."""


def reward_mean(
    step: int,
    rewards: Sequence[float],
    *,
    completion_length: float,
    clipped_share: float,
    parts: Sequence[Sequence[float]] = (),
    owners: Owners = (),
) -> RewardPoint:
    """Return the point of these rewards; lengths are in tokens, a clipped answer reached the length limit, and `parts`
    are the computed rewards of each answer."""
    measured, seen = token_mean([(reward, 1) for reward in rewards], owners), sorted(set(rewards))
    half_width = measured.half_width
    if half_width is not None and len(seen) <= 2:  # as those of 0 and 1, whose spread may be none
        apart = seen[-1] - seen[0] or abs(seen[0]) or 1.0
        prompts = len({prompt for _, prompt in owners}) or len(rewards)
        half_width = apart * share_half_width((measured.loss - seen[0]) / apart, prompts)
    found = tuple(
        RewardPart(statistics.fmean(one), sum(value == 0 for value in one) / len(one))
        for one in zip(*parts, strict=True)
    )
    return RewardPoint(
        step,
        measured.loss,
        len(rewards),
        completion_length,
        clipped_share,
        measured.standard_error,
        half_width,
        tuple(rewards),
        found,
        tuple(owners),
    )
