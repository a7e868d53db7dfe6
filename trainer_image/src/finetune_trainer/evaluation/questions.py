"""The prompts that the model answers before and after the training: those of the job, or of held-out rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from finetune_api.evaluation import Prompt
from finetune_trainer.data.checks.row_keys import prompt_key
from finetune_trainer.data.rows import ChatRow, Message, PreferenceRow, Row, UnpairedRow

DEFAULT_QUESTIONS = 3
LONGEST_QUESTION = 4096
"""Characters of all turns of a held-out row's prompt; longer ones are not shown."""


@dataclass(frozen=True, slots=True)
class Question:
    """The turns that the model answers; `reference` is the held-out row's own answer."""

    turns: list[Message]
    reference: str | None = None
    is_counted: bool = False
    """Whether the answer is compared with the reference and counted, and not shown."""

    @property
    def text(self) -> str:
        """The turns as people read them: one alone as it is, several with their roles."""
        if len(self.turns) == 1:
            return self.turns[0]["content"]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.turns)


def list_counted(held_out: Iterable[Row], most: int, is_comparable: Callable[[str], bool]) -> list[Question]:
    """Return the first held-out rows with different prompts whose answers can be compared with the rows' own.

    Prompts are those of the split and the verdict: answers to parts of one conversation are not independent.
    """
    found: dict[int, Question] = {}
    for row in held_out:
        if len(found) == most:
            break
        one = _of_row(row)
        if one and one.reference and is_comparable(one.reference):
            found.setdefault(prompt_key(row), replace(one, is_counted=True))
    return list(found.values())


def list_questions(asked: Sequence[Prompt] | None, held_out: Iterable[Row]) -> list[Question]:
    """Return `evaluation.prompts`, or the prompts of the first held-out rows if the job does not set them."""
    if asked is None:
        return list(islice(filter(None, map(_of_row, held_out)), DEFAULT_QUESTIONS))
    return [Question([*_system(one), Message(role="user", content=one.prompt)]) for one in asked]


def explain_missing_system(asked: Sequence[Prompt] | None, shared: Mapping[str, Any] | None) -> str | None:
    """Return which of `evaluation.prompts` lack the system text that almost all training rows have; None if none."""
    missing = [f"[{at}]" for at, one in enumerate(asked or ()) if not one.system]
    if not missing or not shared:
        return None
    *first, last = missing
    named = f"{', '.join(first)} and {last} have" if first else f"{last} has"
    share = f"{100 * shared['share']:.0f} % of the training rows"
    return f'{share} have the system text "{shared["begins"]}", and evaluation.prompts{named} none'


def _system(prompt: Prompt) -> list[Message]:
    return [Message(role="system", content=prompt.system)] if prompt.system else []


def _of_row(row: Row) -> Question | None:
    """Return the row's prompt with its answer; None of a row with tools, whose answers are calls."""
    match row:
        case ChatRow(messages=turns) if not row.tools and turns[-1]["role"] == "assistant":
            prompt, answer = turns[:-1], turns[-1:]
        case PreferenceRow(prompt=prompt, chosen=answer) if not row.tools:
            pass
        case UnpairedRow(prompt=prompt, completion=answer, label=True) if not row.tools:
            pass
        case _:
            return None
    if not prompt or sum(len(turn["content"]) for turn in prompt) > LONGEST_QUESTION:
        return None
    return Question(prompt, "\n\n".join(turn["content"] for turn in answer))
