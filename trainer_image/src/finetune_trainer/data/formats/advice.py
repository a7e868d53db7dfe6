"""Suggest which of a row's columns are its question, answer, turns or text, for rows that no format fits."""

from collections.abc import Iterable, Iterator

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import (
    ALIASES,
    CHOICE_COLUMNS,
    CLASS_COLUMNS,
    CONTENT_KEYS,
    CONVERSATION_COLUMNS,
    INPUT_COLUMNS,
    INSTRUCTION_COLUMNS,
    KNOWN_COLUMNS,
    MAX_NAME_CHARACTERS,
    OUTPUT_COLUMNS,
    RANKED_COLUMNS,
    ROLE_KEYS,
    SYSTEM_COLUMNS,
    TOOL_COLUMNS,
    Columns,
    find_filled,
    is_empty,
    is_metadata,
    is_misnamed,
)
from finetune_trainer.data.formats.fields import parse_nested
from finetune_trainer.data.formats.turns import ROLES
from finetune_trainer.data.rows import BadRow

YOURS = "YOURS"
_OPTIONAL = (*INPUT_COLUMNS, *SYSTEM_COLUMNS, *TOOL_COLUMNS, "history")
_SPEAKERS = {"question": "user", "answer": "assistant"}
_NAMED_PAIRS = (
    *(("inputs", "targets"), ("source", "target")),
    *(("input_text", "output_text"), ("input_text", "target_text")),
)
"""Of FLAN, P3 and Aya, of translations, of PaLM, and of files for T5."""
_AS_COLUMNS = {"question": "prompt", "answer": "answer"}
_ANSWERS_INSIDE = ("choices.0.message", "answers.text.0")
DEEPEST_PATH = 4
"""Dots of a path that is suggested."""
_CHOICES = frozenset(CHOICE_COLUMNS)
_WORKED = ("solution", *OUTPUT_COLUMNS[OUTPUT_COLUMNS.index("answer") + 1 :])
LONGEST_NUMBER = 40
"""Characters; a longer text is not read as a number."""


def suggest_columns(row: Columns, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return the known names that the row lacks, each with the column that probably has it, or with YOURS.

    It is empty if the row has no column that could have one.
    """
    absent = [name for name in wanted if not _has_alias(row, name)]
    paths = _find_paths(row)
    if not paths.keys().isdisjoint(CONVERSATION_COLUMNS[:1]) or (paths and _has_alias(row, CONVERSATION_COLUMNS[0])):
        return paths
    own = [name for name in row if name not in KNOWN_COLUMNS or is_misnamed(name, row[name])]
    own = [name for name in own if not is_metadata(name)]
    if "question" in absent and (pair := _find_speakers(row, own)):
        return {_AS_COLUMNS[name]: column for name, column in pair.items()} | _match_optional(row, own)
    turns = next((name for name in own if _may_be_turns(row[name])), None)
    if turns and absent == list(wanted) and not _has_alias(row, CONVERSATION_COLUMNS[0]):
        return {CONVERSATION_COLUMNS[0]: turns}
    found = _match_names(row, own, absent) | {name: path for name, path in paths.items() if name in absent}
    missing = [name for name, column in found.items() if column is YOURS]
    texts = [name for name in own if name not in found.values() and _is_text(row[name])]
    found |= _guess(row, missing, texts, None if "label" in wanted else find_class(row))
    if not own and set(found.values()) == {YOURS}:
        return {}
    return found | _match_optional(row, own)


def _match_names(row: Columns, own: list[str], absent: list[str]) -> dict[str, str]:
    """Return for each absent name the column whose name differs in case, or YOURS."""
    named = {known: name for name in own if (known := _normalise(name)) in KNOWN_COLUMNS}
    found: dict[str, str] = {}
    for name in absent:
        alias = next((known for known in named if known in _aliases_of(name)), None)
        if alias is not None:
            found[alias] = named[alias]
        elif name == "question" and (text := named.get("text") or _find_text_of_turns(row)):
            found["prompt"] = text
        else:
            found[name] = YOURS
    return found


def _find_speakers(row: Columns, own: list[str]) -> dict[str, str]:
    """Return the columns of a question and its answer that are named as their speakers; none if one of them is not."""
    unknown = [name for name in own if _normalise(name) not in KNOWN_COLUMNS and _is_text(row[name])]
    by_role = {ROLES.get(_normalise(name)): name for name in unknown}
    found = {name: by_role[role] for name, role in _SPEAKERS.items() if role in by_role}
    if len(found) == len(_SPEAKERS):
        return found
    pair = next((pair for pair in _NAMED_PAIRS if all(_is_text(row.get(name)) for name in pair)), ())
    return dict(zip(_SPEAKERS, pair, strict=False))


def _find_paths(row: Columns) -> dict[str, str]:
    """Return the paths to turns, or to an answer, that are inside columns, as in logs of requests and in SQuAD."""
    found: dict[str, str] = {}
    for path, value in _walk(row, ""):
        if "." in path and path.rpartition(".")[2] in CONVERSATION_COLUMNS and _may_be_turns(value):
            found.setdefault(CONVERSATION_COLUMNS[0], path)
        elif path.endswith(_ANSWERS_INSIDE):
            found.setdefault("answer", path)
    return found


def _walk(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the values inside of objects, and the first ones of arrays, with their paths."""
    if path.count(".") >= DEEPEST_PATH:
        return
    inside: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value[:1])
    for key, one in inside:
        name = str(key)
        if len(name) <= MAX_NAME_CHARACTERS and "." not in name:
            below = f"{path}.{name}" if path else name
            yield below, one
            yield from _walk(one, below)


