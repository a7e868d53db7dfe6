"""Split rows into training and validation by prompt, so that no prompt is on both sides.

    split = PromptSplit(percent=10, seed=42)
    for row in rows: split.add_prompt(prompt_key(row))  # first pass: eight bytes a row
    result = split.close()
    result.holds_out(prompt_key(row))  # second pass, in any order

Prompts are chosen in a seeded random order until the requested number of rows is reached, at least 20 and at most 512,
of at least ten prompts, or a quarter of all if there are fewer than 40: rows of one prompt are not independent.
The same rows and seed give the same split, regardless of the order of the rows.
"""

import heapq
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from finetune_trainer.data.checks.row_keys import prompt_key, seeded_rank
from finetune_trainer.data.rows import Row

MIN_ROWS = 40
MIN_VALIDATION_ROWS = 20
MAX_VALIDATION_ROWS = 512
MIN_VALIDATION_PROMPTS = 10
SMALLEST_SHARE = 4
"""No more than one in four prompts is held out in order to reach `MIN_VALIDATION_PROMPTS`."""
RANKED_AT_ONCE = 4 * MAX_VALIDATION_ROWS


@dataclass(frozen=True, slots=True)
class Split:
    """The prompts that are held out; `warning` gives the reason if there is no split."""

    validation_prompts: frozenset[int]
    train_rows: int
    validation_rows: int
    warning: str | None = None

    def holds_out(self, prompt: int) -> bool:
        """Return whether the rows with this `prompt_key` are held out."""
        return prompt in self.validation_prompts


class PromptSplit:
    """Collects the prompts of the rows, then chooses the ones to hold out."""

    def __init__(self, percent: int, seed: int) -> None:
        self._percent = percent
        self._seed = seed
        self._prompts = array("Q")

    def add_prompt(self, prompt: int) -> None:
        """Add the `prompt_key` of one accepted row."""
        self._prompts.append(prompt)

    def close(self) -> Split:
        """Choose the prompts to hold out."""
        rows = len(self._prompts)
        if self._percent <= 0:
            return Split(frozenset(), rows, 0)
        if rows < MIN_ROWS:
            return Split(
                frozenset(), rows, 0, f"{rows} rows are too few to hold any out; at least {MIN_ROWS} are needed"
            )
        wanted = min(max(round(rows * self._percent / 100), MIN_VALIDATION_ROWS), MAX_VALIDATION_ROWS)
        chosen, held_out = self._choose(wanted, most=min(MAX_VALIDATION_ROWS, rows // 2))
        if held_out < MIN_VALIDATION_ROWS:
            reason = (
                f"the rows have too few different prompts to hold out {MIN_VALIDATION_ROWS} rows; there is no "
                f"validation split"
            )
            return Split(frozenset(), rows, 0, reason)
        return Split(frozenset(chosen), rows - held_out, held_out)

    def _choose(self, wanted: int, most: int) -> tuple[list[int], int]:
        chosen: list[int] = []
        held_out, order = 0, self._in_order()
        first = list(islice(order, MIN_VALIDATION_PROMPTS * SMALLEST_SHARE))
        for prompt, size in chain(first, order):
            is_full = held_out + size > most
            if held_out >= wanted and (is_full or len(chosen) >= len(first) // SMALLEST_SHARE):
                break
            if not is_full:
                chosen.append(prompt)
                held_out += size
        return chosen, held_out

    def _in_order(self) -> Iterator[tuple[int, int]]:
        """Yield every prompt with its number of rows, in the seeded order; few are ranked at first, because few are
        held out."""
        start, end = 0, RANKED_AT_ONCE
        while len(ranked := self._first_prompts(end)) == end:
            yield from ranked[start:]
            start, end = end, 16 * end
        yield from ranked[start:]

    def _first_prompts(self, most: int) -> list[tuple[int, int]]:
        """Return the first `most` prompts in the seeded order, each with its number of rows."""
        rows: dict[int, int] = {}
        last: list[tuple[int, int]] = []
        for prompt in self._prompts:
            if prompt in rows:
                rows[prompt] += 1
                continue
            ranked = (-seeded_rank(prompt, self._seed), prompt)
            if len(last) < most:
                heapq.heappush(last, ranked)
            elif ranked > last[0]:  # one that is passed over here is passed over each time
                del rows[heapq.heapreplace(last, ranked)[1]]
            else:
                continue
            rows[prompt] = 1
        return [(prompt, rows[prompt]) for _, prompt in sorted(last, reverse=True)]


def collect_prompts(rows: Iterable[Row]) -> frozenset[int]:
    """Return the prompt keys of a validation file's rows, for `check_rows(validation_prompts=...)`."""
    return frozenset(prompt_key(row) for row in rows)
