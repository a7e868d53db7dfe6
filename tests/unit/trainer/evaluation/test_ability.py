"""What a model has forgotten: the paired difference, its words, and the gate."""

import random

import pytest

from finetune_api.evaluation import Gate
from finetune_trainer.evaluation.ability import Ability, ability_status, describe_ability, find_forgotten


def answers(right: int, of: int = 100) -> list[bool]:
    return [at < right for at in range(of)]


def test_a_measurable_loss_is_forgotten_and_its_sentence_has_the_interval() -> None:
    ability = Ability(answers(80), answers(60))
    assert ability.has_forgotten
    assert (ability.lost, ability.gained) == (20, 0)
    found = describe_ability(ability)
    assert found.startswith("general ability lost: 80.0 % → 60.0 % of 100 questions, ")
    assert found.endswith(", -20.0 percentage points (95 % interval -27.5 to -11.7)")


def test_a_small_loss_is_within_the_interval() -> None:
    ability = Ability(answers(60), [*answers(59, 99), True])
    assert not ability.has_forgotten
    assert describe_ability(ability).startswith(
        "general ability 60.0 % → 60.0 % of 100 questions, +0.0 percentage points (95 % interval -"
    )


@pytest.mark.parametrize(
    ("lost", "gained", "is_forgotten"),
    [(4, 0, False), (5, 0, False), (6, 0, True), (8, 2, False), (10, 1, True), (0, 6, False)],
)
def test_a_loss_is_forgotten_only_if_chance_rarely_makes_it(lost: int, gained: int, *, is_forgotten: bool) -> None:
    """By the exact test of McNemar: 5 lost and none gained have p = 0.0625, 6 have 0.031."""
    same = [True] * (200 - lost - gained)
    ability = Ability([*same, *[True] * lost, *[False] * gained], [*same, *[False] * lost, *[True] * gained])
    found = ability_status(ability)
    assert found is not None
    assert (ability.has_forgotten, found.has_forgotten) == (is_forgotten, is_forgotten)
    assert ("lost: " in describe_ability(ability)) is is_forgotten


def test_a_gain_is_not_forgotten() -> None:
    ability = Ability(answers(40), answers(60))
    assert not ability.has_forgotten
    assert (ability.lost, ability.gained) == (0, 20)


def test_the_status_has_percentages_with_the_interval() -> None:
    found = ability_status(Ability(answers(80), answers(60)))
    assert found is not None
    assert found.difference_low_points is not None
    assert found.difference_high_points is not None
    assert (found.questions, found.before_percent, found.after_percent) == (100, 80, 60)
    assert found.difference_points == pytest.approx(-20)
    assert found.difference_low_points < -20 < found.difference_high_points < 0
    assert found.has_forgotten


def test_few_questions_have_no_interval_and_are_not_called_forgotten() -> None:
    ability = Ability([True] * 4, [False] * 4)
    found = ability_status(ability)
    assert found is not None
    assert (found.difference_points, found.difference_high_points, found.has_forgotten) == (-100, None, None)
    assert not ability.has_forgotten


def test_answers_to_other_questions_are_not_compared() -> None:
    ability = Ability(answers(3, 10), answers(3, 11))
    assert ability_status(ability) is None
    assert ability_status(None) is None
    assert "not compared" in describe_ability(ability)


@pytest.mark.parametrize(
    ("after", "limit", "is_met"), [(60, 20.0, True), (60, 19.9, False), (90, 0.0, True), (79, 0.0, False)]
)
def test_the_gate_compares_the_difference_with_its_limit(after: int, limit: float, is_met: bool) -> None:
    missed = find_forgotten(Gate(max_forgotten=limit), Ability(answers(80), answers(after)))
    assert missed == [] if is_met else f"more than maxForgotten {limit:g}" in missed[0]


def test_a_gate_without_a_measurement_is_not_met_for_the_reason() -> None:
    gate = Gate(max_forgotten=1)
    assert find_forgotten(gate, None, "the base does not fit")[0].endswith("maxForgotten 1: the base does not fit")
    assert "were not asked" in find_forgotten(gate, None)[0]
    assert find_forgotten(Gate(must_improve=True), None) == []
    assert find_forgotten(None, None) == []


def test_an_unchanged_model_is_called_forgetful_in_few_of_many_trials() -> None:
    chance = random.Random(5)
    found = 0
    for _ in range(400):
        right = [chance.random() < 0.6 for _ in range(200)]
        flipped = [chance.random() < 0.15 for _ in range(200)]
        again = [chance.random() < 0.6 if flip else one for one, flip in zip(right, flipped, strict=True)]
        found += Ability(right, again).has_forgotten
    assert found <= 20, "2.5 % are expected, and 5 % are allowed"
