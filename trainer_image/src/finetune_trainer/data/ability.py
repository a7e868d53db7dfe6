"""Multiple-choice questions on general ability: the rows of `evaluation.ability`, checked and chosen."""

import random
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from finetune_api.dataset.codes import RejectCode
from finetune_api.handoff import ExitCode
from finetune_trainer.data.formats.fields import parse_nested
from finetune_trainer.data.readers.rows_of_file import RowFile
from finetune_trainer.data.rows import BadRow, NamedPath, UnreadableFile
from finetune_trainer.errors import TrainerError

FEWEST_CHOICES, MOST_CHOICES = 2, 26
LONGEST_TEXT = 8192
"""Characters of a question, and of a choice."""
MOST_QUESTIONS = 200_000
"""Rows of a file that are read; MMLU has 14,042 in its test split."""
SHAPES = "question, choices (a list of texts) and answer (index or letter); or question, choices.text and answerKey"
COLUMNS = ({"question", "question_stem"}, {"choices"}, {"answer", "answerKey"})
"""A row has one of each."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its choices; `correct` is the index of the correct one, from 0."""

    question: str
    choices: list[str]
    correct: int


def choose_questions(source: NamedPath, count: int, seed: int) -> list[Question]:
    """Read and check every question of a file, and return at most `count` of them, chosen by the seed.

    Raises DatasetUnusable at the first bad row: a question that is left out changes what the figures mean.
    """
    found: list[Question] = []
    try:
        for record in RowFile(source).records():
            if len(found) == MOST_QUESTIONS:
                raise _unusable(source, f"it has more than {MOST_QUESTIONS:,} questions")
            if record.value is None:
                raise _unusable(source, f"line {record.line}: {record.problem.detail if record.problem else 'empty'}")
            try:
                found.append(parse_question(record.value))
            except ValueError as error:
                raise _unusable(source, f"line {record.line}: {error}") from None
    except UnreadableFile as error:
        raise _unusable(source, str(error)) from None
    if not found:
        raise _unusable(source, "it has no question")
    if len(found) <= count:
        return found
    chosen = sorted(random.Random(seed).sample(range(len(found)), count))  # noqa: S311 - a choice, not a secret
    return [found[at] for at in chosen]


def parse_question(row: Mapping[str, Any]) -> Question:
    """Parse a row as MMLU, ARC or OpenBookQA have it; raises ValueError with the field and the fix."""
    if not all(row.keys() & names for names in COLUMNS):
        raise ValueError(f"needs the columns {SHAPES}; it has {', '.join(map(str, list(row)[:10])) or 'none'}")
    question = row.get("question", row.get("question_stem"))
    choices, labels = _choices(row["choices"])
    answer = row.get("answer", row.get("answerKey"))
    if not FEWEST_CHOICES <= len(choices) <= MOST_CHOICES:
        shown = reprlib.repr(row["choices"])
        raise ValueError(f"choices has {len(choices)} texts: give {FEWEST_CHOICES} to {MOST_CHOICES}; it is {shown}")
    for name, text in [("question", question), *((f"choices[{at}]", one) for at, one in enumerate(choices))]:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is not a text: {reprlib.repr(text)}")
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{name} has {len(text):,} characters, more than {LONGEST_TEXT:,}: shorten it")
    if len(set(choices)) < len(choices):
        raise ValueError("two of its choices are equal: make them different")
    return Question(question.strip(), [one.strip() for one in choices], _correct(answer, labels))


def _choices(value: Any) -> tuple[list[Any], list[str]]:
    """Return the texts and their labels, by default letters; a text, as in CSV, is read as JSON or a Python literal."""
    try:
        found = parse_nested(value, "choices", RejectCode.WRONG_TYPE) if isinstance(value, str) else value
    except BadRow:
        found = None
    if isinstance(found, list):
        return found, [chr(ord("A") + at) for at in range(len(found))]
    if isinstance(found, Mapping):
        texts, labels = found.get("text"), found.get("label")
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return texts, [str(label) for label in labels]
    raise ValueError(
        f"choices is {reprlib.repr(value)}: give a list of texts, or the lists text and label of one length; in a text "
        'cell as JSON, for example ["3", "4"]'
    )


def _correct(answer: Any, labels: list[str]) -> int:
    """Return the index of the correct choice, given as a label or as an index."""
    text = str(answer)
    if not isinstance(answer, bool) and text in labels:
        return labels.index(text)
    if not isinstance(answer, bool) and text.isdecimal() and int(text) < len(labels):
        return int(text)
    raise ValueError(f"answer is {answer!r:.20}: give one of {', '.join(labels)} or its index, 0 to {len(labels) - 1}")


def write_questions(path: Path, questions: list[Question]) -> None:
    """Write the chosen questions as JSON lines."""
    lines = (orjson.dumps(asdict(one), option=orjson.OPT_APPEND_NEWLINE) for one in questions)
    path.write_bytes(b"".join(lines))


def read_questions(path: Path) -> Iterator[Question]:
    """Yield the questions that `write_questions` wrote."""
    with path.open("rb") as file:
        for line in file:
            yield Question(**orjson.loads(line))


def _unusable(source: NamedPath, why: str) -> TrainerError:
    return TrainerError(
        ExitCode.DATASET_UNUSABLE, f"{source.name}: {why}: correct the file, or name another in evaluation.ability.uri"
    )
