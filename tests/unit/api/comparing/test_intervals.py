"""Means over groups of rows, of which the intervals are compared with their own simulated spread."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.comparing.intervals import (
    Estimate,
    estimate_mean,
    paired_interval,
    share_half_width,
    student_quantile,
)


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
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 2 <= found.high
    assert 0.025 < missed / draws < 0.06


def test_a_group_with_almost_all_the_weight_is_about_one_observation() -> None:
    alike = estimate_mean([(1.0 + at % 2, 1) for at in range(20)])
    one = estimate_mean([(200.0, 200), *((1.0 + at % 2, 1) for at in range(20))])
    assert alike.half_width == pytest.approx(student_quantile(0.975, 19) * (alike.error or 0))
    assert (one.half_width or 0) > student_quantile(0.975, 1) * (one.error or 0)


@pytest.mark.parametrize(
    ("shape", "groups", "most"),
    [
        ("log-normal", 5, 0.13), ("log-normal", 20, 0.09), ("log-normal", 100, 0.06),
        ("exponential", 10, 0.07), ("mostly unchanged", 50, 0.03), ("mostly unchanged", 100, 0.045),
        ("heavy tails", 10, 0.05), ("heavy tails", 100, 0.055),
    ],
)  # fmt: skip
def test_skewed_changes_are_missed_in_few_of_many_measurements(shape: str, groups: int, most: float) -> None:
    """Student's t alone misses 19, 14, 9, 10, 12, 9, 5 and 5 % of them."""
    draws, rng, missed = 1500, random.Random(1), 0
    draw = {
        "log-normal": lambda: rng.lognormvariate(0, 1) - math.exp(0.5),
        "exponential": lambda: rng.expovariate(1) - 1,
        "mostly unchanged": lambda: (rng.expovariate(1) if rng.random() < 0.2 else 0.0) - 0.2,
        "heavy tails": lambda: rng.gauss(0, 1) / math.sqrt(rng.gammavariate(1.5, 2 / 3)),
    }[shape]
    for _ in range(draws):
        found = estimate_mean([(draw(), 1) for _ in range(groups)])
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 0 <= found.high
    assert missed / draws <= most


def test_an_end_is_farther_away_only_where_few_groups_have_changed_far_more() -> None:
    one = estimate_mean([(0.0, 1)] * 15 + [(10.0, 1)])
    alike = estimate_mean([(float(at), 1) for at in range(16)])
    assert one.high is not None
    assert one.low is not None
    assert one.high - one.mean > 2 * (one.mean - one.low)
    assert one.mean - one.low == pytest.approx(student_quantile(0.975, 15) * (one.error or 0))
    assert alike.half_width == pytest.approx(student_quantile(0.975, 15) * (alike.error or 0))


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 10_000)), min_size=5, max_size=60), st.data())
def test_the_interval_has_the_mean_inside_and_does_not_depend_on_the_order(
    sums: list[tuple[float, int]], data: st.DataObject
) -> None:
    found, again = estimate_mean(sums), estimate_mean(data.draw(st.permutations(sums)))
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.mean <= found.high
    scale = max(abs(found.low), abs(found.high), 1e-9)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize(("share", "count", "half_width"), [(0.0, 10, 0.2775), (1.0, 10, 0.2775), (0.5, 100, 0.0962)])
def test_the_interval_of_a_share_is_wilsons(share: float, count: int, half_width: float) -> None:
    assert share_half_width(share, count) == pytest.approx(half_width, abs=1e-4)


def test_groups_without_weight_are_none() -> None:
    assert estimate_mean([(0.0, 0)] * 6) == Estimate(0.0)
    assert estimate_mean([(8.0, 4), *[(0.0, 0)] * 6]) == Estimate(2.0)


def test_the_interval_of_thousands_of_changed_answers_needs_no_binomial_coefficient_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    comb = math.comb

    def count(total: int, chosen: int) -> int:
        calls.append(total)
        return comb(total, chosen)

    monkeypatch.setattr(math, "comb", count)
    low, high = paired_interval(900, 1100, 10_000)
    assert calls == [2000, 2000]
    assert 0 < low < 200 / 10_000 < high
