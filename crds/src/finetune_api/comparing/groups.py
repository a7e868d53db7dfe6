"""Groups of held-out samples that are independent of each other: samples of one prompt belong together."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

EVALUATED_ROWS = 512
EVALUATED_PROMPTS = 128
"""Held-out rows that are measured if each needs a sampled answer, which is slow."""

Owners = Sequence[tuple[int, int]]
"""The weight of each held-out sample, in the order of the measurement, and the number of its prompt.

Empty if each sample has a prompt of its own.
"""


def group_batches(weights: Sequence[int], owners: Owners) -> list[int]:
    """Return the number of each batch's group: batches that share a prompt, also by way of others, are one group.

    `weights` are those of the batches. If they are not those of the samples, there is a single group.
    """
    if not owners:
        return list(range(len(weights)))
    ends = list(accumulate(weights))
    if not ends or ends[-1] != sum(weight for weight, _ in owners):
        return [0] * len(ends)
    parents, first, reached = list(range(len(ends))), dict[int, int](), 0
    for weight, prompt in owners:
        if weight:
            start, reached = bisect_right(ends, reached), reached + weight
            for batch in range(start, bisect_left(ends, reached) + 1):
                one, other = sorted((_root(parents, batch), _root(parents, first.setdefault(prompt, batch))))
                parents[other] = one
    return [_root(parents, batch) for batch in range(len(ends))]


def _root(parents: list[int], batch: int) -> int:
    while parents[batch] != batch:
        parents[batch] = batch = parents[parents[batch]]
    return batch


def count_groups(size: int, prompts: Sequence[int]) -> int:
    """Return the number of groups if `size` samples with these prompts are measured together."""
    weights = [min(size, len(prompts) - start) for start in range(0, len(prompts), size)]
    return len(set(group_batches(weights, [(1, prompt) for prompt in prompts])))
