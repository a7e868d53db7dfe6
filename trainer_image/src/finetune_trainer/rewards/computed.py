"""Rewards that need no model: of an answer's text, of its row's reference, or from a server; without torch."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_api.handoff import REWARDS_DIR
from finetune_api.rewards import Reward, RewardType
from finetune_trainer.evaluation.expectations import PATTERN_SECONDS, compile_pattern, is_found
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.matching import Matcher
from finetune_trainer.rewards.references import read_references
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)


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

    def __init__(
        self, rewards: Sequence[Reward], stop: StopFlag | None = None, on_work: Callable[[], None] = lambda: None
    ) -> None:
        self._parts: list[tuple[float, Scorer]] = [
            (reward.weight, _build_part(reward, at, stop or StopFlag(), on_work)) for at, reward in enumerate(rewards)
        ]

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        """Return one reward per answer."""
        return self.weigh(self.score_parts(completions))

    def score_parts(self, completions: Sequence[Completion]) -> list[tuple[float, ...]]:
        """Return each reward of each answer before its weight, in the order of the job's rewards."""
        return list(zip(*(part(completions) for _, part in self._parts), strict=True))

    def ask_services(self, completions: Sequence[Completion]) -> list[list[float]]:
        """Return the rewards of each server for the answers."""
        return [part(completions) for _, part in self._parts if not isinstance(part, _Part)]

    def weigh(self, scored: Sequence[tuple[float, ...]]) -> list[float]:
        """Return the weighted sum of each answer's rewards."""
        weights = [weight for weight, _ in self._parts]
        return [sum(weight * part for weight, part in zip(weights, parts, strict=True)) for parts in scored]


def _build_part(reward: Reward, position: int, stop: StopFlag, on_work: Callable[[], None]) -> Scorer:
    name = f"rlhf.rewards[{position}]"
    if reward.service is None:
        return _Part(reward, name)
    from finetune_trainer.rewards.service import Grader  # noqa: PLC0415 - few jobs have one

    return Grader(reward.service, name, Path(REWARDS_DIR) / str(position), stop=stop, on_work=on_work)


class _Part:
    """One reward that is computed here, between 0 and 1 before its weight."""

    def __init__(self, reward: Reward, name: str) -> None:
        self._name = name
        self._score = _build_score(reward, name)
        self._overruns = 0

    def __call__(self, completions: Sequence[Completion]) -> list[float]:
        return [self._score_one(completion) for completion in completions]

    def _score_one(self, completion: Completion) -> float:
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
    return lambda completion: matcher.score(completion.text, read_references(completion.reference or {}, settings))


def length_reward(tokens: int, target: int) -> float:
    """Return 1 at the target, falling linearly with the relative distance to 0."""
    return max(0.0, 1 - abs(tokens - target) / target)
