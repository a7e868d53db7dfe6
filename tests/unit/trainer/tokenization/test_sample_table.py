"""Rows of a table of samples: a long text has several samples, and is one row."""

from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import pyarrow as pa
import pytest

from finetune_trainer.tokenization import sample_table
from finetune_trainer.tokenization.sample_table import (
    SampleBatches,
    Samples,
    as_samples,
    count_rows,
    digest_tokens,
    find_owners,
    longest_length,
    prompts_of,
    with_prompts,
)
from finetune_trainer.tokenization.samples import Encoded, EncodedPair, EncodedPrompt


def table(*rows: int) -> Samples[Encoded]:
    """Samples of these rows, of three tokens with a loss and one without; the first token of a sample has no loss."""
    found: list[pa.RecordBatch] = []
    batches = SampleBatches(Encoded, found.append)
    for row in rows:
        batches.add(row, Encoded([1, 2, 3, 4, 5], [1, 2, -100, 4, 5], 4))
        batches.close()
    return Samples(pa.Table.from_batches(found, batches.schema))


@pytest.mark.parametrize(
    ("rows", "count", "owners"),
    [
        ((0, 0, 0, 4, 9, 9), 3, (0, 0, 0, 1, 2, 2)),
        ((3, 3), 1, (0, 0)),
        ((0, 1, 2), 3, ()),
        ((5,), 1, ()),
    ],
)
def test_the_samples_of_a_row_are_counted_once_and_belong_together(
    rows: tuple[int, ...], count: int, owners: tuple[int, ...]
) -> None:
    samples = table(*rows)
    assert (count_rows(samples), find_owners(samples)) == (count, tuple((3, owner) for owner in owners))


def test_the_samples_of_rows_with_one_prompt_belong_together() -> None:
    samples = with_prompts(table(0, 0, 1, 2, 3), {0: 1 << 59, 1: 7, 2: 1 << 59, 3: 8})
    assert find_owners(samples) == ((3, 0), (3, 0), (3, 1), (3, 0), (3, 2))
    assert find_owners(samples.take([4, 2])) == ()
    assert (count_rows(samples), next(iter(samples))) == (4, next(iter(table(0))))


def test_pairs_and_answers_have_a_weight_of_one_each() -> None:
    samples = with_prompts(as_samples([EncodedPair([1], [2, 3], [4])] * 3), {0: 5, 1: 6, 2: 5})
    assert find_owners(samples) == ((1, 0), (1, 1), (1, 0))


def test_samples_without_a_table_are_a_row_each() -> None:
    prompts = [EncodedPrompt([1, 2])] * 3
    for samples in (prompts, as_samples(prompts), []):
        assert (count_rows(samples), find_owners(samples)) == (len(samples), ())
        assert prompts_of(samples) == list(range(len(samples)))


def test_the_longest_sample_of_a_table_is_found_without_its_tokens() -> None:
    prompts = [EncodedPrompt([1] * length) for length in (3, 7, 2)]
    lengths = as_samples(prompts).table.drop_columns(["prompt_ids"])

    class LengthsOnly(Samples[EncodedPrompt]):
        def __init__(self) -> None:
            self.table = lengths

    assert longest_length(LengthsOnly(), prompts[:1]) == 7
    assert longest_length(as_samples(prompts[:1]), prompts) == 7
    assert longest_length([], as_samples(prompts)[3:]) == 0


def test_the_digest_is_that_of_the_tokens_whatever_the_numbers_of_the_rows_are() -> None:
    one, moved, more = table(0, 1, 2), table(5, 6, 9), table(0, 1, 2, 3)
    assert digest_tokens(one) == digest_tokens(moved) == digest_tokens(more[:3])
    assert digest_tokens(one) != digest_tokens(more)


def many_tokens() -> Samples[Encoded]:
    """More tokens than a list with offsets of 32 bits can hold (2³¹): batches of two rows that are the same memory."""
    row = Encoded([1] * (1 << 17), [1] * (1 << 17), 1 << 17)
    one = as_samples([row, replace(row, truncated=True)]).table.to_batches()
    return Samples(pa.Table.from_batches(one * ((1 << 13) + 1)))


@pytest.mark.parametrize(
    ("places", "truncated"),
    [
        (slice(3), [False, True, False]),
        (slice(1, 6, 2), [True, True, True]),
        (slice(2, 0, -1), [False, True]),
        (slice(5, 5), []),
        ([16_385, 0, 7, 0], [True, False, True, False]),
        (range(4, 6), [False, True]),
        ([], []),
    ],
)
def test_some_samples_of_a_table_are_taken_without_a_copy_of_the_others(
    places: slice | Sequence[int], truncated: list[bool]
) -> None:
    samples = many_tokens()
    before = pa.total_allocated_bytes()
    found = samples[places] if isinstance(places, slice) else samples.take(places)
    assert [one.truncated for one in found] == truncated == found.numbers("truncated").tolist()
    assert pa.total_allocated_bytes() - before <= 2 * (1 << 20) * (len(truncated) + 1)


def test_a_slice_of_neighbours_copies_nothing() -> None:
    samples = many_tokens()
    before = pa.total_allocated_bytes()
    assert len(samples[:1000]) == 1000
    assert pa.total_allocated_bytes() == before


def test_an_order_of_many_batches_is_kept() -> None:
    found = table(*range(50))
    order = [7 * at % 50 for at in range(50)] * 3
    with patch.object(sample_table, "TAKEN_AT_ONCE", 16):
        assert found.take(order).numbers("row").tolist() == order
