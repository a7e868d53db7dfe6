import json
from typing import Any

import pyarrow as pa
import pytest

from finetune_trainer.data.readers.arrow_types import OBJECT_BYTES, ColumnTypes, decoded_bytes
from finetune_trainer.data.rows import UnreadableFile

NUMBERS = pa.array([1, 2, 3])
TEXTS = pa.array([0, 0, 1, None], pa.int32())


@pytest.mark.parametrize(
    ("array", "data", "objects"),
    [
        (NUMBERS, 24, 3),
        (NUMBERS.slice(1), 16, 2),
        (pa.DictionaryArray.from_arrays(TEXTS, pa.array(["ab", "c"])), 5, 4),
        (pa.DictionaryArray.from_arrays(TEXTS, pa.array([b"ab", b"c"])), 5, 4),
        *(
            (pa.DictionaryArray.from_arrays(TEXTS, pa.array([b"ab", b"c"]).cast(type_)), 5, 4)
            for type_ in (pa.large_string(), pa.large_binary(), pa.string_view(), pa.binary_view())
        ),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([7, 8])), 3 * 16, 3 * 2 + 3),
        (pa.DictionaryArray.from_arrays(pa.array([None], pa.int32()), pa.array([], pa.string())), 0, 1),
        (pa.array([[1, 2], [3]]), 24, 3 + 2),
        (pa.array([[1, 2], [3]], pa.large_list(pa.int64())), 24, 3 + 2),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)), 32, 4 + 2),
        (pa.array([{"a": 1}, {"a": 2}]), 16, 2 + 2),
        (pa.array([[(1, 1)]], pa.map_(pa.int64(), pa.int64())), 16, 2 + 1 + 1),
        (pa.array(["x", None, "y" * 40], pa.string_view()), 41, 3),
        (pa.array(["x", None, "y" * 40], pa.string_view()).slice(1, 1), 0, 1),
        (pa.array([b"xy"], pa.binary_view()), 2, 1),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"], pa.binary(16))), 16, 1),
    ],
)
def test_an_array_is_as_large_as_its_values_with_an_object_for_each(array: Any, data: int, objects: int) -> None:
    assert decoded_bytes(array) == data + OBJECT_BYTES * objects


def nested(type_: pa.DataType, levels: int) -> pa.DataType:
    for _ in range(levels):
        type_ = pa.list_(type_)
    return type_


@pytest.mark.parametrize("inner", [pa.int64(), pa.timestamp("ns")])
def test_a_column_may_nest_as_many_levels_as_the_limit(inner: pa.DataType) -> None:
    ColumnTypes(pa.schema([("deep", nested(inner, 32))]), "rows")
    with pytest.raises(UnreadableFile, match="rows nests the column 'deep' more than 32 levels deep"):
        ColumnTypes(pa.schema([("deep", nested(inner, 33))]), "rows")


LONG = "x" * 50


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (pa.schema([(LONG, pa.int64()), (LONG, pa.int64())]), f"rows contains the column {'x' * 40!r} twice"),
        (pa.schema([(LONG, nested(pa.int64(), 40))]), f"rows nests the column {'x' * 40!r} more"),
        (pa.schema([(LONG, pa.month_day_nano_interval())]), f"rows has a column {'x' * 40!r} of the type month_day"),
        (
            pa.schema([("c", pa.dense_union([pa.field("y" * 50, pa.int64())]))]),
            f"of the type dense_union<{'y' * 28}, which is not supported",
        ),
        (
            pa.schema([(LONG, pa.struct([("f", pa.int64()), ("f", pa.int64())]))]),
            f"rows has a struct in {'x' * 40!r} that contains a field twice",
        ),
    ],
)
def test_a_schema_that_is_refused_names_the_column_with_at_most_forty_characters(
    schema: pa.Schema, message: str
) -> None:
    with pytest.raises(UnreadableFile) as refused:
        ColumnTypes(schema, "rows")
    assert message in str(refused.value)


@pytest.mark.parametrize("type_", [pa.run_end_encoded(pa.int32(), pa.int64()), pa.month_day_nano_interval()])
def test_a_type_without_a_value_in_json_is_refused(type_: pa.DataType) -> None:
    with pytest.raises(UnreadableFile, match="write the file without this column, or as plain text"):
        ColumnTypes(pa.schema([("c", type_)]), "rows")


def classes(table: pa.Table, **names: Any) -> list[dict[str, Any]]:
    features = {column: {"_type": "ClassLabel", "names": found} for column, found in names.items()}
    described = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    (batch,) = table.replace_schema_metadata(described).to_batches()
    return ColumnTypes(batch.schema, "rows").to_rows(batch)


def test_the_number_of_a_class_is_read_as_its_name() -> None:
    rows = classes(pa.table({"text": ["a", "b", "c", "d"], "label": [1, 0, -1, None]}), label=["World", "Sports"])
    assert [row["label"] for row in rows] == ["Sports", "World", None, None]


def test_a_number_without_a_class_stays_a_number() -> None:
    assert classes(pa.table({"text": ["a"], "label": [7]}), label=["World"]) == [{"text": "a", "label": 7}]


@pytest.mark.parametrize("answer", ["completion", "messages"])
def test_a_judgement_of_an_answer_stays_a_number(answer: str) -> None:
    assert classes(pa.table({answer: ["a"], "label": [1]}), label=["bad", "good"]) == [{answer: "a", "label": 1}]


@pytest.mark.parametrize("names", [None, "World", [1, 2], {"0": "World"}])
def test_names_of_classes_that_are_not_texts_are_passed_over(names: Any) -> None:
    assert classes(pa.table({"text": ["a"], "label": [0]}), label=names) == [{"text": "a", "label": 0}]


@pytest.mark.parametrize("described", [b"", b"{", b"[]", b'{"info": null}', b'{"info": {"features": [1]}}'])
def test_a_description_that_is_not_of_datasets_is_passed_over(described: bytes) -> None:
    (batch,) = pa.table({"label": [0]}).replace_schema_metadata({b"huggingface": described}).to_batches()
    assert ColumnTypes(batch.schema, "rows").to_rows(batch) == [{"label": 0}]