def _find_text_of_turns(row: Columns) -> str | None:
    """Return a column that is named as one of turns, but has a text."""
    return next((name for name in CONVERSATION_COLUMNS if _is_text(row.get(name))), None)


def _match_optional(row: Columns, own: list[str]) -> dict[str, str]:
    """Return the columns whose names differ in case from those of what may be added to a question."""
    named = {_normalise(name): name for name in own if not is_empty(row[name])}
    return {known: named[known] for known in _OPTIONAL if known in named and not _has_alias(row, known)}


def _guess(row: Columns, missing: list[str], texts: list[str], label: str | None) -> dict[str, str]:
    """Return columns for the missing names, if it is clear which of the texts, or the class, each of them is."""
    if label is not None and label in texts and len(texts) == len(missing) == 2 and "answer" in missing:
        (other,) = (name for name in texts if name != label)
        return {name: label if name == "answer" else other for name in missing}
    if len(texts) == len(missing) == 1:
        return {missing[0]: texts[0]}
    if missing != ["answer"] or texts:
        return {}
    judges = label is not None and isinstance(row[label], bool)
    column = next((name for name in RANKED_COLUMNS if _is_text(row.get(name))), None if judges else label)
    return {} if column is None else {"answer": column}


def explain_turn(row: Columns) -> str:
    """Return what to do with a row that is one turn of a conversation; empty if it is not."""
    role = next((row[key] for key in ROLE_KEYS if key in row), None)
    if not isinstance(role, str) or _normalise(role) not in ROLES or row.keys().isdisjoint(CONTENT_KEYS):
        return ""
    return "each row is one turn: write the turns of a conversation into one row, as an array in messages"


def find_class(row: Columns) -> str | None:
    """Return the column of a class or of an answer under its usual name, in any case; None if none has content."""
    by_name = {_normalise(name): name for name in row}
    for known in (*CLASS_COLUMNS, *OUTPUT_COLUMNS):
        value = row.get(column := by_name.get(known, known))
        if isinstance(value, str | int | float) and not is_empty(value):
            return column
    return None


def explain_several_answers(row: Columns) -> str:
    """Return what a column of answers has in place of one answer; empty if the row has no such column."""
    column = find_filled(row, RANKED_COLUMNS)
    value = row[column] if column else None
    if "answer" in _find_paths(row):
        return ""
    start = value.lstrip()[:1] if isinstance(value, str) else ""
    as_calls = "; write calls of tools as turns in messages" if find_filled(row, TOOL_COLUMNS) else ""
    if isinstance(value, dict) or start == "{":
        return f"{column} is an object: give the text of one answer in a column of its own, such as answer{as_calls}"
    if isinstance(value, list) or start == "[":
        fix = "give the one to train on as a text in a column such as answer"
        return f"{column} is a list, which is read only with ranks or scores: {fix}{as_calls}"
    return ""


def explain_choices(row: Columns) -> str:
    """Return what to do with the choices of a question that are not in it; empty if the row has none.

    An answer that is the text of a choice needs no choices, other than its number or letter.
    """
    column = find_filled(row, CHOICE_COLUMNS)
    choices = _read_choices(row[column]) if column else []
    answer = row.get(find_filled(row, OUTPUT_COLUMNS) or "")
    if not choices or isinstance(answer, bool) or (isinstance(answer, str) and len(answer.strip(" ().")) > 1):
        return ""
    asked = "\n".join(str(row.get(name, "")) for name in (*INSTRUCTION_COLUMNS, *INPUT_COLUMNS, *CONVERSATION_COLUMNS))
    if str(answer) in choices or all(choice in asked for choice in choices):
        return ""
    return f"{column} is not read: write the choices into the question, and the correct one as a text in answer"


def _read_choices(value: object) -> list[str]:
    if isinstance(value, str):
        try:
            value = parse_nested(value, "choices", RejectCode.WRONG_TYPE)
        except BadRow:
            return []
    if isinstance(value, dict):
        value = value.get("text", list(value.values()))
    return value if isinstance(value, list) and all(isinstance(one, str) for one in value) else []


def may_have_part(row: Columns) -> bool:
    """Return whether a row has the columns of one whose answer may be only a part of what it teaches."""
    return not _CHOICES.isdisjoint(row) or ("answer" in row and any(name in row for name in _WORKED))


def find_worked_answers(row: Columns) -> list[str]:
    """Return the columns with longer answers than `answer`, which may be only the result of them."""
    if find_filled(row, OUTPUT_COLUMNS) != "answer":
        return []
    length, texts = len(str(row["answer"]).strip()), {name: row.get(name) for name in _WORKED}
    return [name for name, text in texts.items() if isinstance(text, str) and length < len(text.strip())]


def _has_alias(row: Columns, name: str) -> bool:
    return not row.keys().isdisjoint(_aliases_of(name))


def _aliases_of(name: str) -> tuple[str, ...]:
    return next((names for names in ALIASES if name in names), ())


def _normalise(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _may_be_turns(value: object) -> bool:
    """Return whether a value is a list of objects that have two texts each, and no number, as a rating has."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and _may_be_turn(one) for one in value)


def _may_be_turn(value: Columns) -> bool:
    texts = sum(isinstance(one, str) for one in value.values())
    return texts > 1 and not any(isinstance(one, int | float) and not isinstance(one, bool) for one in value.values())


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _is_number(value)


def _is_number(text: str) -> bool:
    if len(text) > LONGEST_NUMBER:
        return False
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
