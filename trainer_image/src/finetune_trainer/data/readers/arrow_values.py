"""Convert the Python values of Arrow columns to those that JSON would have."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson
import pyarrow as pa

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.columns import CONVERSATION_COLUMNS, LABEL_COLUMNS, OUTPUT_COLUMNS
from finetune_trainer.data.readers.json_row import parse_value
from finetune_trainer.data.rows import BadRow

Convert = Callable[[Any], Any]
Strip = Callable[[dict[str, Any]], dict[str, Any]]
PADDED = frozenset({"tools", "functions", "toolConfig", "tool_calls", "function_call"})
PADDED_INSIDE = frozenset(
    {"function", "arguments", "args", "parameters", "input", "input_schema", "response", "json"}  # the last of Bedrock
)
"""Columns, and fields inside a column, with objects of which each row has other keys.

A column of objects has the fields of all rows, with null for those that a row does not have.
"""
_HUGGINGFACE = b"huggingface"
_ANSWERS = frozenset((*OUTPUT_COLUMNS, *CONVERSATION_COLUMNS))
_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def read_class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes in each column of integers that `datasets` wrote as `ClassLabel`.

    A label next to an answer is a judgement, which stays 0 or 1.
    """
    try:
        features = orjson.loads((schema.metadata or {}).get(_HUGGINGFACE, b"{}"))["info"]["features"]
        named = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    is_judged = not _ANSWERS.isdisjoint(schema.names)
    return {
        name: names
        for name, names in named.items()
        if schema.names.count(name) == 1
        and pa.types.is_integer(schema.field(name).type)
        and isinstance(names, list)
        and all(isinstance(one, str) for one in names)
        and not (is_judged and name in LABEL_COLUMNS)
    }


def name_class(names: Sequence[str], number: int | None) -> str | int | None:
    """Return the name of a class; `datasets` writes -1 for a row without one."""
    if number is None or number == -1:
        return None
    return names[number] if 0 <= number < len(names) else number


def unwrap(type_: pa.DataType) -> pa.DataType | None:
    """Return the type of the values in a dictionary or an extension type; None for any other type."""
    if isinstance(type_, pa.BaseExtensionType):
        return type_.storage_type
    return type_.value_type if pa.types.is_dictionary(type_) else None


def find_converter(type_: pa.DataType, strip: Strip, *, is_padded: bool) -> Convert | None:
    """Return what converts a value of this type, which raises KeyError or BadRow; None if values stay as they are.

    `strip` returns an object without its null fields, and is called with those that `is_padded`, at every depth.
    The type `arrow.json` is that of columns whose values differ in type, as `datasets` writes them.
    """
    if isinstance(type_, pa.JsonType):
        return _parse
    if (inner := unwrap(type_)) is not None:
        return find_converter(inner, strip, is_padded=is_padded)
    if pa.types.is_floating(type_):
        return _keep_finite
    if any(is_binary(type_) for is_binary in _BINARY):
        return _decode
    return _find_nested_converter(type_, strip, is_padded=is_padded) if pa.types.is_nested(type_) else None


def _find_nested_converter(type_: pa.DataType, strip: Strip, *, is_padded: bool) -> Convert | None:
    if pa.types.is_struct(type_):
        found = {
            field.name: find_converter(field.type, strip, is_padded=is_padded or field.name in PADDED | PADDED_INSIDE)
            for field in type_
        }
        fields = {name: convert for name, convert in found.items() if convert is not None}
        if is_padded:
            return partial(_convert_struct, fields, strip)
        return partial(_convert_struct, fields, _keep) if fields else None
    inner = type_.item_type if pa.types.is_map(type_) else type_.value_type
    convert = find_converter(inner, strip, is_padded=is_padded)
    if pa.types.is_map(type_):
        return partial(_convert_map, convert or _keep)
    return None if convert is None else partial(_convert_list, convert)


def _keep(value: Any) -> Any:
    return value


def _parse(text: str | None) -> object:
    if text is None:
        return None
    try:
        return parse_value(text.encode())
    except BadRow as bad:
        raise BadRow(bad.code, f"in a column of JSON, {bad.detail}") from None


def _keep_finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _decode(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value  # an error only if a format needs this column as text


def _convert_list(convert: Convert, values: list[Any] | None) -> list[Any] | None:
    return None if values is None else [convert(value) for value in values]


def _convert_struct(
    fields: Mapping[str, Convert], strip: Strip, values: dict[str, Any] | None
) -> dict[str, Any] | None:
    if values is None:
        return None
    for name, convert in fields.items():
        values[name] = convert(values[name])
    return strip(values)


def _convert_map(convert: Convert, values: dict[Any, Any] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    converted = {_read_key(key): convert(value) for key, value in values.items()}
    if len(converted) < len(values):
        raise KeyError
    return converted


def _read_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if not isinstance(key, bytes):
        return orjson.dumps(key).decode() if isinstance(key, bool) else str(key)
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRow(RejectCode.BAD_UTF8, "a map has a key that is not UTF-8") from None
