"""Rewards computed from an answer: its length, a pattern in it, or the reference of its row; without torch."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_api.objectives import Reward, RewardType
from finetune_trainer.data.rows import Message, Reference, Tools
from finetune_trainer.evaluation.expectations import PATTERN_SECONDS, compile_pattern, is_found
from finetune_trainer.rewards.matching import Matcher
from finetune_trainer.rewards.references import read_references

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt; `ended` is whether it has an end token, which `tokens` does not count."""

    prompt: list[Message]
    text: str
    tokens: int
    ended: bool
    tools: Tools = None
    reference: Reference | None = None


class Scorer(Protocol):
    """Scores answers."""

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Return one reward per answer, in their order."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The scorer of answers, and the token that ends an answer."""

    scorer: Scorer
    stop_id: int


class ComputedRewards:
    """The weighted sum of the job's computed rewards; raises InvalidConfig for an invalid pattern."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._parts = [(reward.weight, _Part(reward, f"rlhf.rewards[{at}]")) for at, reward in enumerate(rewards)]

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Return one reward per answer."""
        return self.weigh(self.score_parts(completions))

    def score_parts(self, completions: Sequence[Completion]) -> list[tuple[float, ...]]:
        """Return each reward of each answer before its weight, in the order of the job's rewards."""
        return [tuple(part(completion) for _, part in self._parts) for completion in completions]

    def weigh(self, scored: Sequence[tuple[float, ...]]) -> list[float]:
        """Return the weighted sum of each answer's rewards."""
        weights = [weight for weight, _ in self._parts]
        return [sum(weight * part for weight, part in zip(weights, parts, strict=True)) for parts in scored]


class _Part:
    """One computed reward, between 0 and 1 before its weight."""

    def __init__(self, reward: Reward, name: str) -> None:
        self._name = name
        self._score = _build_score(reward, name)
        self._overruns = 0

    def __call__(self, completion: Completion) -> float:
        try:
            return self._score(completion)
        except TimeoutError:
            self._overruns += 1
            if self._overruns & (self._overruns - 1) == 0:  # logged at 1, 2, 4, 8, … overruns
                logger.warning(
                    "%s: the pattern took longer than %s s in %s answers so far, which count as no match: "
                    "avoid repetitions of repetitions such as (a+)+",
                    self._name,
                    PATTERN_SECONDS,
                    self._overruns,
                )
            return 0.0


def _build_score(reward: Reward, name: str) -> Callable[[Completion], float]:
    """Return the function that scores an answer; it raises TimeoutError if a pattern takes too long."""
    if reward.type is RewardType.LENGTH:
        target = reward.target_tokens or 1
        return lambda completion: length_reward(completion.tokens, target)
    if reward.type is RewardType.REGEX or reward.answer is None:
        pattern = compile_pattern(reward.pattern or "", f"{name}.pattern")
        return lambda completion: float(is_found(pattern, completion.text))
    settings, matcher = reward.answer, Matcher(reward.answer, f"{name}.answer")
    return lambda completion: float(
        matcher.is_correct(completion.text, read_references(completion.reference or {}, settings))
    )


def length_reward(tokens: int, target: int) -> float:
    """Return 1 at the target, falling linearly with the relative distance to 0."""
    return max(0.0, 1 - abs(tokens - target) / target)
