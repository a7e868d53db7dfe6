import datetime
import decimal
import io
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.readers import arrow as columnar
from finetune_trainer.data.readers import lines
from finetune_trainer.data.readers.arrow import read_table
from finetune_trainer.data.readers.arrow_types import OBJECT_BYTES
from finetune_trainer.data.readers.rows_of_file import Record, RowFile
from finetune_trainer.data.rows import NamedPath, TableRow, UnreadableFile

Write = Callable[[pa.Table], bytes]


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **{"row_group_size": 7} | options)
    return out.getvalue()


def arrow_file(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, 7)
    return out.getvalue()


def arrow_stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, 7)
    return out.getvalue()


ALL = [parquet, arrow_file, arrow_stream]
each_kind = pytest.mark.parametrize("write", ALL)
TURNS = [
    {"role": "user", "content": "what?", "tool_calls": None},
    {"role": "assistant", "content": "thät", "tool_calls": None},
]


def read(path: Path, content: bytes) -> list[TableRow]:
    path.write_bytes(content)
    return list(read_table(NamedPath(path, path.name), content[:4]))


def records(path: Path, content: bytes) -> list[Record]:
    path.write_bytes(content)
    return list(RowFile(NamedPath(path, path.name)).records())


@pytest.fixture
def values(tmp_path: Path) -> Callable[[bytes], list[Any]]:
    def run(content: bytes) -> list[Any]:
        rows = read(tmp_path / "rows", content)
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))
        return [row.value if row.problem is None else row.problem.code for row in rows]

    return run


@each_kind
def test_rows_come_in_order_with_their_number_over_every_batch(write: Write, values: Any) -> None:
    rows = [{"n": index, "messages": TURNS} for index in range(100)]
    assert values(write(pa.Table.from_pylist(rows))) == rows


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "brotli", "lz4", "none"])
def test_every_compression_of_parquet_is_read(codec: str, values: Any) -> None:
    assert values(parquet(pa.table({"a": ["x"] * 9}), compression=codec)) == [{"a": "x"}] * 9


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_every_compression_of_arrow_is_read(codec: str, values: Any) -> None:
    assert values(arrow_file(pa.table({"a": ["x"] * 9}), compression=codec)) == [{"a": "x"}] * 9


