from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.rows import BadRow, DataFormat, Source, TextRow
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded


def document(text: str) -> TextRow:
    return TextRow(text, Source("rows.jsonl", 1), DataFormat.TEXT)


def encode(labeler: Labeler, text: str, max_length: int = 4096) -> list[Encoded]:
    result = labeler.encode(document(text), "DomainAdaptation", max_length)
    assert not isinstance(result, BadRow), result.detail
    return [sample for sample in result if isinstance(sample, Encoded)]


@pytest.fixture
def labeler(build_model: Any) -> Labeler:
    return Labeler(build_model())


def test_a_document_is_trained_in_full_and_ends_with_eos(labeler: Labeler) -> None:
    (sample,) = encode(labeler, "the quick brown fox")
    eos = labeler.tokenizer.token_to_id("<eos>")
    assert sample.input_ids == [*labeler.tokenizer.encode("the quick brown fox", add_special_tokens=False).ids, eos]
    assert sample.labels == sample.input_ids
    assert sample.trained == sample.length
    assert sample.repairs == ()


def test_a_tokenizer_that_writes_bos_begins_a_document_with_it_once(build_model: Any) -> None:
    labeler = Labeler(build_model(add_bos_token=True))
    bos = labeler.tokenizer.token_to_id("<bos>")
    (sample,) = encode(labeler, "the fox")
    assert sample.input_ids[0] == bos
    assert sample.input_ids.count(bos) == 1


def test_without_an_end_token_a_document_just_ends(build_model: Any) -> None:
    labeler = Labeler(build_model(eos_token=None))
    (sample,) = encode(labeler, "the fox")
    assert sample.input_ids == labeler.tokenizer.encode("the fox", add_special_tokens=False).ids


@pytest.mark.parametrize("max_length", [8, 50, 99, 100, 101, 199, 200, 201, 202])
def test_a_long_document_becomes_pieces_that_together_are_all_of_it(labeler: Labeler, max_length: int) -> None:
    text = "".join(chr(97 + number % 26) + "#" for number in range(100))
    (whole,) = encode(labeler, text)
    pieces = encode(labeler, text, max_length)
    assert [token for piece in pieces for token in piece.input_ids] == whole.input_ids
    assert all(2 <= piece.length <= max_length for piece in pieces)
    assert all(piece.length + piece.left_out == whole.length for piece in pieces)
    assert not any(piece.truncated for piece in pieces)
    assert (RepairCode.DOCUMENT_SPLIT in pieces[0].repairs) == (whole.length > max_length)


def test_a_control_token_in_a_document_is_refused(labeler: Labeler) -> None:
    result = labeler.encode(document("one <eos> two"), "DomainAdaptation", 4096)
    assert isinstance(result, BadRow)
    assert result.code is RejectCode.CONTROL_TOKEN_IN_TEXT


def test_the_marks_of_the_fallback_template_are_plain_text_in_a_document(labeler: Labeler) -> None:
    assert encode(labeler, "<|im_start|>user")


def test_the_preview_of_a_document_is_all_trained(labeler: Labeler) -> None:
    assert labeler.preview(document("the fox")) == [("the fox", True)]


@pytest.mark.parametrize(
    ("max_length", "lengths"),
    [(67, [67, 67, 67]), (100, [100, 99, 2]), (200, [199, 2]), (199, [199, 2]), (201, [201]), (202, [201])],
)
def test_pieces_are_as_long_as_can_be_and_none_is_a_single_token(
    labeler: Labeler, max_length: int, lengths: list[int]
) -> None:
    text = "".join(chr(97 + number % 26) + "#" for number in range(100))
    assert [piece.length for piece in encode(labeler, text, max_length)] == lengths


def test_a_document_of_one_token_is_one_piece(build_model: Any) -> None:
    assert [piece.length for piece in encode(Labeler(build_model(eos_token=None)), "z", 1)] == [1]
