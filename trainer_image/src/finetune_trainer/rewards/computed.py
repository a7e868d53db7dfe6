"""Rewards computed from an answer: its length, or whether a pattern is found in it; without torch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from finetune_api.objectives import Reward, RewardType
from finetune_trainer.data.rows import Message, Tools
from finetune_trainer.evaluation.expectations import PATTERN_SECONDS, compile_pattern, is_found

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt; `ended` is whether it has an end token, which `tokens` does not count."""

    prompt: list[Message]
    text: str
    tokens: int
    ended: bool
    tools: Tools = None


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
        return [sum(weight * part(completion) for weight, part in self._parts) for completion in completions]


class _Part:
    """One computed reward, between 0 and 1 before its weight."""

    def __init__(self, reward: Reward, name: str) -> None:
        self._name = name
        self._target = reward.target_tokens
        self._pattern = (
            compile_pattern(reward.pattern or "", f"{name}.pattern") if reward.type is RewardType.REGEX else None
        )
        self._overruns = 0

    def __call__(self, completion: Completion) -> float:
        if self._pattern is None:
            return length_reward(completion.tokens, self._target or 1)
        return float(self._is_found(self._pattern, completion.text))

    def _is_found(self, pattern: "regex.Pattern[str]", text: str) -> bool:
        try:
            return is_found(pattern, text)
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
            return False


def length_reward(tokens: int, target: int) -> float:
    """Return 1 at the target, falling linearly with the relative distance to 0."""
    return max(0.0, 1 - abs(tokens - target) / target)
