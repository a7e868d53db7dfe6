"""Tables are read in a child process, which changes no row; its limits are in tests/hostile."""

import datetime
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.dataset.codes import RepairCode
from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.readers.arrow import read_table
from finetune_trainer.data.readers.table_process import read_table_apart
from finetune_trainer.data.rows import NamedPath, TableRow, UnreadableFile

pytestmark = pytest.mark.process


def write_arrow(path: Path, table: pa.Table) -> NamedPath:
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return NamedPath(path, path.name)


def write_parquet(path: Path, table: pa.Table) -> NamedPath:
    pq.write_table(table, path)
    return NamedPath(path, path.name)


def read(path: NamedPath) -> list[TableRow]:
    return list(read_table_apart(path, path.path.read_bytes()[:8]))


def children() -> set[str]:
    return set(Path("/proc/thread-self/children").read_text().split())


def as_tuples(rows: list[TableRow]) -> list[Any]:
    return [(row.number, row.value, row.problem and (row.problem.code, row.problem.detail), row.share) for row in rows]


def test_every_row_arrives_as_it_was_read(tmp_path: Path) -> None:
    rows = [
        {
            "at": datetime.datetime(2026, 1, n),
            "n": 2**63 - n,
            "x": float("nan"),
            "d": decimal.Decimal("1.50"),
            "t": "é🦊",
        }
        for n in (1, 2)
    ]
    table = pa.Table.from_pylist(rows).append_column("b", [[b"fine", b"\xff"]])
    for path in (write_parquet(tmp_path / "a.parquet", table), write_arrow(tmp_path / "a.arrow", table)):
        expected = as_tuples(list(read_table(path, path.path.read_bytes()[:8])))
        assert as_tuples(read(path)) == expected
        assert len(expected) == 2


def test_a_map_may_have_the_key_that_marks_bytes(tmp_path: Path) -> None:
    maps = pa.array([[("\0", "no hex")], [("\0", None)]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"m": maps, "b": [b"\xff", b"\xfe"]})
    assert [row.value for row in read(write_arrow(tmp_path / "a.arrow", table))] == [
        {"m": {"\0": "no hex"}, "b": b"\xff"},
        {"m": {"\0": None}, "b": b"\xfe"},
    ]


def test_a_row_that_nests_deep_is_a_row(tmp_path: Path) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[" * 250 + "]" * 250, "[1]"]))
    for _ in range(8):
        texts = pa.StructArray.from_arrays([texts], ["s"])
    path = write_parquet(tmp_path / "a.parquet", pa.table({"c": texts}))
    assert as_tuples(read(path)) == as_tuples(list(read_table(path, b"PAR1")))


def test_long_integers_in_json_arrive_exact(tmp_path: Path) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"id": 12345678901234567890123}', '"é"']))
    path = write_arrow(tmp_path / "a.arrow", pa.table({"c": texts, "b": [b"\xff", b"\0"], "n": [2**63 - 1, -(2**63)]}))
    assert [row.value for row in read(path)] == [
        {"c": {"id": 12345678901234567890123}, "b": b"\xff", "n": 2**63 - 1},
        {"c": "é", "b": "\0", "n": -(2**63)},
    ]


def test_keys_that_are_not_texts_arrive_as_texts(tmp_path: Path) -> None:
    table = pa.table({"m": pa.array([[(7, 0.5)]], pa.map_(pa.int64(), pa.float64()))})
    assert [row.value for row in read(write_parquet(tmp_path / "a.parquet", table))] == [{"m": {"7": 0.5}}]


def test_a_row_of_which_a_null_was_removed_is_counted_as_repaired(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    tools = [[{"name": "f", "strict": None}], [{"name": "g", "strict": True}]]
    path = write_parquet(tmp_path / "a.parquet", pa.table({"conversations": [turns, turns], "tools": tools}))
    rows = list(check_rows([path], summary=Summary()))
    assert [row.repairs for row in rows] == [(RepairCode.NONE_STRIPPED,), ()]
    assert [row.tools for row in rows] == [
        [{"type": "function", "function": {"name": "f"}}],
        [{"type": "function", "function": {"name": "g", "strict": True}}],
    ]


def test_a_damaged_file_has_the_message_of_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    with pytest.raises(UnreadableFile, match=r"a\.parquet is a damaged Parquet file"):
        read(NamedPath(path, path.name))


def test_the_child_has_no_keys_and_ends_with_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    path = write_parquet(tmp_path / "a.parquet", pa.table({"t": ["x" * 1000 + str(n) for n in range(20000)]}))
    before = children()
    rows = read_table_apart(path, b"PAR1")
    assert next(rows).number == 1
    (child,) = children() - before
    assert b"secret" not in Path(f"/proc/{child}/environ").read_bytes()
    rows.close()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{child}").exists()
