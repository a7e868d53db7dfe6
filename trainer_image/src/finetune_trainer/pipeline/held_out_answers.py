"""The held-out rows of `evaluation.answers`, and how many answers to them are correct."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.rows import Row
from finetune_trainer.evaluation.ability import Ability
from finetune_trainer.evaluation.held_out_answers import SHOWN, FrequentAnswer, HeldOutAnswers, WrongAnswer
from finetune_trainer.evaluation.questions import Question, list_counted
from finetune_trainer.rewards.matching import Matcher

logger = logging.getLogger(__name__)

FIELD = "evaluation.answers"


def list_counted_rows(spec: FineTuneJobSpec, held_out: Iterable[Row]) -> list[Question]:
    """Return the held-out rows to answer and to count; none if the job does not ask for it."""
    asked = spec.evaluation.answers
    if asked is None:
        return []
    matcher = Matcher(asked.as_reward(), FIELD)
    return list_counted(held_out, asked.rows, lambda reference: matcher.find_fault(reference) is None)


def explain_incomparable(spec: FineTuneJobSpec, held_out: Iterable[Row]) -> str | None:
    """Return why no answer can be counted, or None: no held-out row has an answer that the job's match can read."""
    asked = spec.evaluation.answers
    if asked is None or list_counted_rows(spec, held_out):
        return None
    return (
        f"{FIELD}: no held-out row has an answer in text that match {asked.match.value} can be compared with, and a "
        "prompt of at most 4,096 characters without tools: choose another match, or remove it"
    )


def count_correct(
    spec: FineTuneJobSpec, questions: Sequence[Question], before: Sequence[str], after: Sequence[str]
) -> HeldOutAnswers | None:
    """Return which answers to the counted questions are correct; None without any, or in a process without answers."""
    asked = spec.evaluation.answers
    if asked is None or not len(questions) == len(before) == len(after):
        return None
    matcher, found, wrong = Matcher(asked.as_reward(), FIELD), Ability([], []), list[WrongAnswer]()
    answers, references = Counter[str](), Counter[str]()
    for question, old, new in zip(questions, before, after, strict=True):
        if not question.is_counted or question.reference is None:
            continue
        found.before.append(_is_correct(matcher, old, question.reference))
        found.after.append(_is_correct(matcher, new, question.reference))
        answers[new.strip()] += 1
        references[question.reference.strip()] += 1
        if not found.after[-1] and len(wrong) < SHOWN:
            wrong.append(WrongAnswer(question.text, question.reference, new))
    if not found.after:
        return None
    (text, rows), (_, shared) = *answers.most_common(1), *references.most_common(1)
    return HeldOutAnswers(found, wrong, FrequentAnswer(text, rows, shared))


def _is_correct(matcher: Matcher, answer: str, reference: str) -> bool:
    try:
        return bool(matcher.score(answer, [reference]))
    except TimeoutError:
        logger.warning("%s.pattern takes too long in an answer, which counts as wrong", FIELD)
        return False
