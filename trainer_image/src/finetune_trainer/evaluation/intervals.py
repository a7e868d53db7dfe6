"""The mean over groups of held-out rows, with its 95 % interval."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95
FEWEST_GROUPS = 5
"""Groups of rows below which no interval is computed: their spread would be a guess."""


class Estimate(NamedTuple):
    """A mean with its standard error and half the width of its interval; None if there are too few groups."""

    mean: float
    error: float | None = None
    half_width: float | None = None


def estimate_mean(sums: Sequence[tuple[float, int]], choices: int = 1) -> Estimate:
    """Return the mean of independent groups, from the sum and the weight of each.

    It is a ratio of sums: linearised residuals, each divided by the share of the other groups, as in a jackknife;
    Student's t. With groups of different weights few of them decide: the degrees of freedom are those of as many groups
    of equal weight as have the same sum of squared shares (Kish, Survey Sampling, 1965). For the best of `choices`
    means the level is that of simultaneous intervals (Bonferroni).
    """
    sums = [one for one in sums if one[1]]
    weight, groups = sum(count for _, count in sums), len(sums)
    if not groups:
        return Estimate(0.0)
    mean = sum(total for total, _ in sums) / weight
    if groups < 2:
        return Estimate(mean)
    squares = sum(((total - mean * count) / (1 - count / weight)) ** 2 for total, count in sums)
    error = math.sqrt(squares * (groups - 1) / groups) / weight
    if groups < FEWEST_GROUPS:
        return Estimate(mean, error)
    equal = round(weight**2 / sum(count**2 for _, count in sums))
    return Estimate(mean, error, error * student_quantile(1 - (1 - LEVEL) / (2 * max(choices, 1)), max(equal - 1, 1)))


@functools.lru_cache
def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution, by bisection between its middle and infinity."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_share(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(high)


def _central_share(angle: float, freedom: int) -> float:
    """Return the probability of |t| < √freedom · tan(angle) (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    term, total, square = 1.0, 0.0, math.cos(angle) ** 2
    for power in range(2 + freedom % 2, freedom + 1, 2):
        total += term
        term *= square * (power - 1) / power
    if freedom % 2 == 0:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
