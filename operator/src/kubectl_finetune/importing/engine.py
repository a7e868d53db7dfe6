"""Recognise a training file and convert it by the table of its format."""

import fnmatch
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from finetune_api.manifest.yaml_document import FieldPath
from finetune_api.schema.crd import structural_schema
from finetune_api.spec import FineTuneJobSpec
from finetune_client.manifest.suggestions import nearest
from kubectl_finetune.importing.draft import Draft, Options
from kubectl_finetune.importing.files import TrainingFile, is_secret
from kubectl_finetune.importing.rows import Format, Row, Table

SECRET = "a secret does not belong in a manifest, and is not copied"  # noqa: S105 - a sentence
SECRET_FIX = (
    "create a Secret with HF_TOKEN, and name it in model.credentialsSecretRef or output.hub.credentialsSecretRef"  # noqa: S105 - a sentence
)
TEMPLATE = "the value is a template, which is not filled in"


def convert(file: TrainingFile, form: Format, options: Options) -> Draft:
    """Return the draft of a job, with everything that is not carried."""
    draft = Draft(file, options, form.defaults)
    for path in file.templates():
        if not form.texts & set(path):
            draft.refuse(path, TEMPLATE, "write the value itself")
    for path, first in file.document.duplicates.items():
        draft.lose(path, f"is given twice, first in line {first}; the last counts", changes_training=False)
    for one in form.derived:
        if not one.follows_table:
            one.function(draft)
    known = form.derived_keys
    given = {**form.defaults, **{key: value for key, value in file.values.items() if value is not None}}
    given |= {key: value for key, value in form.nulls.items() if draft.is_null(key)}
    rest = {key: value for key, value in given.items() if key not in known | draft.done}
    apply_table(draft, (), rest, form.table, known)
    for one in form.derived:
        if one.follows_table:
            one.function(draft)
    _leave_out_evaluations(draft)
    draft.spec = _in_order(draft.spec, _schema())
    return draft


def _leave_out_evaluations(draft: Draft) -> None:
    """Do not carry how often to evaluate if the file names no rows to evaluate with."""
    field_path = "evaluation.steps"
    if draft.at(field_path) is None or draft.at("dataset.validation") or draft.at("dataset.validationSplitPercent"):
        return
    del draft.spec["evaluation"]["steps"]
    draft.spec = {name: block for name, block in draft.spec.items() if name != "evaluation" or block}
    draft.lose(draft.origins.pop(field_path), "no rows are held out", "use --validation", changes_training=False)


@cache
def _schema() -> dict[str, Any]:
    return structural_schema(FineTuneJobSpec)


def _in_order(block: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the fields in the order of the reference."""
    fields = {name: one for name, one in schema.get("properties", {}).items() if name in block}
    ordered = {
        name: _in_order(block[name], one) if isinstance(block[name], dict) else block[name]
        for name, one in fields.items()
    }
    return ordered or block


def apply_table(
    draft: Draft, path: FieldPath, block: Mapping[str, Any], table: Table, derived: Iterable[str] = ()
) -> None:
    """Apply the row of each key; keys without one are named, with the key that may be meant."""
    for key, value in block.items():
        place = (*path, key)
        if value is None:
            continue
        if is_secret(key, value):
            draft.lose(place, SECRET, SECRET_FIX, changes_training=False)
        elif row := find_row(key, table):
            row(draft, place, value)
        else:
            near = nearest(key, [*derived, *(name for name in table if "*" not in name)])
            draft.lose(place, "this key is not known", f"did you mean {near}?" if near else "")


def find_row(key: str, table: Table) -> Row | None:
    """Return the row of a key: its own, or the one with the longest pattern that matches."""
    if key in table:
        return table[key]
    matching = [name for name in table if "*" in name and fnmatch.fnmatchcase(key, name)]
    return table[max(matching, key=len)] if matching else None
