"""Who writes the rows of a dataset, and wants the pod that reads them to run out of time or memory."""

import io
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.formats.fields import parse_nested
from finetune_trainer.data.readers import table_process
from finetune_trainer.data.readers.csv import read_csv
from finetune_trainer.data.readers.json_stream import read_elements
from finetune_trainer.data.readers.rows_of_file import Record, RowFile
from finetune_trainer.data.rows import BadRow, NamedPath, UnreadableFile

MIB = 1 << 20


def read(path: Path) -> list[Record]:
    return list(RowFile(NamedPath(path, path.name)).records())


def stream(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))  # type: ignore[type-var]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of the process that reads tables which a small bomb exceeds."""
    monkeypatch.setattr(table_process, "MAX_MEMORY_BYTES", 64 * MIB)
    monkeypatch.setattr(table_process, "SECONDS", 2)


def test_an_arrow_batch_that_grows_in_memory_makes_the_file_unreadable(tmp_path: Path, limits: None) -> None:
    table, path = pa.table({"text": ["x" * (192 * MIB)]}), tmp_path / "bomb.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema, options=options) as writer:
        writer.write_table(table)
    assert path.stat().st_size < MIB
    with pytest.raises(UnreadableFile, match=r"bomb\.arrow takes more than 64 MiB of memory .* smaller row groups"):
        read(path)


def test_a_parquet_page_that_grows_in_memory_makes_the_file_unreadable(tmp_path: Path, limits: None) -> None:
    """Texts inside a list are not kept as a dictionary, so each of them is a copy."""
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"texts": [["x" * MIB]] * 256}), path, compression="zstd")
    assert path.stat().st_size < MIB
    with pytest.raises(UnreadableFile, match=r"bomb\.parquet takes more than 64 MiB"):
        read(path)


def test_rows_without_end_end_with_the_cpu_time_of_the_file(tmp_path: Path, limits: None) -> None:
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"n": pa.repeat(0, 16 * MIB)}), path)
    assert path.stat().st_size < MIB
    with pytest.raises(UnreadableFile, match=r"long\.parquet takes more than .* 2 s to read"):
        for _ in RowFile(NamedPath(path, path.name)).records():
            pass


@pytest.mark.timeout(60)
def test_a_quote_that_stays_open_over_many_short_lines_costs_time_in_proportion() -> None:
    """Copying the record for each of its lines would copy half a terabyte."""
    rows = read_csv(stream(b'a\n"' + b"xxxxxxxxxxxxxxx\n" * (1 << 18)), ",", 8 * MIB)
    assert [row.problem.code for row in rows if row.problem] == [RejectCode.BAD_JSON] * (1 << 18)


@pytest.mark.timeout(60)
def test_brackets_that_never_match_cost_time_in_proportion() -> None:
    """A million brackets: a search through the open ones for each of them would take hours."""
    count = 1 << 19
    assert [whole for _, _, whole in read_elements(stream(b"[" * count + b"}" * count))] == [True]


def test_brackets_that_are_opened_without_end_take_no_memory_for_each() -> None:
    text = b"[" * (1 << 19)
    tracemalloc.start()
    try:
        assert [whole for _, _, whole in read_elements(stream(text), 1 << 16)] == [False]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(text)


def test_a_large_python_literal_is_not_parsed() -> None:
    """Python's parser takes about 500 times its length."""
    with pytest.raises(BadRow, match="a Python literal may have at most 64 KiB"):
        parse_nested("[" + "1," * (MIB // 2) + "]", "messages", RejectCode.BAD_TOOLS)
