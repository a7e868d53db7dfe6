"""Rows of a table of samples: a long text has several samples, and is one row."""

import pyarrow as pa
import pytest

from finetune_trainer.tokenization.sample_table import (
    SampleBatches,
    Samples,
    as_samples,
    count_rows,
    find_row_ends,
    longest_length,
)
from finetune_trainer.tokenization.samples import Encoded, EncodedPrompt


def table(*rows: int) -> Samples[Encoded]:
    """Samples of these rows, of three tokens with a loss and one without; the first token of a sample has no loss."""
    found: list[pa.RecordBatch] = []
    batches = SampleBatches(Encoded, found.append)
    for row in rows:
        batches.add(row, Encoded([1, 2, 3, 4, 5], [1, 2, -100, 4, 5], 4))
        batches.close()
    return Samples(pa.Table.from_batches(found, batches.schema))


@pytest.mark.parametrize(
    ("rows", "count", "ends"),
    [((0, 0, 0, 4, 9, 9), 3, {9, 12, 18}), ((3, 3), 1, {6}), ((0, 1, 2), 3, None), ((5,), 1, None)],
)
def test_the_samples_of_a_row_are_counted_once_and_end_together(
    rows: tuple[int, ...], count: int, ends: set[int] | None
) -> None:
    samples = table(*rows)
    assert (count_rows(samples), find_row_ends(samples)) == (count, ends)


def test_the_chosen_rows_keep_their_ends() -> None:
    samples = table(0, 0, 0, 4, 9, 9).of_rows([0, 9])
    assert (count_rows(samples), find_row_ends(samples)) == (2, {9, 15})


def test_samples_without_a_table_are_a_row_each() -> None:
    prompts = [EncodedPrompt([1, 2])] * 3
    for samples in (prompts, as_samples(prompts), []):
        assert (count_rows(samples), find_row_ends(samples)) == (len(samples), None)


def test_the_longest_sample_of_a_table_is_found_without_its_tokens() -> None:
    prompts = [EncodedPrompt([1] * length) for length in (3, 7, 2)]
    lengths = as_samples(prompts).table.drop_columns(["prompt_ids"])

    class LengthsOnly(Samples[EncodedPrompt]):
        def __init__(self) -> None:
            self.table = lengths

    assert longest_length(LengthsOnly(), prompts[:1]) == 7
    assert longest_length(as_samples(prompts[:1]), prompts) == 7
    assert longest_length([], as_samples(prompts)[3:]) == 0
