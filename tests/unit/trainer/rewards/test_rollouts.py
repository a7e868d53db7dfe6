"""Sampled ids become answers with rewards: what is counted, what is shown to the scorer, and what ends the run."""

import math
from collections.abc import Sequence

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.objectives import Rlhf, RolloutEngine
from finetune_api.objectives import Rollouts as RolloutsBlock
from finetune_api.rewards import Reward
from finetune_trainer.data.rows import Message
from finetune_trainer.errors import TrainerError
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import ComputedRewards
from finetune_trainer.rewards.rollouts import Rollouts, require_engine
from finetune_trainer.tokenization.samples import EncodedPrompt

END, PAD = 0, 1
SAMPLES = [EncodedPrompt([5], [Message(role="user", content=text)]) for text in ("one", "two")]


class Letters:
    """Decodes 97 to "a" and so on; 0 and 1 are special."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(token) for token in token_ids if token > 1 or not skip_special_tokens)


def rollouts(scorer: object, group: int = 2) -> Rollouts:
    return Rollouts(SAMPLES, scorer, Letters(), {END}, group)  # type: ignore[arg-type]


def by_length(completions: Sequence[Completion]) -> list[float]:
    return [float(one.tokens) for one in completions]


def test_the_token_that_ends_an_answer_is_neither_counted_nor_shown() -> None:
    seen: list[Completion] = []

    def scorer(completions: Sequence[Completion]) -> list[float]:
        seen.extend(completions)
        return by_length(completions)

    rollouts(scorer).score_answers(SAMPLES, [[97, 98, END], [99, 100]])
    assert [(one.text, one.tokens, one.ended) for one in seen] == [("ab", 2, True), ("cd", 2, False)]
    assert [one.prompt[0]["content"] for one in seen] == ["one", "two"]


def test_an_empty_answer_is_one_of_no_tokens() -> None:
    (written,) = rollouts(by_length).score_answers(SAMPLES[:1], [[END]])
    assert (written.text, written.tokens, written.ended, written.reward) == ("", 0, True, 0.0)


def test_each_answer_is_judged_with_the_prompt_of_its_row() -> None:
    prompts: list[str] = []

    def scorer(completions: Sequence[Completion]) -> list[float]:
        prompts.extend(str(one.prompt[0]["content"]) for one in completions)
        return by_length(completions)

    rollouts(scorer).reward(completion_ids=[[97], [98], [99], [100]], row=[1, 1, 0, 0])
    assert prompts == ["two", "two", "one", "one"]


def test_groups_whose_answers_differ_in_reward_are_counted() -> None:
    policy = rollouts(by_length)
    policy.count_groups(
        policy.reward(completion_ids=[[97, END], [98, END], [97, END], [97, 98, END]], row=[0, 0, 1, 1])
    )
    assert (policy.groups, policy.groups_with_spread) == (2, 1)


@pytest.mark.parametrize(
    ("rewards", "is_left_out", "learns"),
    [
        ([0.0, 1.0], [False, False], True),
        ([0.0, 1.0], [True, False], True),
        ([0.0, 1.0], [True, True], False),
        ([0.3, 0.3], [True, False], False),
        ([0.1, 0.2, 0.3], [True, False, True], False),
        ([0.1, 0.2, 0.3], [True, False, False], True),
    ],
)
def test_a_group_teaches_if_an_answer_in_the_loss_differs_from_its_mean(
    rewards: list[float], is_left_out: list[bool], learns: bool
) -> None:
    policy = rollouts(by_length, group=len(rewards))
    policy.count_groups(rewards, is_left_out)
    assert (policy.groups, policy.groups_with_spread, policy.flat_share) == (1, learns, 1 - learns)


def test_computed_rewards_are_kept_apart_before_their_weights() -> None:
    scorer = ComputedRewards(
        [
            Reward.model_validate({"type": "Regex", "pattern": "a", "weight": 3}),
            Reward.model_validate({"type": "Length", "targetTokens": 2, "weight": 0.5}),
        ]
    )
    first, second = rollouts(scorer).score_answers(SAMPLES, [[97, END], [98, 98, END]])
    assert (first.parts, first.reward) == ((1.0, 0.5), 3.25)
    assert (second.parts, second.reward) == ((0.0, 1.0), 0.5)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_ends_the_run(reward: float) -> None:
    with pytest.raises(TrainerError, match="reward is not finite") as caught:
        rollouts(lambda completions: [reward] * len(completions)).score_answers(SAMPLES[:1], [[97]])
    assert caught.value.code is ExitCode.DIVERGED


def test_vllm_is_refused_in_an_image_of_the_trainer_without_it() -> None:
    """As in this environment, which has PyTorch and no vLLM."""
    length = Reward.model_validate({"type": "Length", "targetTokens": 8})
    require_engine(None)
    require_engine(Rlhf(rewards=[length]))
    with pytest.raises(TrainerError, match=r"engine VLLM: this image has no vLLM: set trainer\.image to one") as caught:
        require_engine(Rlhf(rewards=[length], rollouts=RolloutsBlock(engine=RolloutEngine.VLLM)))
    assert caught.value.code is ExitCode.INVALID_CONFIG
