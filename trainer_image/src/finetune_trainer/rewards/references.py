"""What of a row the rewards compare answers with: kept, and checked, when the rows are read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.rewards import AnswerReward, Match, Reward
from finetune_api.text.printable import printable
from finetune_trainer.data.formats.columns import follow_path, name_columns
from finetune_trainer.data.formats.fields import read_text
from finetune_trainer.data.rows import BadRow, PromptRow, Reference
from finetune_trainer.rewards.matching import Matcher

MOST_REFERENCES = 64
"""Correct answers of one row."""
SHOWN_CHARACTERS = 40
WRITTEN_INTEGERS = range(-(2**63), 2**64)
"""Integers that a row can be written with."""


class References:
    """Keeps the references of a job's rewards in its rows; rejects rows without them. Raises InvalidConfig."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._compared: list[tuple[str, AnswerReward, Matcher]] = [
            (name, one.answer, Matcher(one.answer, name))
            for name, one in ((f"rlhf.rewards[{at}].answer", one) for at, one in enumerate(rewards))
            if one.answer is not None and one.answer.json_schema is None
        ]
        self._posted = [
            (f"rlhf.rewards[{at}].service", one.service) for at, one in enumerate(rewards) if one.service is not None
        ]

    @classmethod
    def of(cls, rewards: Sequence[Reward]) -> Self | None:
        """Return the references of these rewards; None if none of them reads a row."""
        found = cls(rewards)
        return None if found.is_empty else found

    @property
    def is_empty(self) -> bool:
        """Whether no reward reads the row."""
        return not self._compared and not self._posted

    def keep(self, row: PromptRow, answer: str | None, columns: Mapping[str, Any]) -> PromptRow:
        """Return the prompt with its reference; raises BadRow with NO_REFERENCE."""
        kept = self._collect(answer, columns)
        for name, settings, matcher in self._compared:
            for text in read_references(kept, settings):
                if fault := matcher.find_fault(text):
                    detail = f"the reference {printable(text[:SHOWN_CHARACTERS])!r} {fault}"
                    raise BadRow(RejectCode.NO_REFERENCE, f"{detail}: correct the row, or change match in {name}")
        repairs = row.repairs
        if "answer" in kept:
            repairs = tuple(code for code in repairs if code is not RepairCode.ANSWER_UNUSED)
        return replace(row, reference=kept, repairs=repairs)

    def _collect(self, answer: str | None, columns: Mapping[str, Any]) -> Reference:
        kept: Reference = {}
        for name, settings, _ in self._compared:
            if settings.column is not None:
                _keep_column(kept, columns, settings.column, f"{name}.column")
            elif answer is None or not answer.strip():
                raise BadRow(RejectCode.NO_REFERENCE, _explain_missing_answer(name, columns))
            else:
                kept["answer"] = answer
        for name, service in self._posted:
            for column in service.columns or ():
                _keep_column(kept, columns, column, f"{name}.columns")
            if answer is not None:
                kept["answer"] = answer
        return kept


def _keep_column(kept: Reference, columns: Mapping[str, Any], column: str, field: str) -> None:
    try:
        value = follow_path(columns, column)
    except KeyError:
        value = None
    if value is None:
        raise BadRow(RejectCode.NO_REFERENCE, _explain_missing_column(field, column, columns))
    kept.setdefault("columns", {})[column] = _keep_digits(value)


def _keep_digits(value: Any) -> Any:
    """Return an integer above 64 bits, with which a row cannot be written, as a text; also those of a list."""
    if isinstance(value, list):
        return [_keep_digits(one) for one in value]
    return str(value) if isinstance(value, int) and value not in WRITTEN_INTEGERS else value


def read_references(kept: Reference, settings: AnswerReward) -> list[str]:
    """Return the correct answers of a row: its own answer, or the texts of a column; raises BadRow."""
    if settings.column is None:
        return [kept["answer"]] if "answer" in kept else []
    value = kept.get("columns", {}).get(settings.column)
    values = value if isinstance(value, list) else [value]
    if not 1 <= len(values) <= MOST_REFERENCES:
        detail = f"{printable(settings.column)} has {len(values)} references: give 1 to {MOST_REFERENCES}"
        raise BadRow(RejectCode.NO_REFERENCE, detail)
    return [_read_reference(one, settings) for one in values]


def _read_reference(value: Any, settings: AnswerReward) -> str:
    takes_objects = settings.match in {Match.JSON, Match.JSON_SCHEMA}
    try:
        if takes_objects and isinstance(value, dict | list):
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        return read_text(value, printable(settings.column or ""), set())
    except (BadRow, TypeError, ValueError, RecursionError) as bad:
        wanted = "a text, an object, or a list of them" if takes_objects else "a text, a number, or a list of them"
        detail = bad.detail if isinstance(bad, BadRow) else f"{printable(settings.column or '')} is not JSON"
        raise BadRow(RejectCode.NO_REFERENCE, f"{detail}: give {wanted}") from None


def _explain_missing_answer(name: str, columns: Mapping[str, Any]) -> str:
    return (
        f"the row has no answer for {name}: map its column in dataset.columns, for example {{answer: YOURS}}, or name "
        f"it in {name}.column; columns found: {name_columns(columns)}"
    )


def _explain_missing_column(field: str, column: str, columns: Mapping[str, Any]) -> str:
    return f"{field} names {printable(column)!r}, which the row does not have; columns found: {name_columns(columns)}"
