"""The policy's sampled answers and their rewards; without torch."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from finetune_api.defaults import rollouts_share
from finetune_api.handoff import ExitCode
from finetune_api.objectives import Rlhf
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import ComputedRewards, Scorer
from finetune_trainer.tokenization.samples import EncodedPrompt

ENGINE_VARIABLES = {
    "VLLM_CONFIGURE_LOGGING": "0",  # standard output belongs to the reporter
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # as in the rest of the process
}


def require_engine(rlhf: Rlhf | None) -> None:
    """Refuse engine VLLM in an image of the trainer without vLLM; that of preflight alone has neither, nor PyTorch."""
    if rollouts_share(rlhf) is not None and find_spec("torch") and not find_spec("vllm"):
        raise InvalidConfig(
            "rlhf.rollouts.engine VLLM: this image has no vLLM: set trainer.image to one that is built with "
            "--build-arg PACKAGES=trainer-vllm, or set engine Transformers"
        )


def set_engine_variables(scratch: Path) -> None:
    """Set the variables that vLLM reads at its import; those of the pod's environment stay."""
    for name, value in (ENGINE_VARIABLES | {"VLLM_CACHE_ROOT": str(scratch / "vllm")}).items():
        os.environ.setdefault(name, value)


class Decoder(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of these ids."""


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer with its reward; `tokens` does not count the end token, `parts` are computed rewards before their
    weights."""

    text: str
    tokens: int
    ended: bool
    reward: float
    parts: tuple[float, ...] = ()


class Rollouts:
    """Turns sampled ids into scored answers; counts the groups that the model learns from."""

    def __init__(
        self,
        samples: Sequence[EncodedPrompt],
        scorer: Scorer,
        decoder: Decoder,
        stop_ids: Collection[int],
        group: int,
    ) -> None:
        self.groups = 0
        self.groups_with_spread = 0
        self.flat_share = 1.0
        """Share of the last step's groups that nothing is learnt from."""
        self._samples = samples
        self._scorer = scorer
        self._decoder = decoder
        self._stop_ids = stop_ids
        self._group = group

    def reward(self, *, completion_ids: Sequence[list[int]], row: Sequence[int], **_: Any) -> list[float]:
        """Score answers, as TRL's reward function; `row` is each answer's training row."""
        return [one.reward for one in self.score_answers([self._samples[number] for number in row], completion_ids)]

    def is_cut(self, ids: Sequence[int]) -> bool:
        """Return whether an answer reached the maximum length before its end."""
        return not ids or ids[-1] not in self._stop_ids

    def count_groups(self, rewards: Sequence[float], is_left_out: Sequence[bool] | None = None) -> None:
        """Count the groups of a step's rewards, those of all processes, which may share a group."""
        answers = list(zip(rewards, is_left_out or [False] * len(rewards), strict=True))
        groups = [answers[start : start + self._group] for start in range(0, len(answers), self._group)]
        with_spread = sum(map(_has_spread, groups))
        self.groups += len(groups)
        self.groups_with_spread += with_spread
        self.flat_share = 1 - with_spread / len(groups)

    def score_answers(self, samples: Sequence[EncodedPrompt], answers: Sequence[list[int]]) -> list[ScoredAnswer]:
        """Return the answers to these prompts with their rewards; a reward that is not finite ends the run."""
        completions = [self._completion(*pair) for pair in zip(samples, answers, strict=True)]
        rewards, parts = self._score(completions)
        if not all(map(math.isfinite, rewards)):
            raise TrainerError(ExitCode.DIVERGED, "an answer's reward is not finite: check the reward model")
        return [
            ScoredAnswer(one.text, one.tokens, one.ended, reward, of_reward)
            for one, reward, of_reward in zip(completions, rewards, parts, strict=True)
        ]

    def _score(self, completions: Sequence[Completion]) -> tuple[list[float], list[tuple[float, ...]]]:
        """Return each answer's reward, and the computed rewards that it is the sum of."""
        if not isinstance(self._scorer, ComputedRewards):
            return self._scorer(completions), [()] * len(completions)
        parts = self._scorer.score_parts(completions)
        return self._scorer.weigh(parts), parts

    def _completion(self, sample: EncodedPrompt, ids: list[int]) -> Completion:
        ended = not self.is_cut(ids)
        text = self._decoder.decode(ids, skip_special_tokens=True)
        return Completion(sample.messages, text, len(ids) - ended, ended, sample.tools, sample.reference)


def _has_spread(group: Sequence[tuple[float, bool]]) -> bool:
    """Return whether an answer that is not left out of the loss has another reward than its group's mean."""
    rewards = [reward for reward, _ in group]
    mean = math.fsum(rewards) / len(rewards)
    differs = max(rewards) > min(rewards)
    return differs and any(not is_left_out and not math.isclose(reward, mean) for reward, is_left_out in group)
