from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import DataFormat, Source, TextRow
from finetune_trainer.tokenization.samples import Encoded


def test_a_row_counts_with_the_longest_of_its_samples_before_truncation() -> None:
    samples = (Encoded([1] * 8, [1] * 8, 8, left_out=2), Encoded([1] * 3, [1] * 3, 3, left_out=9))
    summary = Summary()
    summary.count(TextRow("t", Source("f", 1), DataFormat.TEXT, encodings=samples))
    assert summary.lengths.longest == 12
    assert (summary.samples, summary.tokens, summary.trained_tokens) == (2, 11, 11)
