"""Means over groups of held-out rows, and differences of shares, with their 95 % intervals."""

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
"""Probability that the mean is beyond one end of an interval."""
FEWEST_GROUPS = 5
"""Groups of rows below which no interval is computed: their spread would be a guess."""


class Estimate(NamedTuple):
    """A mean with its standard error and the ends of its interval; None if there are too few groups."""

    mean: float
    error: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """The distance from the mean to the farther end."""
        return None if self.low is None or self.high is None else max(self.mean - self.low, self.high - self.mean)


def estimate_mean(sums: Sequence[tuple[float, int]], tails: tuple[float, float] = (TAIL, TAIL)) -> Estimate:
    """Return the mean of independent groups, from the sum and the weight of each; `tails` are those of both ends.

    It is a ratio of sums: linearised residuals, each divided by the share of the other groups, as in a jackknife;
    Student's t. With groups of different weights few of them decide: the degrees of freedom are those of as many groups
    of equal weight as have the same sum of squared shares (Kish, Survey Sampling, 1965).

    An end is farther away where the residuals are skewed, for then the mean of the others is known less well than their
    spread suggests: it is that of the transformation without skewness (Hall, J. R. Statist. Soc. B 54, 1992, 221-228),
    if that is beyond the one of Student's t.
    """
    sums = [one for one in sums if one[1]]
    weight, groups = sum(count for _, count in sums), len(sums)
    if not groups:
        return Estimate(0.0)
    mean = sum(total for total, _ in sums) / weight
    if groups < 2:
        return Estimate(mean)
    residuals = [(total - mean * count) / (1 - count / weight) for total, count in sums]
    squares = sum(one**2 for one in residuals)
    error = math.sqrt(squares * (groups - 1) / groups) / weight
    if groups < FEWEST_GROUPS:
        return Estimate(mean, error)
    equal = round(weight**2 / sum(count**2 for _, count in sums))
    below, above = (student_quantile(1 - tail, max(equal - 1, 1)) for tail in tails)
    scale = math.sqrt(squares) or 1.0
    skewness = sum((one / scale) ** 3 for one in residuals)
    low, high = max(below, _unskew(below, skewness)), max(above, -_unskew(-above, skewness))
    return Estimate(mean, error, mean - error * low, mean + error * high)


def _unskew(quantile: float, skewness: float) -> float:
    """Return the quantile of the studentised mean from that of its transform; `skewness` is that over √groups."""
    if abs(skewness) < 1e-6:
        return quantile
    return 3 / skewness * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1)


def paired_interval(
    lost: int, gained: int, questions: int, tails: tuple[float, float] = (TAIL, TAIL)
) -> tuple[float, float]:
    """Return the interval of the difference of the shares, from the answers that have changed.

    Half is added to each cell of the table of both measurements (Agresti and Min, Statistics in Medicine 24, 2005,
    729-740): the plain interval is too narrow if few answers change. It includes zero if McNemar's exact test does.
    """
    difference, count = gained - lost, questions + 2
    middle, error = difference / count, math.sqrt(gained + lost + 1 - difference**2 / count) / count
    low, high = (NormalDist().inv_cdf(1 - tail) * error for tail in tails)
    is_gain, is_loss = _chance(gained, lost) < tails[0], _chance(lost, gained) < tails[1]
    low, high = max(middle - low, -1.0), min(middle + high, 1.0)
    return low if is_gain else min(low, 0.0), high if is_loss else max(high, 0.0)


def share_half_width(share: float, count: int) -> float:
    """Return the distance from a share of so many answers to the farther end of its interval (Wilson, J. Am. Statist.
    Assoc. 22, 1927, 209-212), which is not zero if all answers are the same."""
    ratio = NormalDist().inv_cdf(1 - TAIL) ** 2 / count
    half = math.sqrt(ratio * share * (1 - share) + ratio**2 / 4)
    return (half + ratio * abs(0.5 - share)) / (1 + ratio)


def _chance(many: int, others: int) -> float:
    """Return the probability of so many changes in one direction or more if both are equally likely."""
    changed = many + others
    ways = total = math.comb(changed, many)
    for at in range(many, changed):  # each from the one before: for thousands, `math.comb` takes a millisecond
        ways = ways * (changed - at) // (at + 1)
        total += ways
    return total / (1 << changed)


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
