"""Similarities of texts: known values of rapidfuzz's ratio and of ROUGE, also for odd and very long texts."""

import time
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_api.rewards import Reward, Similarity
from finetune_trainer.data.rows import BadRow, DataFormat, Message, PromptRow, Reference, Source
from finetune_trainer.rewards.completion import Completion
from finetune_trainer.rewards.computed import ComputedRewards
from finetune_trainer.rewards.references import References
from finetune_trainer.rewards.similarity import LONGEST_TEXT, measure_similarity

FOX, DOG = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."


def score(text: str, reference: Reference, similarity: str = "FuzzyMatch", **answer: Any) -> float:
    settings = {"match": "Similar", "similarity": similarity} | answer
    rewards = ComputedRewards([Reward.model_validate({"type": "Answer", "answer": settings})])
    (found,) = rewards([Completion([Message(role="user", content="?")], text, 1, ended=True, reference=reference)])
    return found


@pytest.mark.parametrize(
    ("how", "answer", "reference", "expected"),
    [
        ("FuzzyMatch", "this is a test!", "this is a test", 28 / 29),  # one of 15 + 14 characters is deleted
        ("FuzzyMatch", "Paris", "paris", 8 / 10),
        ("FuzzyMatch", "abc", "xyz", 0.0),
        ("FuzzyMatch", " Paris\n", "Paris", 1.0),
        ("FuzzyMatch", "e\u0301", "é", 1.0),
        ("Rouge1", FOX, DOG, 2 * 6 / (9 + 8)),  # the, quick, brown, jumps, the, dog
        ("Rouge2", FOX, DOG, 2 * 2 / (8 + 7)),  # the quick, quick brown
        ("RougeL", FOX, DOG, 2 * 5 / (9 + 8)),  # the quick brown jumps the
        ("RougeL", "police killed the gunman", "the gunman killed police", 2 * 2 / (4 + 4)),
        ("Rouge1", "police killed the gunman", "the gunman killed police", 1.0),
        ("Rouge1", "the the the the", "the cat", 2 * 1 / (4 + 2)),
        ("Rouge1", "STRASSE, 7!", "strasse 7", 1.0),
        ("Rouge1", "Où est la gare ?", "où est la Gare", 1.0),
        ("Rouge2", "yes", "yes sir", 0.0),
        ("RougeL", "", "yes", 0.0),
        ("Rouge1", "...", "yes", 0.0),
        ("FuzzyMatch", "", "yes", 0.0),
    ],
)
def test_a_similarity_has_its_known_value(how: str, answer: str, reference: str, expected: float) -> None:
    assert score(answer, Reference(answer=reference), how) == pytest.approx(expected)


def test_of_several_references_the_most_similar_counts() -> None:
    row = Reference(columns={"gold": ["United Kingdom", "UK"]})
    assert score("UK", row, column="gold") == 1.0
    assert score("U", row, column="gold") == pytest.approx(2 / 3)


def test_the_part_of_an_answer_that_is_extracted_is_compared() -> None:
    part = {"extract": "Pattern", "pattern": "<answer>(.*?)</answer>"}
    assert score("I think. <answer>Paris</answer>", Reference(answer="Paris"), **part) == 1.0
    assert score("Paris", Reference(answer="Paris"), **part) == 0.0


@pytest.mark.parametrize(
    ("how", "reference", "fault"),
    [
        ("FuzzyMatch", " ", "the row has no answer"),
        ("Rouge1", "...", "has 0 words, of at least 1"),
        ("RougeL", "?", "has 0 words, of at least 1"),
        ("Rouge2", "Paris", "has 1 words, of at least 2"),
        ("FuzzyMatch", "a" * (LONGEST_TEXT + 1), "is longer than 65,536 characters"),
    ],
)
def test_a_reference_that_nothing_is_similar_to_rejects_its_row(how: str, reference: str, fault: str) -> None:
    reward = Reward.model_validate({"type": "Answer", "answer": {"match": "Similar", "similarity": how}})
    row = PromptRow([Message(role="user", content="?")], Source("rows.jsonl", 1), DataFormat.OPENAI)
    with pytest.raises(BadRow) as bad:
        References([reward]).keep(row, reference, {})
    assert bad.value.code is RejectCode.NO_REFERENCE
    assert fault in str(bad.value.detail)


@pytest.mark.parametrize("how", list(Similarity))
@pytest.mark.parametrize("text", ["ab " * 400_000, "a" * 1_000_000, "\u0301" * 1_000_000, "\u2603 " * 400_000])
def test_the_time_and_the_value_are_bounded_for_any_answer(how: Similarity, text: str) -> None:
    began = time.process_time()
    assert 0 <= measure_similarity(text, "ba ab " * 10_000, how) <= 1
    assert time.process_time() - began < 3
