"""Row lengths in tokens before truncation, to choose `maxLength` by."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

ROUNDED_TO = 64
CLASSES = 12


@dataclass(slots=True)
class Lengths:
    """The lengths counted so far, four bytes each."""

    seen: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, tokens: int) -> None:
        """Count one row."""
        self.seen.append(tokens)

    def percentile(self, percent: int) -> int:
        """Return the length that this percentage of the rows does not exceed; 0 without rows."""
        return self._ranked((percent,))[0]

    @property
    def longest(self) -> int:
        """The length of the longest row; 0 without rows."""
        return max(self.seen, default=0)

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
        if not self.seen:
            return ()
        width = _round_width(-(-self.percentile(99) // CLASSES))
        regular = max(1, -(-self.percentile(99) // width))
        counts = Counter(min(max(tokens - 1, 0) // width, regular) for tokens in self.seen)
        found = [((at + 1) * width, counts[at]) for at in range(regular)]
        return (*found, (self.longest, counts[regular])) if counts[regular] else tuple(found)

    def _ranked(self, percents: tuple[int, ...]) -> list[int]:
        ordered = sorted(self.seen)
        return [ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0 for percent in percents]


def _round_width(least: int) -> int:
    """Round up to the next of 1, 2, 5, 10, 20, …"""
    step = int("1" + "0" * (len(str(max(least, 1))) - 1))
    return next(step * factor for factor in (1, 2, 5, 10) if step * factor >= least)


def round_up(tokens: int) -> int:
    """Round up to the next multiple of 64, which suits the hardware."""
    return -(-tokens // ROUNDED_TO) * ROUNDED_TO
