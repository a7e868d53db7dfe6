"""JSON in an answer: read it, compare it with a reference, or check it by a JSON schema."""

import re
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson

LARGEST_SCHEMA = 10_000
"""Subschemas of a schema whose references are replaced by what they refer to: each may be tried on an answer."""
LARGEST_PATTERN_BYTES = 1 << 20
"""Size of a compiled pattern of a schema."""

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)```", re.DOTALL | re.IGNORECASE)


def read_json(text: str) -> Any:
    """Return the value of a text that is JSON, alone or in one fenced code block; raises ValueError for any other."""
    stripped = text.strip()
    fenced = _FENCED.fullmatch(stripped)
    return orjson.loads(fenced[1] if fenced else stripped)


def is_json(text: str) -> bool:
    """Return whether a text is JSON, alone or in one fenced code block."""
    try:
        read_json(text)
    except ValueError:
        return False
    return True


def is_equal_json(text: str, reference: str) -> bool:
    """Return whether both texts are JSON with the same value."""
    try:
        return is_same_value(read_json(text), read_json(reference))
    except ValueError:
        return False


def is_same_value(left: Any, right: Any) -> bool:
    """Return whether the values are equal: objects in any order of their keys, numbers by value, true not as 1."""
    pairs = [(left, right)]
    while pairs:
        one, other = pairs.pop()
        if isinstance(one, bool) or isinstance(other, bool):
            if one is not other:
                return False
        elif isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys():
                return False
            pairs += [(one[key], other[key]) for key in one]
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            pairs += zip(one, other, strict=True)
        elif one != other:
            return False
    return True


@lru_cache(maxsize=256)
def compile_schema(text: str) -> jsonschema_rs.Validator:
    """Compile a JSON schema that is given as text, by the draft that it names; raises ValueError with the reason.

    Nothing is fetched for it, and its patterns take a time that is linear in the answer.
    """
    try:
        schema = read_json(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    _require_small(schema)
    try:
        return jsonschema_rs.validator_for(
            schema,
            offline=True,
            validate_formats=True,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=LARGEST_PATTERN_BYTES),
        )
    except ValueError as error:  # jsonschema_rs.ValidationError is one
        raise ValueError(f"is not a JSON schema that can be used: {str(error).splitlines()[0]}") from None


def is_valid_json(text: str, schema: str) -> bool:
    """Return whether the text is JSON that is valid by the schema, which `compile_schema` takes."""
    try:
        return compile_schema(schema).is_valid(read_json(text))
    except ValueError:
        return False


def _require_small(schema: Any) -> None:
    """Raise ValueError for a reference to elsewhere, and if references repeat parts of the schema too often."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if not isinstance(node, dict | list):
            return 0
        if id(node) not in sizes:
            sizes[id(node)] = 1  # of one that is being counted: a schema that refers to itself follows the answer
            children = list(node.values() if isinstance(node, dict) else node)
            if isinstance(node, dict) and isinstance(node.get("$ref"), str):
                children.append(_resolve(schema, node["$ref"]))
            sizes[id(node)] = 1 + sum(size(child) for child in children)
        return sizes[id(node)]

    try:
        found = size(schema)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    if found > LARGEST_SCHEMA:
        raise ValueError(f"has {found:,} parts with those that it refers to, of at most {LARGEST_SCHEMA:,}")


def _resolve(schema: Any, reference: str) -> Any:
    """Return the part of the schema that a JSON pointer refers to; raises ValueError for any other reference."""
    found = schema
    place, _, pointer = reference.partition("#")
    if place or (pointer and not pointer.startswith("/")):
        raise ValueError(f"refers to {reference!r}, which is not part of it: write references as #/…")
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(key) if isinstance(found, list) else key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"refers to {reference!r}, which it does not have") from None
    return found
