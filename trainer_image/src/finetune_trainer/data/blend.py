"""Blend sources of rows: how often each row is used in one pass, and in which order the sources take turns."""

import heapq
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune_api.handoff import ExitCode
from finetune_api.inputs.sources import BlendSource, Sample, StoppingStrategy
from finetune_trainer.errors import TrainerError

MOST_REPEATS = 100
"""Passes over a source within one pass of the blend; more are probably a mistake in the weights."""


@dataclass(frozen=True, slots=True)
class Part:
    """One source in the blend: the size of each of its rows, and the rows that may be used, in order of preference."""

    place: str
    weight: float | None
    sizes: Sequence[int]
    rows: Sequence[int]

    @property
    def total(self) -> int:
        """The size of all rows that may be used."""
        return sum(self.sizes[row] for row in self.rows)


def choose_rows(count: int, source: BlendSource, seed: int) -> Sequence[int]:
    """Return which of `count` rows may be used, in order of preference: four bytes for each at most."""
    limit = min(count, source.max_samples or count)
    if source.sample is Sample.FIRST:
        return range(limit)
    rows = array("I", range(count))
    random.Random(f"{seed} {source.uri}").shuffle(rows)  # noqa: S311 - a choice, not a secret
    return rows[:limit]


def blend(parts: Sequence[Part], strategy: StoppingStrategy) -> "list[array[int]]":
    """Return how often each row of each part is used; raises DatasetUnusable if a part has no share in the blend."""
    weights = [(one, one.weight) for one in parts if one.weight is not None]
    if not weights:
        return [_use(one, 1, 0) for one in parts]
    whole = (min if strategy is StoppingStrategy.FIRST_EXHAUSTED else max)(
        one.total / weight for one, weight in weights
    )
    return [_use_share(one, weight * whole) for one, weight in weights]


def _use_share(part: Part, share: float) -> "array[int]":
    """Use rows in order until their size is as near to the share as possible; whole passes come first."""
    total = part.total
    passes, rest = divmod(share, total) if total else (0, 0)
    if passes > MOST_REPEATS:
        raise _unusable(
            part,
            f"repeats each row {passes:.0f} times, more than {MOST_REPEATS}: lower it, or use stoppingStrategy "
            "FirstExhausted",
        )
    times = _use(part, int(passes), rest)
    if not any(times):
        raise _unusable(
            part,
            "leaves no row of this source, because another source is exhausted before: raise it, use stoppingStrategy "
            "AllExhausted, or remove the source",
        )
    return times


def _use(part: Part, passes: int, rest: float) -> "array[int]":
    times = array("I", bytes(array("I").itemsize * len(part.sizes)))
    used = 0
    for row in part.rows:
        size = part.sizes[row]
        is_used = used + size / 2 <= rest
        times[row] = passes + is_used
        used += size * is_used
    return times


def take_turns(counts: Sequence[int]) -> Iterator[int]:
    """Yield the part that each line of the blend comes from, so that every stretch of it has the same proportions."""

    def lines(part: int, count: int) -> Iterator[tuple[float, int]]:
        return (((line + 0.5) / count, part) for line in range(count))

    return (part for _, part in heapq.merge(*(lines(part, count) for part, count in enumerate(counts))))


def _unusable(part: Part, why: str) -> TrainerError:
    return TrainerError(ExitCode.DATASET_UNUSABLE, f"spec.{part.place}.weight {why}")
