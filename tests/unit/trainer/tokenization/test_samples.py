import pytest

from finetune_api.dataset.codes import RepairCode
from finetune_trainer.tokenization.samples import (
    Encoded,
    EncodedLabelled,
    EncodedPair,
    EncodedPrompt,
    Sample,
    truncation_codes,
)


@pytest.mark.parametrize(
    ("sample", "tokens", "length", "trained"),
    [
        (Encoded([1, 2, 3], [-100, 2, 3], 2), 3, 3, 2),
        (EncodedPair([1, 2, 3], [4, 5], [6]), 9, 5, 3),
        (EncodedPair([1, 2, 3], [4], [5, 6]), 9, 5, 3),
        (EncodedLabelled([1, 2, 3], [4, 5], True), 5, 5, 2),
        (EncodedPrompt([1, 2, 3]), 3, 3, 0),
    ],
)
def test_a_sample_counts_the_tokens_that_are_read_that_it_holds_and_that_are_trained(
    sample: Sample, tokens: int, length: int, trained: int
) -> None:
    assert (sample.tokens, sample.length, sample.trained) == (tokens, length, trained)
    assert (sample.truncated, sample.answer_cut, sample.reasoning_lost, sample.left_out) == (False, 0, 0, 0)


@pytest.mark.parametrize(
    ("left_out", "answer_cut", "codes"),
    [
        (0, 0, ()),
        (1, 0, (RepairCode.TRUNCATED,)),
        (0, 1, (RepairCode.ANSWER_CUT,)),
        (1, 1, (RepairCode.TRUNCATED, RepairCode.ANSWER_CUT)),
    ],
)
def test_a_loss_has_its_code(left_out: int, answer_cut: int, codes: tuple[RepairCode, ...]) -> None:
    assert truncation_codes(left_out, answer_cut) == codes