MOMENT = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
CELLS = [
    (pa.array(["a"]).dictionary_encode(), "a"),
    (pa.array([["a", None]]).cast(pa.list_(pa.dictionary(pa.int32(), pa.string()))), ["a", None]),
    (pa.array([["a"]], pa.list_(pa.string(), 1)), ["a"]),
    (pa.array([[{"at": MOMENT, "x": 1}]]), [{"at": "2024-05-06 07:08:09.000000Z", "x": 1}]),
    (pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ns")), "2024-05-06 07:08:09.000000000"),
    (pa.array([datetime.date(2024, 5, 6)]), "2024-05-06"),
    (pa.array([datetime.time(7, 8)]), "07:08:00.000000"),
    (pa.array([decimal.Decimal("1.10")]), "1.10"),
    (pa.array(["é".encode()]), "é"),
    (pa.array([b"\xff\xd8"]), b"\xff\xd8"),
    (pa.array([[("k", 1), ("l", None)]], pa.map_(pa.string(), pa.int64())), {"k": 1, "l": None}),
    (pa.array([[(7, 1), (-8, 2)]], pa.map_(pa.int64(), pa.int64())), {"7": 1, "-8": 2}),
    (pa.array([[(1.5, 1), (float("inf"), 2)]], pa.map_(pa.float64(), pa.int64())), {"1.5": 1, "inf": 2}),
    (pa.array([[(True, 1)]], pa.map_(pa.bool_(), pa.int64())), {"true": 1}),
    (pa.array([[(MOMENT.date(), 1)]], pa.map_(pa.date32(), pa.int64())), {"2024-05-06": 1}),
    (pa.array([[("é".encode(), 1)]], pa.map_(pa.binary(), pa.int64())), {"é": 1}),
    (pa.array([[[(1, None)]]], pa.list_(pa.map_(pa.int8(), pa.int64()))), [{"1": None}]),
    (pa.array([{"f": float("nan"), "g": [float("inf"), 1.5]}]), {"f": None, "g": [None, 1.5]}),
    (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    (pa.array([True]), True),
    (pa.nulls(1), None),
    (pa.array(["x"], pa.large_string()), "x"),
]


@each_kind
@pytest.mark.parametrize(("cell", "expected"), CELLS, ids=[str(cell.type)[:40] for cell, _ in CELLS])
def test_a_cell_reads_as_json_would_have_given_it(write: Write, values: Any, cell: pa.Array, expected: object) -> None:
    assert values(write(pa.table({"c": cell}))) == [{"c": expected}]


def test_the_texts_that_polars_writes_are_read(values: Any) -> None:
    assert values(arrow_file(pa.table({"a": pa.array(["x", None, "y" * 40], pa.string_view())}))) == [
        {"a": "x"},
        {"a": None},
        {"a": "y" * 40},
    ]


@pytest.mark.parametrize("write", [arrow_file, arrow_stream])
@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view(), pa.large_binary()], ids=str)
def test_a_dictionary_of_more_text_than_a_row_may_have_is_read(
    write: Write, type_: pa.DataType, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polars and pandas write categories so, with any type of text."""
    monkeypatch.setattr(columnar, "MAX_ROW_BYTES", 200)
    texts = pa.array([letter * 50 for letter in "abcdefgh"]).cast(type_)
    column = pa.DictionaryArray.from_arrays(pa.array([7, None, *range(7)], pa.uint32()), texts)
    assert values(write(pa.table({"t": column}))) == [
        {"t": "h" * 50}, {"t": None}, *({"t": letter * 50} for letter in "abcdefg")
    ]  # fmt: skip


@each_kind
def test_an_extension_type_is_read_as_what_it_is_stored_as(write: Write, values: Any) -> None:
    identity = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef"], pa.binary(16)))
    assert values(write(pa.table({"id": identity}))) == [{"id": "0123456789abcdef"}]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


def call(name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}]


@each_kind
def test_a_tool_and_its_call_have_only_the_fields_of_their_own_row(write: Write, tmp_path: Path) -> None:
    """A column of objects has the fields of all rows, and null for those that a row does not have."""
    number, text = {"type": "integer", "enum": [1]}, {"type": "string"}
    rows = [
        {"messages": call("add", a=2, b={"c": 1}), "tools": [tool("add", a=number, b=text)]},
        {"messages": call("look", a=3), "tools": [tool("look", a=text)]},
        {"messages": call("now"), "tools": [tool("now")]},
        {"messages": call("add", a=2, b={"c": 1}), "tools": [tool("add", a=number | {"enum": None}, b=text)]},
    ]
    read_rows = read(tmp_path / "rows", write(pa.Table.from_pylist(rows)))
    assert [row.value for row in read_rows[:3]] == rows[:3]
    assert [row.repairs for row in read_rows] == [(), *[(RepairCode.NONE_STRIPPED,)] * 3]
    assert read_rows[3].value == rows[3] | {"tools": [tool("add", a={"type": "integer"}, b=text)]}


@each_kind
def test_the_input_of_a_block_has_only_the_fields_of_its_own_row(write: Write, values: Any) -> None:
    turns = [
        {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": one}]}
        for one in ({"a": 1}, {"b": 2})
    ]
    rows = [{"messages": [turn]} for turn in turns]
    assert values(write(pa.Table.from_pylist(rows))) == rows


@each_kind
def test_a_null_elsewhere_or_in_a_map_or_in_json_stays(write: Write, values: Any) -> None:
    turns = pa.array([[{"role": "user", "content": None}]])
    maps = pa.array([[{"parameters": [("a", None)]}]], pa.list_(pa.struct([("parameters", pa.map_("str", "str"))])))
    data = {"messages": turns, "tools": maps, "functions": as_json('[{"a": null}]'), "input": [{"a": None}]}
    assert values(write(pa.table(data))) == [
        {
            "messages": [{"role": "user", "content": None}],
            "tools": [{"parameters": {"a": None}}],
            "functions": [{"a": None}],
            "input": {"a": None},
        }
    ]


def as_json(*values: Any) -> pa.Array:
    """Return texts in the type that `datasets` gives to columns whose values differ in type."""
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(values, pa.string()))


@each_kind
def test_json_in_a_column_is_read_as_its_values(write: Write, values: Any) -> None:
    cells = as_json('{"a": [1, {"b": null}], "c": NaN}', "null", None, '"text"', "1.5")
    assert values(write(pa.table({"c": cells}))) == [
        {"c": {"a": [1, {"b": None}], "c": None}}, {"c": None}, {"c": None}, {"c": "text"}, {"c": 1.5}
    ]  # fmt: skip


@each_kind
def test_json_is_read_at_every_depth_of_a_column(write: Write, values: Any) -> None:
    turns = as_json('{"role": "user", "content": "q"}', '{"role": "assistant", "content": "a", "weight": 1}')
    listed = pa.ListArray.from_arrays(pa.array([0, 2, 2], pa.int32()), turns)
    struct = pa.StructArray.from_arrays([as_json('{"a": 1}', None), pa.array(["x", "y"])], ["properties", "type"])
    items = pa.MapArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(["k", "k"]), as_json("[1]", "{}"))
    assert values(write(pa.table({"messages": listed, "s": struct, "m": items}))) == [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "weight": 1},
            ],
            "s": {"properties": {"a": 1}, "type": "x"},
            "m": {"k": [1]},
        },
        {"messages": [], "s": {"properties": None, "type": "y"}, "m": {"k": {}}},
    ]


@each_kind
@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("{", RejectCode.BAD_JSON, "unexpected end"),
        ('{"a": 1, "a": 2}', RejectCode.DUP_KEY, "contains the key 'a' twice"),
        ('"\\ud800"', RejectCode.LONE_SURROGATE, "half of a surrogate pair"),
        ("[" * 300 + "]" * 300, RejectCode.BAD_JSON, "nested too deep"),
    ],
)
def test_bad_json_in_a_column_costs_its_row_alone(
    write: Write, text: str, code: RejectCode, detail: str, tmp_path: Path
) -> None:
    first, bad, last = read(tmp_path / "rows", write(pa.table({"c": as_json("1", text, "2")})))
    assert (first.value, last.value) == ({"c": 1}, {"c": 2})
    assert bad.problem is not None
    assert bad.problem.code is code
    assert bad.problem.detail.startswith("in a column of JSON, ")
    assert detail in bad.problem.detail.lower()


def invalid_text(*texts: bytes) -> pa.Array:
    stored = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(stored), stored.buffers())


@each_kind
def test_a_text_that_is_not_utf8_costs_its_row_alone(write: Write, values: Any) -> None:
    assert values(write(pa.table({"a": invalid_text(b"x", b"\xff", b"y")}))) == [
        {"a": "x"},
        RejectCode.BAD_UTF8,
        {"a": "y"},
    ]


@pytest.mark.parametrize("write", [arrow_file, arrow_stream])
def test_a_dictionary_with_a_text_that_is_not_utf8_costs_the_rows_that_have_it(write: Write, values: Any) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.int32()), invalid_text(b"x", b"\xff"))
    assert values(write(pa.table({"a": column}))) == [{"a": "x"}, RejectCode.BAD_UTF8, {"a": None}, {"a": "x"}]


@each_kind
def test_a_map_with_a_key_twice_costs_its_row_alone(write: Write, values: Any) -> None:
    maps = pa.array([[("k", 1)], [("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64()))
    assert values(write(pa.table({"m": maps}))) == [{"m": {"k": 1}}, RejectCode.DUP_KEY]


@each_kind
def test_a_map_with_a_key_that_is_not_utf8_costs_its_row_alone(write: Write, values: Any) -> None:
    maps = pa.array([[(b"k", 1)], [(b"\xff", 2)], None], pa.map_(pa.binary(), pa.int64()))
    assert values(write(pa.table({"m": maps}))) == [{"m": {"k": 1}}, RejectCode.BAD_UTF8, {"m": None}]


def test_a_map_with_two_keys_of_the_same_text_costs_its_row_alone(values: Any) -> None:
    nan = float("nan")
    maps = pa.array([[(nan, 1)], [(nan, 1), (nan, 2)]], pa.map_(pa.float64(), pa.int64()))
    assert values(arrow_file(pa.table({"m": maps}))) == [{"m": {"nan": 1}}, RejectCode.DUP_KEY]


@each_kind
@pytest.mark.parametrize("key", [pa.struct([("a", pa.int64())]), pa.list_(pa.int64())], ids=str)
def test_a_map_whose_keys_have_parts_is_refused_with_the_column(write: Write, key: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"m": pa.array([[]], pa.map_(key, pa.int64()))})
    with pytest.raises(UnreadableFile, match=r"a column 'm' of the type map<.* write the file without this column"):
        read(tmp_path / "rows", write(table))


@pytest.mark.parametrize("write", [arrow_file, arrow_stream])
def test_a_column_that_is_there_twice_is_refused_with_its_name(write: Write, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["own", "own"])
    with pytest.raises(UnreadableFile, match=r"rows\.arrow contains the column 'own' twice"):
        read(tmp_path / "rows.arrow", write(table))


def test_a_type_that_json_does_not_have_is_refused_with_the_column(tmp_path: Path) -> None:
    table = pa.table({"u": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])})
    with pytest.raises(UnreadableFile, match=r"column 'u' of the type sparse_union.* write the file without"):
        read(tmp_path / "rows.arrow", arrow_file(table))


def test_a_type_nested_without_end_is_refused(tmp_path: Path) -> None:
    nested = pa.array([1])
    for _ in range(60):
        nested = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), nested)
    with pytest.raises(UnreadableFile, match="nests the column 'deep' more than 32 levels deep"):
        read(tmp_path / "rows.arrow", arrow_file(pa.table({"deep": nested})))


@each_kind
def test_a_row_above_the_limit_is_one_bad_row(write: Write, values: Any) -> None:
    texts = pa.array(["a", "b" * (17 << 20), "c"])
    assert values(write(pa.table({"t": texts}))) == [{"t": "a"}, RejectCode.TOO_LONG, {"t": "c"}]


def test_a_row_may_be_as_large_as_the_limit(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    content = arrow_file(pa.table({"n": [1]}))
    monkeypatch.setattr(columnar, "MAX_ROW_BYTES", 8 + OBJECT_BYTES)
    assert values(content) == [{"n": 1}]
    monkeypatch.setattr(columnar, "MAX_ROW_BYTES", 7 + OBJECT_BYTES)
    assert values(content) == [RejectCode.TOO_LONG]


def test_a_row_of_a_million_numbers_is_too_long_whatever_it_takes_in_the_file(values: Any) -> None:
    numbers = pa.array([[0] * 1_000_000, [0]], pa.list_(pa.int8()))
    assert values(parquet(pa.table({"n": numbers}))) == [RejectCode.TOO_LONG, {"n": [0]}]


@pytest.mark.parametrize("write", [parquet, arrow_file])
def test_a_long_text_that_a_dictionary_repeats_is_never_written_out_for_many_rows(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred megabytes of text from a file of one: what is converted at once stays under the limit."""
    text = "x" * (1 << 20)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array([text]))
    path = tmp_path / "rows"
    path.write_bytes(write(pa.table({"t": repeated})))
    most = 0
    convert = columnar.ColumnTypes.to_rows

    def measured(self: Any, rows: pa.RecordBatch) -> list[dict[str, Any]]:
        nonlocal most
        result = convert(self, rows)
        most = max(most, sum(len(row["t"]) for row in result))
        return result

    monkeypatch.setattr(columnar.ColumnTypes, "to_rows", measured)
    assert sum(row.value == {"t": text} for row in read_table(NamedPath(path, "rows"), path.read_bytes()[:4])) == 200
    assert 0 < most <= lines.MAX_ROW_BYTES


