"""JSON in an answer: read it, compare it with a reference, or check it by a JSON schema."""

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

LARGEST_SCHEMA = 10_000
"""Subschemas of a schema whose references are replaced by what they refer to: each may be tried on an answer."""
LARGEST_PATTERN_BYTES = 1 << 20
"""Size of a compiled pattern of a schema."""

_FENCED = re.compile(r"```(?:json)?[ \t]*\r?\n(.*)```", re.DOTALL | re.IGNORECASE)
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})
"""Keywords whose values have schemas by names that are no keywords."""
_DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose values are no schemas."""


def is_json(text: str) -> bool:
    """Return whether a text is JSON, alone or in one fenced code block."""
    try:
        _read(text, _exact)
    except ValueError:
        return False
    return True


def is_equal_json(text: str, reference: str) -> bool:
    """Return whether both texts are JSON with the same value; numbers are compared without rounding."""
    try:
        return _is_same(_read(text, _exact), _read(reference, _exact))
    except ValueError:
        return False


def is_valid_json(text: str, schema: str) -> bool:
    """Return whether the text is JSON that is valid by the schema, which `compile_schema` takes."""
    try:
        return compile_schema(schema).is_valid(_read(text, _finite))
    except ValueError:
        return False


@lru_cache(maxsize=256)
def compile_schema(text: str) -> jsonschema_rs.Validator:
    """Compile a JSON schema that is given as text, by the draft that it names; raises ValueError with the reason.

    Nothing is fetched for it, and its patterns take a time that is linear in the answer.
    """
    try:
        schema = _read(text, _finite)
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
    except jsonschema_rs.ValidationError as error:
        place = "/".join(map(str, error.instance_path))
        hint = "; look-around and back-references are not supported" if "regex" in error.message else ""
        at = f" at {place}" if place else ""
        raise ValueError(f"is not a JSON schema that can be used{at}: {error.message}{hint}") from None
    except ValueError as error:
        raise ValueError(f"is not a JSON schema that can be used: {error}") from None


def _read(text: str, parse_float: Callable[[str], Any]) -> Any:
    """Return the value of a text that is JSON, alone or in one fenced code block; raises ValueError for any other."""
    stripped = text.strip()
    fenced = _FENCED.fullmatch(stripped)
    try:
        return json.loads(
            fenced[1] if fenced else stripped,
            parse_float=parse_float,
            parse_constant=_refuse,
            object_pairs_hook=_require_unique,
        )
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _exact(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError("a number's exponent is too large") from None


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _is_same(left: Any, right: Any) -> bool:
    """Return whether values are equal: objects in any order of their keys, numbers by value, true not as 1."""
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


def _require_small(schema: Any) -> None:
    """Raise ValueError for a reference to elsewhere, and if references repeat parts of the schema too often."""
    try:
        found = _Counted(schema).size(schema)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    if found > LARGEST_SCHEMA:
        raise ValueError(f"has {found:,} parts with those that it refers to, of at most {LARGEST_SCHEMA:,}")


class _Counted:
    """The parts of one schema, each counted as often as references repeat it."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        own = schema.get("$id") if isinstance(schema, dict) else None
        self._own = own.removesuffix("#") if isinstance(own, str) else ""
        self._sizes: dict[tuple[int, bool], int] = {}

    def size(self, node: Any, *, by_name: bool = False) -> int:
        """Return the number of parts; `by_name`: the keys of the node are names, and no keywords."""
        if not isinstance(node, dict | list):
            return 0
        known = (id(node), by_name)
        if known not in self._sizes:
            self._sizes[known] = 1  # of one that is being counted: a schema that refers to itself follows the answer
            self._sizes[known] = 1 + sum(self._parts(node, by_name=by_name))
        return self._sizes[known]

    def _parts(self, node: Any, *, by_name: bool) -> list[int]:
        if isinstance(node, list):
            return [self.size(one) for one in node]
        if by_name:
            return [self.size(one) for one in node.values()]
        if node is not self._schema and isinstance(node.get("$id", node.get("id")), str):
            raise ValueError("has a part with an identifier of its own: remove its $id")
        targets = [self._resolve(node[key]) for key in _REFERENCES if isinstance(node.get(key), str)]
        own = [self.size(one, by_name=key in _BY_NAME) for key, one in node.items() if key not in _DATA]
        return [*own, *map(self.size, targets)]

    def _resolve(self, reference: str) -> Any:
        """Return the part that a JSON pointer refers to; raises ValueError for any other reference."""
        place, _, pointer = reference.partition("#")
        if place not in {"", self._own} or (pointer and not pointer.startswith("/")):
            raise ValueError(f"refers to {reference!r}, which is not part of it: write references as #/…")
        found = self._schema
        for part in unquote(pointer).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key) if isinstance(found, list) else key]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ValueError(f"refers to {reference!r}, which it does not have") from None
        return found
