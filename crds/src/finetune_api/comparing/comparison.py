"""The paired difference of two measurements of the same held-out rows, with its 95 % interval."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from finetune_api.comparing.groups import Owners, group_batches
from finetune_api.comparing.intervals import TAIL, estimate_mean, paired_interval
from finetune_api.evaluation import EvaluationMetric, Verdict

ROUNDING = 0.001
"""Relative difference of a loss that 16-bit arithmetic alone can make, by other kernels or batches."""
MORE_ROWS = 2
"""Times as many rows as make the interval just as wide as the difference: these alone show it in every second
measurement, twice as many in four of five (the power is 80 % at (1.96 + 0.84)² / 1.96² = 2.04 times as many)."""

Parts = Sequence[tuple[float, int]]
"""The mean of each group of held-out rows, in order, with its weight: trained tokens, pairs, rows or prompts."""
Pair = tuple[float, float, int]
"""The sums before and after over a group of held-out rows, and its weight."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The model before and after the training, on the same held-out rows."""

    metric: EvaluationMetric
    before: float
    after: float
    low: float | None = None
    """Lower end of the interval of the difference; None with fewer than `FEWEST_GROUPS` groups of rows."""
    high: float | None = None
    groups: int = 0

    @property
    def difference(self) -> float:
        """`after` minus `before`."""
        return self.after - self.before

    @property
    def verdict(self) -> Verdict:
        """Return better or worse only if the interval excludes zero, and a loss differs by more than rounding."""
        if self.low is None or self.high is None:
            return Verdict.NOT_EVALUATED
        is_rounding = self.metric is EvaluationMetric.LOSS and abs(self.difference) < ROUNDING * abs(self.before)
        if self.low <= 0 <= self.high or is_rounding:
            return Verdict.NO_MEASURABLE_DIFFERENCE
        is_lower = self.high < 0
        return Verdict.BETTER if is_lower == (self.metric is EvaluationMetric.LOSS) else Verdict.WORSE

    @property
    def has_interval(self) -> bool:
        """Whether there are enough groups of rows for an interval."""
        return self.low is not None and self.high is not None

    @property
    def change(self) -> str:
        """The difference as people read it: of a loss in percent, of a reward in its own unit."""
        return _signed(self.difference, self._scale)

    @property
    def change_with_interval(self) -> str:
        """The same, with both ends of the interval, which need not be equally far away."""
        return f"{self.change} ({self.interval})" if self.has_interval else self.change

    @property
    def interval(self) -> str:
        """The interval of the change as people read it; empty without one."""
        if self.low is None or self.high is None:
            return ""
        factor, unit = self._scale
        low, high = (_end(factor * end, unit) for end in (self.low, self.high))
        return f"95 % interval {low} to {high}{unit}"

    @property
    def _scale(self) -> tuple[float, str]:
        if self.metric is EvaluationMetric.LOSS and self.before > 0:
            return 100 / self.before, " %"
        return 1.0, ""

    def advise_rows(self, rows: int) -> int | None:
        """Return how many held-out rows or prompts would probably show a difference of this size; None if these do, or
        it is practically zero."""
        if self.low is None or self.high is None:
            return None
        if not float(_figure(abs(self.difference * self._scale[0]), self._scale[1])):
            return None
        margin = self.difference - self.low if self.difference > 0 else self.high - self.difference
        if margin < abs(self.difference):
            return None
        return math.ceil(MORE_ROWS * rows * (margin / self.difference) ** 2)