def test_a_file_that_would_fill_the_memory_is_refused_by_its_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "EXPANSION_MATTERS_BYTES", 1 << 20)
    content = parquet(pa.table({"t": ["x" * (8 << 20)]}), compression="zstd", use_dictionary=False)
    with pytest.raises(UnreadableFile, match=r"would grow to \d+ when decompressed"):
        read(tmp_path / "rows.parquet", content)


@each_kind
def test_a_table_without_rows_has_none(write: Write, values: Any) -> None:
    assert values(write(pa.table({"a": pa.array([], pa.string())}))) == []


def test_rows_without_columns_are_still_rows(values: Any) -> None:
    assert values(arrow_stream(pa.table({"a": [1, 2]}).select([]))) == [{}, {}]


@each_kind
def test_a_file_cut_short_or_changed_is_damaged_and_never_half_read_in_silence(write: Write, tmp_path: Path) -> None:
    rows = [{"n": index, "messages": TURNS, "m": [b"x"], "d": 1.5} for index in range(40)]
    content = write(pa.Table.from_pylist(rows))
    chance = random.Random(7)
    outcomes = {"read": 0, "damaged": 0}
    for _ in range(150):
        hurt = bytearray(content)
        for _ in range(chance.choice([1, 1, 3])):
            hurt[chance.randrange(8, len(hurt))] = chance.choice([0, 255, 128, chance.randrange(256)])
        if chance.random() < 0.3:
            del hurt[chance.randrange(9, len(hurt)) :]
        try:
            records = read(tmp_path / "rows", bytes(hurt))
        except UnreadableFile:
            outcomes["damaged"] += 1
        else:
            assert len(records) == 40
            outcomes["read"] += 1
    assert outcomes["damaged"] > 50


