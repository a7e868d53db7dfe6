"""A valid spec in place of a faulty one, so that the rules between the other fields can be checked too."""

import copy
from collections.abc import Iterable
from typing import Any

from finetune_api.manifest.foreign_names import foreign_field
from finetune_api.manifest.former_names import current_word
from finetune_api.manifest.yaml_document import FieldPath, find_value
from finetune_client.manifest.fixes import sample
from finetune_client.manifest.suggestions import nearest

KEY = "[key]"
"""The end of the path of a fault in the name of a map's entry."""
ENTRY = "entry"
"""The name that such an entry gets."""


def repair(spec: Any, faults: Iterable[FieldPath], schema: dict[str, Any]) -> tuple[Any, set[str]]:
    """Return the spec with a valid value in each faulty place, and the names of the fields whose value is unknown.

    A field that does not exist is removed; a misspelt word gets the word that it resembles, which counts as known.
    """
    repaired, unknown = {"spec": copy.deepcopy(spec)}, set()
    for path in sorted(set(faults), key=len):
        if path[-1] == KEY:
            entries = find_value(repaired, path[:-2])
            entries[ENTRY] = entries.pop(path[-2])
            unknown.add(ENTRY)
            continue
        node, field = _schema_of(schema, path), path[-1]
        parent = find_value(repaired, path[:-1])
        if isinstance(parent, dict) and node is None:
            parent.pop(field, None)
            unknown |= _meant(str(field), _schema_of(schema, path[:-1]) or {})
        elif isinstance(parent, dict) and isinstance(field, str) and node is not None:
            value, is_known = _valid(parent.get(field), node, path)
            parent[field] = value
            unknown |= set() if is_known else {field}
        elif isinstance(parent, list) and isinstance(field, int) and node is not None and field < len(parent):
            parent[field] = sample(node, path)
            unknown |= {str(part) for part in path if isinstance(part, str)} - {"spec"}
    return repaired["spec"], unknown


def _meant(field: str, schema: dict[str, Any]) -> set[str]:
    """Return the fields that may be meant by one that does not exist."""
    near = nearest(field, schema.get("properties", {}))
    return {field, near or field, foreign_field(field).rpartition(".")[2] or field}


def _valid(value: Any, schema: dict[str, Any], path: FieldPath) -> tuple[Any, bool]:
    words = [one for one in schema.get("enum", ()) if isinstance(one, str)]
    near: str | None = None
    if isinstance(value, bool):  # so YAML reads some former words
        near = current_word(path, "On" if value else "Off") or None
    elif isinstance(value, str):
        near = current_word(path, value) or nearest(value, words)
    return (sample(schema, path), False) if near is None else (near, True)


def _schema_of(schema: dict[str, Any], path: FieldPath) -> dict[str, Any] | None:
    """Return the schema of a field of the spec; None if there is no such field."""
    node: Any = schema
    for part in path[1:]:
        if isinstance(part, int):
            node = node.get("items")
        else:
            extra = node.get("additionalProperties")
            node = node.get("properties", {}).get(part, extra if isinstance(extra, dict) else None)
        if node is None:
            return None
    return dict(node)