def compare(
    metric: EvaluationMetric,
    before: Parts,
    after: Parts,
    choices: int = 1,
    owners: Owners = (),
    *,
    earlier: int = 1,
) -> Comparison | None:
    """Compare the means of two measurements of the same rows; None if they are not of the same rows, or of none.

    The interval is that of the mean difference over paired groups. The tuned model is the best of `choices` evaluations
    on these rows, and the one before it the best of `earlier`. Luck makes the best of several look too good, and never
    too bad: only the end that luck brings nearer is that of simultaneous intervals (Bonferroni).
    `owners` are the samples with their prompts, if some have the same one: these are not independent.
    """
    single = list(_pair(before, after))
    pairs = _join(single, owners)
    weight = sum(count for _, _, count in pairs)
    if not weight:
        return None
    first, last = (sum(part[at] for part in pairs) / weight for at in (0, 1))
    lucky, other = TAIL / max(choices, 1), TAIL / max(earlier, 1)
    tails = (other, lucky) if metric is EvaluationMetric.LOSS else (lucky, other)
    sums = [(new - old, count) for old, new, count in pairs]
    found = estimate_mean(sums, tails)
    low, high = found.low, found.high
    if low is not None and high is not None and metric is EvaluationMetric.REWARD and (step := _find_step(single)):
        lost, gained = sum(one < 0 for one, _ in sums), sum(one > 0 for one, _ in sums)
        ends = [step * end for end in paired_interval(lost, gained, len(sums), tails)]
        low, high = ends if len(sums) == len(single) else (min(low, ends[0]), max(high, ends[1]))
    return Comparison(metric, first, last, low, high, len(pairs))


def _find_step(pairs: Sequence[Pair]) -> float | None:
    """Return by how much rewards change if all that change do so by the same amount, as those of 0 and 1; else None.

    Their spread is no measure if few change or none. If none does, it is the distance of the highest and the lowest.
    """
    steps = {round(abs(new - old), 9) for old, new, _ in pairs} - {0.0}
    if len(steps) > 1:
        return None
    rewards = [reward for pair in pairs for reward in pair[:2]]
    return max(steps, default=max(rewards) - min(rewards) or abs(rewards[0]) or 1.0)


def _pair(before: Parts, after: Parts) -> Iterator[Pair]:
    """Yield the sums before and after, and the weight, of each batch that both measurements have in common.

    A micro-batch may have been halved in between: batches are joined at the boundaries that both have.
    """
    sums = [_cumulate(parts) for parts in (before, after)]
    if sums[0].keys() and sums[1].keys() and max(sums[0]) == max(sums[1]):
        common = sums[0].keys() & sums[1].keys()
        for begin, end in pairwise([0, *sorted(common)]):
            if end > begin:
                old, new = (one[end] - one.get(begin, 0.0) for one in sums)
                yield old, new, end - begin


def _join(pairs: Sequence[Pair], owners: Owners) -> list[Pair]:
    """Return the sums of each group of batches, none of which shares a prompt with another group."""
    joined = dict[int, Pair]()
    for group, pair in zip(group_batches([count for _, _, count in pairs], owners), pairs, strict=True):
        old, new, count = joined.get(group, (0.0, 0.0, 0))
        joined[group] = (old + pair[0], new + pair[1], count + pair[2])
    return list(joined.values())


def _cumulate(parts: Parts) -> dict[int, float]:
    """Return the sum of all values up to each boundary, by the weight up to it."""
    total, weight, found = 0.0, 0, {}
    for mean, count in parts:
        total += mean * count
        weight += count
        found[weight] = total
    return found


def _signed(value: float, scale: tuple[float, str]) -> str:
    factor, unit = scale
    figure = _figure(abs(value * factor), unit)
    sign = "" if float(figure) == 0 else "-" if value < 0 else "+"
    return f"{sign}{figure}{unit}"


def _end(value: float, unit: str) -> str:
    """Return one end of an interval, with another digit where rounding would hide on which side of zero it is."""
    figure = _figure(abs(value), unit)
    if float(figure) == 0 and abs(value) >= 0.005:
        figure = f"{abs(value):.2f}"
    return figure if float(figure) == 0 else f"{value:+.9f}"[0] + figure


def _figure(value: float, unit: str) -> str:
    """Return a figure, whole from ten on; below, percent with one decimal and others with two significant digits."""
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if unit or value >= 0.995 else f"{value:.2g}"
