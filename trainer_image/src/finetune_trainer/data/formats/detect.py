"""Detect the format of one row by its columns.

A new format is a `DataFormat`, a test in `_TESTS` at its place in the order, and a converter in convert.py.
"""

import functools
from collections.abc import Callable

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import (
    CHOSEN_COLUMNS,
    CONVERSATION_COLUMNS,
    INPUT_COLUMNS,
    INSTRUCTION_COLUMNS,
    LABEL_COLUMNS,
    OUTPUT_COLUMNS,
    RANKED_COLUMNS,
    REJECTED_COLUMNS,
    TEXT_COLUMNS,
    Columns,
    UnknownColumns,
    find_column,
)
from finetune_trainer.data.formats.judged_pairs import VERDICTS, find_judged_pair
from finetune_trainer.data.formats.ranked import is_ranked
from finetune_trainer.data.rows import DataFormat

# Rows with one of these columns compare or rate answers; the other columns contain the prompt.
_JUDGED = frozenset((*CHOSEN_COLUMNS, *REJECTED_COLUMNS, *LABEL_COLUMNS, *VERDICTS))
_ANSWERS_OF_PAIRS = frozenset((*CHOSEN_COLUMNS, *REJECTED_COLUMNS))
_LABELS = frozenset(LABEL_COLUMNS)
_CONVERSATIONS = frozenset(CONVERSATION_COLUMNS)
_ANSWERS = frozenset(OUTPUT_COLUMNS)
_INSTRUCTIONS = frozenset(INSTRUCTION_COLUMNS)
_QUESTIONS = frozenset((*INSTRUCTION_COLUMNS, *INPUT_COLUMNS))
_BESIDE_PROMPTS = frozenset((*INPUT_COLUMNS, "instruction", "history"))
_TEXTS = frozenset(TEXT_COLUMNS)
# Texts in these may hold a list, whose content decides; for rows of other texts, the names of the columns do.
_READ_AS_LISTS = frozenset((*CONVERSATION_COLUMNS, *RANKED_COLUMNS))


def detect_format(row: Columns) -> DataFormat:
    """Return the row's format; raises BadRow with UNKNOWN_FORMAT."""
    if _READ_AS_LISTS.isdisjoint(row) and set(map(type, row.values())) == {str}:
        found = _find_format_of_texts(tuple(row))
    elif None in row.values():  # a table has every column in every row, so null columns are ignored
        found = _find_format({name: value for name, value in row.items() if value is not None}) or _find_format(row)
    else:
        found = _find_format(row)
    if found is None:
        raise UnknownColumns(RejectCode.UNKNOWN_FORMAT, "the columns match no known format")
    return found


@functools.lru_cache(1024)
def _find_format_of_texts(columns: tuple[str, ...]) -> DataFormat | None:
    return _find_format(dict.fromkeys(columns, "a text"))


def _find_format(row: Columns) -> DataFormat | None:
    tests = _TESTS if _JUDGED.isdisjoint(row) else _JUDGED_TESTS + _TESTS
    for name, matches in tests:
        if matches(row):
            return name
    return None


def uses_role_and_content(row: Columns) -> bool:
    """Return whether the first turn has OpenAI's keys and not ShareGPT's, whatever the column's name."""
    turns = row.get(find_column(row, CONVERSATION_COLUMNS) or "")
    if isinstance(turns, str):
        start = turns[:400]
        return "role" in start and not any(f"{quote}from{quote}" in start for quote in "'\"")
    if isinstance(turns, dict):
        return "role" in turns
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "role" in turns[0] or ("content" in turns[0] and "from" not in turns[0])
    return "messages" in row


def is_ranked_output(row: Columns) -> bool:
    """Return whether the output is a better and a worse answer, as in older LLaMA-Factory files."""
    answers = row.get("output")
    return isinstance(answers, list) and len(answers) == 2 and all(isinstance(answer, str) for answer in answers)


def _has(row: Columns, names: frozenset[str]) -> bool:
    return not names.isdisjoint(row)


def _is_prompt_completion(row: Columns) -> bool:
    if "prompt" not in row or not _has(row, _ANSWERS):
        return False
    if isinstance(row["prompt"], list):
        return True
    return "completion" in row and not _has(row, _BESIDE_PROMPTS)


_Tests = tuple[tuple[DataFormat, Callable[[Columns], bool]], ...]

_JUDGED_TESTS: _Tests = (
    (DataFormat.PREFERENCE, lambda row: _has(row, _ANSWERS_OF_PAIRS) or find_judged_pair(row) is not None),
    (DataFormat.UNPAIRED, lambda row: _has(row, _LABELS) and (_has(row, _ANSWERS) or _has(row, _CONVERSATIONS))),
)
_TESTS: _Tests = (
    (DataFormat.OPENAI, lambda row: _has(row, _CONVERSATIONS) and uses_role_and_content(row)),
    (DataFormat.SHAREGPT, lambda row: _has(row, _CONVERSATIONS)),
    (DataFormat.PREFERENCE, lambda row: is_ranked_output(row) or (is_ranked(row) and not _has(row, _ANSWERS))),
    (DataFormat.PROMPT_COMPLETION, _is_prompt_completion),
    (DataFormat.ALPACA, lambda row: _has(row, _ANSWERS) and _has(row, _QUESTIONS)),
    (DataFormat.TEXT, lambda row: _has(row, _TEXTS)),
    (DataFormat.PROMPT_COMPLETION, lambda row: "prompt" in row),
    (DataFormat.ALPACA, lambda row: _has(row, _INSTRUCTIONS)),
)
