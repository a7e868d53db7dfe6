"""The tokens that end an answer: the model's own, and the one that ends most training answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune_trainer.data.rows import DataFormat, Source, TextRow
from finetune_trainer.evaluation.generate import stop_token_ids
from finetune_trainer.tokenization.labeler import Labeler


def test_the_end_of_a_piece_of_a_long_document_ends_no_answer(model_folder: Path) -> None:
    labeler = Labeler(model_folder)
    long = TextRow("The sky is blue, and the sea is blue, and so forth, " * 200, Source("a", 1), DataFormat.TEXT)
    samples = labeler.encode(long, "DomainAdaptation", 32)
    assert len(samples) > 9
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=2))
    assert stop_token_ids(model, samples) == [2]
