"""Convert Arrow columns to the values that JSON would have."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.readers.arrow_values import (
    LISTS,
    PADDED,
    Convert,
    find_converter,
    name_class,
    read_class_names,
    unwrap,
)
from finetune_trainer.data.readers.json_row import first_repeated
from finetune_trainer.data.rows import UnreadableFile

MAX_DEPTH = 32
# The size of one value as a Python object, in addition to its size in the file.
OBJECT_BYTES = 48
_BYTES_OF = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_TEXTS = (*_BYTES_OF, *_BYTES_OF.values())
_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


class ColumnTypes:
    """Converts the columns of one schema."""

    def __init__(self, schema: pa.Schema, name: str) -> None:
        self._names = [str(column) for column in schema.names]
        self._name = name
        self._targets = [self._plain(field.type, field.name) for field in schema]
        self._converters = [find_converter(field.type, self._strip, is_padded=field.name in PADDED) for field in schema]
        for column, names in read_class_names(schema).items():
            self._converters[schema.names.index(column)] = partial(name_class, names)
        self._row = 0
        self.stripped: set[int] = set()
        """The rows that `to_rows` returned last of which it removed null fields."""
        if (twice := first_repeated(self._names)) is not None:
            raise UnreadableFile(f"{name} contains the column {twice[:40]!r} twice; rename one of them")

    def to_rows(self, rows: pa.RecordBatch) -> list[dict[str, Any]]:
        """Return the rows as dictionaries; raises KeyError for a map with a key twice, and BadRow."""
        self.stripped = set()
        if not rows.columns:
            return [{} for _ in range(rows.num_rows)]
        columns = []
        for column, target, convert in zip(rows.columns, self._targets, self._converters, strict=True):
            plain = column if column.type == target else _cast(column, target)
            values = plain.to_pylist(maps_as_pydicts="strict")
            columns.append(values if convert is None else self._convert(values, convert))
        return [dict(zip(self._names, cells, strict=True)) for cells in zip(*columns, strict=True)]

    def _convert(self, values: list[Any], convert: Convert) -> list[Any]:
        converted = []
        for self._row, value in enumerate(values):
            converted.append(convert(value))
        return converted

    def _strip(self, values: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in values.items() if value is not None}
        if len(own) < len(values):
            self.stripped.add(self._row)
        return own

    def _plain(self, type_: pa.DataType, column: str, depth: int = 0) -> pa.DataType:
        if depth > MAX_DEPTH:
            raise UnreadableFile(f"{self._name} nests the column {column[:40]!r} more than {MAX_DEPTH} levels deep")
        if (inner := unwrap(type_)) is not None:
            return self._plain(inner, column, depth + 1)
        if _is_moment(type_) or pa.types.is_decimal(type_):
            return pa.string()
        if pa.types.is_nested(type_):
            return self._plain_nested(type_, column, depth + 1)
        if pa.types.is_interval(type_) or pa.types.is_run_end_encoded(type_):
            raise self._unsupported(type_, column)
        return _VIEWS.get(type_, type_)

    def _plain_nested(self, type_: pa.DataType, column: str, depth: int) -> pa.DataType:
        if pa.types.is_struct(type_):
            return self._plain_struct(type_, column, depth)
        if any(is_list(type_) for is_list in LISTS):
            item = self._plain(type_.value_type, column, depth)
            return type_ if item == type_.value_type else pa.large_list(item)
        if pa.types.is_map(type_):
            key = self._plain(type_.key_type, column, depth)
            if not pa.types.is_nested(key):
                return pa.map_(key, self._plain(type_.item_type, column, depth))
        raise self._unsupported(type_, column)

    def _unsupported(self, type_: pa.DataType, column: str) -> UnreadableFile:
        return UnreadableFile(
            f"{self._name} has a column {column[:40]!r} of the type {str(type_)[:40]}, which is not supported; "
            "write the file without this column, or as plain text"
        )

    def _plain_struct(self, type_: pa.StructType, column: str, depth: int) -> pa.DataType:
        fields = [type_.field(index) for index in range(type_.num_fields)]
        if len({field.name for field in fields}) < len(fields):
            raise UnreadableFile(f"{self._name} has a struct in {column[:40]!r} that contains a field twice")
        plain = [(field.name, self._plain(field.type, column, depth)) for field in fields]
        unchanged = all(field.type == target for field, (_, target) in zip(fields, plain, strict=True))
        return type_ if unchanged else pa.struct(plain)


def _cast(column: pa.Array, target: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type) and column.type.value_type in _VIEWS:  # Arrow does not decode these
        column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(target))
    return column.cast(target)


def decoded_bytes(array: pa.Array) -> int:
    """Return the size of the array as Python values, with dictionaries expanded; the array must be valid."""
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return decoded_bytes(array.storage)
    if pa.types.is_dictionary(type_):
        inner = _dictionary_bytes(array)
    elif pa.types.is_struct(type_):
        inner = sum(decoded_bytes(child) for child in array.flatten())
    elif pa.types.is_map(type_):
        entries = pa.list_(pa.struct([("key", type_.key_type), ("value", type_.item_type)]))
        inner = decoded_bytes(array.cast(entries).flatten())
    elif any(is_list(type_) for is_list in LISTS):
        inner = decoded_bytes(array.flatten())
    elif type_ in _VIEWS:
        inner = _view_bytes(array)
    else:
        inner = int(array.nbytes)
    return inner + OBJECT_BYTES * len(array)


def without_dictionaries(row: pa.RecordBatch) -> pa.RecordBatch:
    """Return one row with only its own texts; raises ArrowInvalid if they are invalid."""
    columns = [_own_text(column) for column in row.columns]
    alone = pa.RecordBatch.from_arrays(columns, names=row.schema.names)
    alone.validate(full=True)
    return alone


def _own_text(column: pa.Array) -> pa.Array:
    if not pa.types.is_dictionary(column.type) or column.type.value_type not in _BYTES_OF:
        return column
    stored = column.dictionary.cast(_BYTES_OF[column.type.value_type])
    stored.validate(full=True)
    return stored.take(column.indices).cast(column.type.value_type)


def _view_bytes(array: pa.Array) -> int:
    """Return the bytes of all views, which may share data; each is four numbers, the first its length."""
    numbers = np.frombuffer(array.buffers()[1], np.int32)
    return int(numbers[4 * array.offset : 4 * (array.offset + len(array)) : 4].sum(dtype=np.int64))


def _dictionary_bytes(array: pa.DictionaryArray) -> int:
    if not len(array.dictionary):
        return 0
    values = array.dictionary
    values = values.cast(_VIEWS.get(values.type, values.type))
    if values.type in _TEXTS:
        return int(pc.sum(pc.take(pc.binary_length(values), array.indices)).as_py() or 0)
    return len(array) * int(decoded_bytes(values))


def _is_moment(type_: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(type_) and not pa.types.is_interval(type_))
