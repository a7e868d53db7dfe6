"""Row lengths in tokens before truncation, to choose `maxLength` by."""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

ROUNDED_TO = 64
CLASSES = 12


@dataclass(slots=True)
class Lengths:
    """How many rows have each length: the memory grows with the different lengths, not with the rows."""

    rows: Counter[int] = field(default_factory=Counter)

    def add(self, tokens: int) -> None:
        """Count one row."""
        self.rows[tokens] += 1

    def percentile(self, percent: int) -> int:
        """Return the length that this percentage of the rows does not exceed; 0 without rows."""
        return self._ranked((percent,))[0]

    @property
    def longest(self) -> int:
        """The length of the longest row; 0 without rows."""
        return max(self.rows, default=0)

    def to_dict(self) -> dict[str, int]:
        """Return the figures in the form of `summary.json`; the advised `maxLength` cuts at most 1 % of the rows."""
        median, most, nearly_all = self._ranked((50, 90, 99))
        return {
            "p50": median,
            "p90": most,
            "p99": nearly_all,
            "max": self.longest,
            "advisedMaxLength": round_up(nearly_all),
        }

    def histogram(self) -> tuple[tuple[int, int], ...]:
        """Return (upper bound, count) of equal classes up to the 99th percentile, and of one class for the rest."""
        if not self.rows:
            return ()
        width = _round_width(-(-self.percentile(99) // CLASSES))
        regular = max(1, -(-self.percentile(99) // width))
        counts = Counter[int]()
        for tokens, rows in self.rows.items():
            counts[min(max(tokens - 1, 0) // width, regular)] += rows
        found = [((at + 1) * width, counts[at]) for at in range(regular)]
        return (*found, (self.longest, counts[regular])) if counts[regular] else tuple(found)

    def _ranked(self, percents: tuple[int, ...]) -> list[int]:
        lengths = sorted(self.rows)
        up_to = list(accumulate(self.rows[length] for length in lengths))
        total = self.rows.total()
        ranks = (min(total - 1, total * percent // 100) for percent in percents)
        return [lengths[bisect_right(up_to, rank)] if lengths else 0 for rank in ranks]


def _round_width(least: int) -> int:
    """Round up to the next of 1, 2, 5, 10, 20, …"""
    step = int("1" + "0" * (len(str(max(least, 1))) - 1))
    return next(step * factor for factor in (1, 2, 5, 10) if step * factor >= least)


def round_up(tokens: int) -> int:
    """Round up to the next multiple of 64, which suits the hardware."""
    return -(-tokens // ROUNDED_TO) * ROUNDED_TO
