import logging
from dataclasses import replace

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.rewards import Reward
from finetune_trainer.data.rows import Message, Reference
from finetune_trainer.errors import TrainerError
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import ComputedRewards, length_reward


def answer(text: str = "", tokens: int = 0) -> Completion:
    return Completion([Message(role="user", content="?")], text, tokens, ended=True)


def referring(text: str, reference: Reference) -> Completion:
    return replace(answer(text), reference=reference)


def rewards(*blocks: dict[str, object]) -> ComputedRewards:
    return ComputedRewards([Reward.model_validate(block) for block in blocks])


@pytest.mark.parametrize(("tokens", "reward"), [(0, 0.0), (5, 0.5), (10, 1.0), (15, 0.5), (20, 0.0), (1000, 0.0)])
def test_the_length_reward_is_highest_at_its_target_and_falls_to_zero_on_both_sides(tokens: int, reward: float) -> None:
    assert length_reward(tokens, target=10) == pytest.approx(reward)


def test_a_pattern_is_found_anywhere_in_the_answer() -> None:
    score = rewards({"type": "Regex", "pattern": r"\bblue\b"})
    assert score([answer("The sky is blue."), answer("bluebell")]) == [1.0, 0.0]


def test_lookarounds_and_back_references_are_understood() -> None:
    score = rewards({"type": "Regex", "pattern": r"(?<!not )(\w+) \1"})
    assert score([answer("so so"), answer("so la")]) == [1.0, 0.0]


def test_rewards_are_added_up_by_weight() -> None:
    score = rewards(
        {"type": "Regex", "pattern": "sky", "weight": 2},
        {"type": "Length", "targetTokens": 4},
        {"type": "Regex", "pattern": "sorry", "weight": -3},
    )
    assert score([answer("sorry, the sky", tokens=2)]) == [pytest.approx(2 + 0.5 - 3)]


def test_an_answer_is_compared_with_the_reference_of_its_own_row() -> None:
    score = rewards({"type": "Answer", "answer": {"match": "Numeric", "extract": "LastNumber"}})
    answers = [referring("It is 4.", {"answer": "#### 4"}), referring("It is 4.", {"answer": "#### 5"})]
    assert score(answers) == [1.0, 0.0]


def test_an_answer_is_compared_with_the_named_column() -> None:
    score = rewards({"type": "Answer", "weight": 2, "answer": {"match": "Exact", "column": "solution"}})
    kept = Reference(answer="no", columns={"solution": ["yes", "ja"]})
    assert score([referring("ja", kept), referring("no", kept)]) == [2.0, 0.0]


def test_a_pattern_of_an_answer_that_takes_too_long_counts_as_wrong(caplog: pytest.LogCaptureFixture) -> None:
    score = rewards({"type": "Answer", "answer": {"match": "Exact", "extract": "Pattern", "pattern": "^((?:a|aa)+)$"}})
    with caplog.at_level(logging.WARNING):
        assert score([referring("a" * 200 + "b", {"answer": "a"}), referring("a", {"answer": "a"})]) == [0.0, 1.0]
    assert "rlhf.rewards[0]" in caplog.text


@pytest.mark.parametrize(
    "pattern", ["(open", "a{1,99999999999999999999}", "(?a)(?u)b", "(?R)", "((?R)){5}", r"\g<0>", "[z-a]"]
)
def test_a_pattern_that_cannot_be_read_is_refused_by_its_place(pattern: str) -> None:
    with pytest.raises(TrainerError, match=r"rlhf.rewards\[1\].pattern is not a regular expression") as raised:
        rewards({"type": "Length", "targetTokens": 1}, {"type": "Regex", "pattern": pattern})
    assert raised.value.code is ExitCode.INVALID_CONFIG


def test_a_deeply_nested_pattern_is_read() -> None:
    assert rewards({"type": "Regex", "pattern": "(" * 80 + "a" + ")" * 80})([answer("ba")]) == [1.0]


def test_a_pattern_that_backtracks_without_end_counts_as_not_found_and_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    score = rewards({"type": "Regex", "pattern": r"^(a|aa)+$"})
    with caplog.at_level(logging.WARNING):
        assert score([answer("a" * 200 + "b"), answer("aaa")]) == [0.0, 1.0]
    assert "rlhf.rewards[0]" in caplog.text
