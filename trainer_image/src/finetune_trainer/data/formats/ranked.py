"""Convert ranked answers: several answers to one prompt, each with a rank or a score."""

from typing import Any

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import (
    OUTPUT_COLUMNS,
    RANK_COLUMNS,
    RANKED_COLUMNS,
    SCORE_COLUMNS,
    Columns,
    find_column,
    has_value,
)
from finetune_trainer.data.formats.fields import Repairs, read_list, read_text
from finetune_trainer.data.readers.json_row import name_type
from finetune_trainer.data.rows import BadRow, Message

MAX_RANKED = 16
_TEXTS = (*OUTPUT_COLUMNS, "content", "text", "value")
_RANKS, _SCORES = ("rank",), ("score", "overall_score", "rating")

Turns = list[Message]


def is_ranked(row: Columns) -> bool:
    """Return whether the row has several answers and their order; a list of answers without one is no ranking."""
    answers = row.get(find_column(row, RANKED_COLUMNS) or "")
    if has_value(row, (*RANK_COLUMNS, *SCORE_COLUMNS)):
        return isinstance(answers, list) or (isinstance(answers, str) and answers.lstrip().startswith("["))
    return isinstance(answers, list) and bool(answers) and all(map(_is_judged, answers))


def read_ranked(row: Columns, repairs: Repairs) -> tuple[Turns, list[Turns]]:
    """Return the best answer and those that are worse, from the second best on; raises BadRow.

    Answers as good as the best are left out: they are no worse answers to it.
    """
    column = find_column(row, RANKED_COLUMNS) or ""
    texts, order = _judge(row, read_list(row[column], column, RejectCode.WRONG_TYPE), column)
    if not 1 < len(texts) <= MAX_RANKED:
        detail = f"the row ranks {len(texts)} answers; from 2 to {MAX_RANKED} are possible"
        raise BadRow(RejectCode.WRONG_TYPE, detail)
    found = [[Message(role="assistant", content=read_text(text, "an answer", repairs))] for text in texts]
    ranked = sorted(range(len(found)), key=order.__getitem__)
    best = ranked[0]
    worse = [found[at] for at in ranked if order[at] > order[best]]
    if not worse:
        raise BadRow(RejectCode.SAME_PAIR, f"all {len(texts)} answers have the same rank or score")
    return found[best], worse


def _is_judged(answer: object) -> bool:
    return isinstance(answer, dict) and has_value(answer, (*_RANKS, *_SCORES)) and has_value(answer, _TEXTS)


def _judge(row: Columns, answers: list[Any], column: str) -> tuple[list[Any], list[float]]:
    """Return the answers' texts, and for each a number that is lowest for the best."""
    if answers and all(map(_is_judged, answers)):
        texts = [answer[find_column(answer, _TEXTS) or ""] for answer in answers]
        by_rank = all(has_value(answer, _RANKS) for answer in answers)
        numbers = [answer.get(find_column(answer, _RANKS if by_rank else _SCORES) or "") for answer in answers]
        where = f"the {'rank' if by_rank else 'score'} of an answer in {column}"
        return texts, [_number(number, where) * (1 if by_rank else -1) for number in numbers]
    by_rank = has_value(row, RANK_COLUMNS)
    place = find_column(row, RANK_COLUMNS if by_rank else SCORE_COLUMNS)
    if place is None:
        raise BadRow(RejectCode.MISSING_COLUMN, f"{column} has answers without a rank or a score")
    numbers = read_list(row[place], place, RejectCode.WRONG_TYPE)
    if len(numbers) != len(answers):
        detail = f"{column} has {len(answers)} answers, but {place} has {len(numbers)} numbers"
        raise BadRow(RejectCode.WRONG_TYPE, detail)
    return answers, [_number(number, place) * (1 if by_rank else -1) for number in numbers]


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(RejectCode.WRONG_TYPE, f"{where} is {name_type(value)} instead of a number")
    return float(value)