def test_parquet_inside_gzip_is_refused_with_what_to_do(tmp_path: Path) -> None:
    import gzip

    with pytest.raises(UnreadableFile, match="is a compressed Parquet or Arrow file; decompress it first"):
        records(tmp_path / "rows.parquet.gz", gzip.compress(parquet(pa.table({"a": [1]}))))


@each_kind
def test_bytes_read_grows_to_the_size_of_the_file(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(write(pa.table({"a": list(range(100))})))
    file = RowFile(NamedPath(path, "rows"))
    positions = [file.bytes_read for _ in file.records()]
    assert positions == sorted(positions)
    assert 0 < positions[-1] < file.bytes_read == path.stat().st_size


def test_the_excerpt_of_a_row_is_its_start_as_json(tmp_path: Path) -> None:
    (record,) = records(tmp_path / "rows", parquet(pa.table({"a": ["é" * 500], "b": [b"\xff"]})))
    assert record.excerpt == '{"a":"' + "é" * 114


@pytest.mark.process
def test_pyarrow_is_loaded_by_the_child_process_alone(tmp_path: Path) -> None:
    table = pa.table({"at": pa.array([1], pa.timestamp("ns", "Europe/Berlin")), "s": ["x"]})
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    code = f"""
import sys, pathlib
from finetune_trainer.data.readers.rows_of_file import Record, RowFile
from finetune_trainer.data.rows import NamedPath
for name in ("a.jsonl", "a.parquet"):
    print(sum(1 for _ in RowFile(NamedPath(pathlib.Path({str(tmp_path)!r}) / name, name)).records()), end=" ")
    print([module for module in ("pyarrow", "pandas", "datasets") if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["1 []", "1 []"]
