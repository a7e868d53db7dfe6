"""What to do next after learning from rewards, by stated rules."""

import statistics
from collections.abc import Callable, Sequence

from finetune_trainer.report.record import History, TrainPoint

Advice = tuple[str, str]
"""What to do, and the figures that it follows from."""

FLAT = 0.5
CUT = 0.2
FAR = 0.5
"""Nats per token from the reference: from there on, what is earned has often little to do with a good answer."""


def no_gain(history: History) -> Advice | None:
    """The tuned policy earns no more than the base."""
    before, after = history.baseline_reward(), history.final_reward
    if before is None or after is None or after.reward > before.reward:
        return None
    return (
        "Do not use or publish this result: the model earned as much on held-out prompts before the training.",
        f"mean reward {after.reward:.4g} after training, {before.reward:.4g} before it",
    )


def flat_groups(history: History) -> Advice | None:
    """Most groups of answers teach nothing."""
    share = _last_quarter(history, lambda point: point.flat_share)
    if share is None or share <= FLAT:
        return None
    return (
        "Raise rlhf.temperature or rlhf.numGenerations, or choose a finer reward: most groups teach nothing.",
        f"in {100 * share:.0f} % of the last quarter's groups all answers earned the same",
    )


def cut_answers(history: History) -> Advice | None:
    """Many answers do not end by themselves."""
    share = _last_quarter(history, lambda point: point.clipped_share)
    if share is None or share <= CUT:
        return None
    return (
        "Raise rlhf.maxCompletionLength, or reward shorter answers: many are cut off.",
        f"{100 * share:.0f} % of the last quarter's answers reached the limit",
    )


def far_from_reference(history: History) -> Advice | None:
    """The policy has left what the reference would say."""
    divergence = _last_quarter(history, lambda point: point.kl)
    if divergence is None or divergence <= FAR:
        return None
    return (
        "Read the sampled answers, and raise rlhf.beta or train fewer steps if they only please the reward.",
        f"{divergence:.3g} nats per token from the reference in the last quarter, above {FAR:g}",
    )


def _last_quarter(history: History, figure_of: Callable[[TrainPoint], float | None]) -> float | None:
    last = history.train[-max(1, len(history.train) // 4) :]
    found = [value for value in map(figure_of, last) if value is not None]
    return statistics.fmean(found) if found else None


RULES: Sequence[Callable[[History], Advice | None]] = (no_gain, flat_groups, cut_answers, far_from_reference)
