import math

import pytest

from finetune_trainer.evaluation.measurements import Measured, TrainPoint, reward_mean, token_mean


def test_the_loss_is_weighted_by_token_and_not_by_batch() -> None:
    assert token_mean([(1.0, 10), (4.0, 90)]).loss == pytest.approx(3.7)


def test_equal_batches_have_no_standard_error() -> None:
    assert token_mean([(2.0, 10), (2.0, 30)]).standard_error == 0.0


def test_the_standard_error_is_that_of_a_mean_over_batches() -> None:
    assert token_mean([(1.0, 10), (2.0, 10), (3.0, 10)]).standard_error == pytest.approx(1 / math.sqrt(3))


def test_batches_of_one_prompt_are_one_observation_of_the_standard_error() -> None:
    pieces = [(1.0, 10), (3.0, 5), (1.0, 10), (3.0, 15)]
    prompts = [(1.0, 20), (3.0, 20)]
    owners = ((10, 0), (5, 1), (10, 0), (15, 1))
    assert token_mean(pieces, owners).standard_error == token_mean(prompts).standard_error
    assert token_mean(pieces, owners).owners == owners
    assert token_mean(pieces, ((10, 0), (5, 0), (10, 0), (15, 0))).standard_error is None


def test_the_standard_error_of_rewards_is_that_over_prompts() -> None:
    lengths = {"completion_length": 4.0, "clipped_share": 0.0}
    owners = ((1, 0), (1, 0), (1, 1), (1, 1))
    found = reward_mean(0, [1.0, 2.0, 3.0, 4.0], owners=owners, **lengths)
    assert found.standard_error == pytest.approx(1.0)
    assert reward_mean(0, [1.0, 2.0, 3.0, 4.0], **lengths).standard_error == pytest.approx(math.sqrt(5 / 12))


def test_one_batch_has_no_standard_error() -> None:
    assert token_mean([(2.0, 10)]).standard_error is None


def test_no_tokens_do_not_divide_by_zero() -> None:
    assert token_mean([]) == Measured(0.0, 0)


def test_the_perplexity_of_a_hopeless_model_is_infinite() -> None:
    assert Measured(1e4, 1).perplexity == math.inf


def test_margin_and_accuracy_of_the_trained_pairs_are_not_those_of_held_out_rows_in_the_status() -> None:
    step = TrainPoint(1, 0.5, 0.1, 1e-4, 1.0, 50.0, 0.1, reward_margin=3.0, reward_accuracy=1.0, kl=0.1)
    assert step.figures() == {"kl": 0.1}
    held_out = Measured(0.7, 10, reward_margin=-0.2, reward_accuracy=0.4)
    assert held_out.figures() == {"reward_margin": -0.2, "reward_accuracy": 0.4}
