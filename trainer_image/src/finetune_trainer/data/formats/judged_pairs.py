"""Pairs of answers in columns of their own, with a number that states which is better, as some public datasets have
them."""

from collections.abc import Callable
from typing import NamedTuple

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import Columns
from finetune_trainer.data.readers.json_row import name_type
from finetune_trainer.data.rows import BadRow


class JudgedPair(NamedTuple):
    """The columns of two answers and of the number; `order` is below 0 if the first is better, and above if not."""

    first: str
    second: str
    verdict: str
    order: Callable[[float], float]


JUDGED_PAIRS = (
    JudgedPair("response_1", "response_2", "preference_strength", lambda strength: strength),  # HelpSteer2
    JudgedPair("response1", "response2", "overall_preference", lambda strength: strength),  # HelpSteer3
    JudgedPair("response_0", "response_1", "better_response_id", lambda better: better - 0.5),  # PKU-SafeRLHF
    JudgedPair("human_ref_A", "human_ref_B", "labels", lambda is_first: 0.5 - is_first),  # SHP
)
VERDICTS = frozenset(pair.verdict for pair in JUDGED_PAIRS)


def find_judged_pair(row: Columns) -> JudgedPair | None:
    """Return which of the known pairs the row has."""
    return next((pair for pair in JUDGED_PAIRS if row.keys() >= {pair.first, pair.second, pair.verdict}), None)


def order_pair(row: Columns, pair: JudgedPair) -> tuple[str, str]:
    """Return the columns of the better and of the worse answer; raises BadRow."""
    number = row[pair.verdict]
    if not isinstance(number, int | float):
        raise BadRow(RejectCode.WRONG_TYPE, f"{pair.verdict} is {name_type(number)} instead of a number")
    order = pair.order(number)
    if not order:
        raise BadRow(RejectCode.SAME_PAIR, f"{pair.verdict} is {number}: neither answer is better")
    return (pair.first, pair.second) if order < 0 else (pair.second, pair.first)
