"""The tokens that end an answer: the model's own, and the one that ends most training answers."""

from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune_trainer.data.rows import DataFormat, Source, TextRow
from finetune_trainer.evaluation.generate import stop_token_ids
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.samples import Encoded


def test_the_end_of_a_piece_of_a_long_document_ends_no_answer(model_folder: Path) -> None:
    labeler = Labeler(model_folder)
    long = TextRow("The sky is blue, and the sea is blue, and so forth, " * 200, Source("a", 1), DataFormat.TEXT)
    samples = labeler.encode(long, "DomainAdaptation", 32)
    assert len(samples) > 9
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    assert stop_token_ids(model, samples) == [2]


def test_the_end_of_most_answers_is_found_without_reading_all_of_them() -> None:
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    answers = cycle([Encoded([1, 5, 7], [-100, 5, 7], 2), Encoded([1, 7], [-100, 7], 1), Encoded([1, 9], [-100, 9], 1)])
    assert stop_token_ids(model, answers) == [2, 7]


def test_no_token_ends_an_answer_if_neither_the_model_nor_a_whole_answer_has_one() -> None:
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    assert stop_token_ids(model, [Encoded([1, 5, 7], [-100, 5, 7], 1, truncated=True)]) == []
