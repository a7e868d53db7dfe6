from dataclasses import dataclass
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from finetune_trainer.tokenization.token_spans import leave_out, token_spans

Spans = list[tuple[int, int]]
SPANS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)).map(lambda ends: (min(ends), max(ends))), max_size=8)


@dataclass
class Offsets:
    offsets: list[tuple[int, int]]


def test_a_token_without_characters_before_an_answer_is_not_part_of_it() -> None:
    encoding: Any = Offsets([(0, 2), (2, 2), (2, 4), (4, 5)])
    assert token_spans(encoding, "abcd ", [(2, 4)]) == [(2, 3)]


def test_the_last_token_may_reach_over_spaces_but_not_over_text() -> None:
    encoding: Any = Offsets([(0, 2), (2, 5)])
    assert token_spans(encoding, "abcd ", [(2, 4)]) == [(1, 2)]
    assert token_spans(encoding, "abcde", [(2, 4)]) == [(1, 1)]


def without(offsets: Spans, ranges: Spans, untrained: Spans) -> Spans:
    """The definition: each range of characters removes the tokens from the first to the last one that touches it."""
    kept = [set(range(*one)) for one in ranges]
    for start, end in untrained:
        touching = [at for at, (begin, stop) in enumerate(offsets) if begin < end and stop > start]
        removed = set(range(touching[0], touching[-1] + 1)) if touching else set()
        kept = [one - removed for one in kept]
    return sorted(
        (at, next(end for end in range(at, 99) if end not in one)) for one in kept for at in one if at - 1 not in one
    )


# Tokens that a normaliser has put into another order, of which ten examples have hardly one.
@example(offsets=[(4, 5), (0, 2)], ranges=[(0, 2)], untrained=[(2, 3)], is_sorted=False)
@example(offsets=[(1, 6), (0, 0)], ranges=[(0, 2)], untrained=[(3, 5)], is_sorted=False)
@example(offsets=[(4, 8), (3, 5)], ranges=[(0, 2)], untrained=[(3, 4)], is_sorted=False)
@example(offsets=[(1, 7), (0, 2)], ranges=[(0, 2)], untrained=[(2, 7)], is_sorted=False)
@example(offsets=[(0, 1), (3, 8), (0, 5)], ranges=[(0, 3)], untrained=[(5, 6), (0, 7)], is_sorted=False)
@given(offsets=SPANS, ranges=SPANS, untrained=SPANS, is_sorted=st.booleans())
def test_tokens_that_touch_untrained_characters_are_left_out(
    offsets: Spans, ranges: Spans, untrained: Spans, *, is_sorted: bool
) -> None:
    encoding: Any = Offsets(sorted(offsets) if is_sorted else offsets)
    found = [one for one in leave_out(encoding, ranges, untrained) if one[0] < one[1]]
    assert sorted(found) == without(encoding.offsets, ranges, untrained)


def test_many_untrained_parts_cost_no_walk_over_all_tokens_each() -> None:
    """One walk for each part would take an hour."""
    parts = 200_000
    encoding: Any = Offsets([(at, at + 1) for at in range(2 * parts)])
    untrained = [(2 * at, 2 * at + 1) for at in range(parts)]
    assert leave_out(encoding, [(0, 2 * parts)], untrained) == [(2 * at + 1, 2 * at + 2) for at in range(parts)]
