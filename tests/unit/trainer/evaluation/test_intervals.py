"""Means over groups of rows, of which the intervals are compared with their own simulated spread."""

import random

import pytest

from finetune_trainer.evaluation.intervals import Estimate, estimate_mean, student_quantile


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [  # tables of Student's t
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 4, 2.776), (0.975, 9, 2.262), (0.975, 29, 2.045),
        (0.975, 511, 1.965), (0.9975, 1, 127.32), (0.9975, 4, 5.598), (0.9975, 9, 3.690), (0.9975, 29, 3.038),
        (0.9995, 3, 12.924), (0.99975, 4, 10.306),
    ],
)  # fmt: skip
def test_the_quantile_is_that_of_the_tables(probability: float, freedom: int, value: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(value, rel=2e-4)


@pytest.mark.parametrize("groups", [5, 30])
def test_the_interval_has_the_mean_in_nineteen_of_twenty_measurements(groups: int) -> None:
    rng, draws, missed = random.Random(1), 1500, 0
    for _ in range(draws):
        found = estimate_mean([(rng.gauss(200, 50), 100) for _ in range(groups)])
        assert found.half_width is not None
        missed += abs(found.mean - 2) > found.half_width
    assert 0.035 < missed / draws < 0.065


def test_a_group_with_almost_all_the_weight_is_about_one_observation() -> None:
    alike = estimate_mean([(1.0 + at % 2, 1) for at in range(20)])
    one = estimate_mean([(200.0, 200), *((1.0 + at % 2, 1) for at in range(20))])
    assert alike.half_width == pytest.approx(student_quantile(0.975, 19) * (alike.error or 0))
    assert one.half_width == pytest.approx(student_quantile(0.975, 1) * (one.error or 0))


def test_groups_without_weight_are_none() -> None:
    assert estimate_mean([(0.0, 0)] * 6) == Estimate(0.0)
    assert estimate_mean([(8.0, 4), *[(0.0, 0)] * 6]) == Estimate(2.0)
