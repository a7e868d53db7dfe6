"""Suggest which of a row's columns are its question, answer, turns or text, for rows that no format fits."""

from finetune_trainer.data.formats.columns import (
    ALIASES,
    CLASS_COLUMNS,
    CONVERSATION_COLUMNS,
    KNOWN_COLUMNS,
    OUTPUT_COLUMNS,
    RANKED_COLUMNS,
    TOOL_COLUMNS,
    Columns,
    find_filled,
    is_empty,
    is_metadata,
)

YOURS = "YOURS"
LONGEST_NUMBER = 40
"""Characters; a longer text is not read as a number."""


def suggest_columns(row: Columns, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return the known names that the row lacks, each with the column that probably has it, or with YOURS.

    It is empty if the row has no column that could have one.
    """
    absent = [name for name in wanted if not _has_alias(row, name)]
    own = [name for name in row if name not in KNOWN_COLUMNS and not is_metadata(name)]
    turns = next((name for name in own if _is_list_of_objects(row[name])), None)
    if turns and absent == list(wanted) and not _has_alias(row, CONVERSATION_COLUMNS[0]):
        return {CONVERSATION_COLUMNS[0]: turns}
    found = _match_names(own, absent)
    missing = [name for name, column in found.items() if column is YOURS]
    texts = [name for name in own if name not in found.values() and _is_text(row[name])]
    found |= _guess(row, missing, texts, None if "label" in wanted else find_class(row))
    return found if own or YOURS not in found.values() else {}


def _match_names(own: list[str], absent: list[str]) -> dict[str, str]:
    """Return for each absent name the column whose name differs in case, or YOURS."""
    named = {known: name for name in own if (known := _normalise(name)) in KNOWN_COLUMNS}
    found: dict[str, str] = {}
    for name in absent:
        alias = next((known for known in named if known in _aliases_of(name)), None)
        if alias is not None:
            found[alias] = named[alias]
        elif name == "question" and "text" in named:
            found["prompt"] = named["text"]
        else:
            found[name] = YOURS
    return found


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
    start = value.lstrip()[:1] if isinstance(value, str) else ""
    as_calls = "; write calls of tools as turns in messages" if find_filled(row, TOOL_COLUMNS) else ""
    if isinstance(value, dict) or start == "{":
        return f"; {column} is an object: give the text of one answer in a column of its own, such as answer{as_calls}"
    if isinstance(value, list) or start == "[":
        fix = "give the one to train on as a text in a column such as answer"
        return f"; {column} is a list, which is read only with ranks or scores: {fix}{as_calls}"
    return ""


def _has_alias(row: Columns, name: str) -> bool:
    return not row.keys().isdisjoint(_aliases_of(name))


def _aliases_of(name: str) -> tuple[str, ...]:
    return next((names for names in ALIASES if name in names), ())


def _normalise(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


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
