"""Read Parquet and Arrow files (IPC file and stream) batch by batch, each row with the values that JSON would have.

Timestamps, times, decimals and UTF-8 binary become text, maps become objects, JSON is parsed, and numbers that are not
finite become null. Tools and tool calls lose the null fields that a column has for other rows. No pickle is read, and
no code of an extension type runs: only its storage is read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.readers.arrow_types import ColumnTypes, decoded_bytes, without_dictionaries
from finetune_trainer.data.readers.lines import MAX_ROW_BYTES, too_long
from finetune_trainer.data.rows import BadRow, NamedPath, TableRow, UnreadableFile

PARQUET_MAGIC = b"PAR1"
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
BATCH_ROWS = 1024
PARQUET_ROWS = 256
READ_AHEAD_BYTES = 1 << 20
# Text rarely compresses a hundredfold; data that compresses a thousandfold is meant to fill the memory.
MAX_EXPANSION = 1000
EXPANSION_MATTERS_BYTES = 1 << 30
_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_Converted = tuple[dict[str, Any] | None, BadRow | None, tuple[RepairCode, ...]]


class _Batch(NamedTuple):
    data: pa.RecordBatch
    share: float


def read_table(path: NamedPath, start: bytes) -> Iterator[TableRow]:
    """Yield every row of a Parquet or Arrow file; raises UnreadableFile if it is damaged or unsupported."""
    kind, batches = _KINDS[start[:4]]
    try:
        yield from _rows(batches(path.path), path.name)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise UnreadableFile(f"{path.name} is a damaged {kind} file, write or upload it again: {reason}") from error


def _rows(batches: Iterator[_Batch], name: str) -> Iterator[TableRow]:
    number = 0
    types: ColumnTypes | None = None
    for batch, share in batches:
        types = types or ColumnTypes(batch.schema, name)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for value, problem, repairs in _convert(batch.slice(start, BATCH_ROWS), types):
                number += 1
                yield TableRow(number, value, problem, share, repairs)


def _convert(rows: pa.RecordBatch, types: ColumnTypes) -> Iterator[_Converted]:
    """Convert the rows together if they are valid and small, otherwise by halves, down to the bad one."""
    alone = rows.num_rows == 1
    values = None
    try:
        # Offsets from a file may point outside their buffers, so they are validated first.
        rows.validate(full=True)
        if sum(decoded_bytes(column) for column in rows.columns) <= MAX_ROW_BYTES:
            values = types.to_rows(rows)
    except (pa.ArrowInvalid, UnicodeDecodeError, KeyError, BadRow) as error:
        if alone:
            yield *_convert_alone(rows, types, error), ()
            return
    if values is not None:
        stripped = types.stripped
        for index, value in enumerate(values):
            yield value, None, (RepairCode.NONE_STRIPPED,) if index in stripped else ()
    elif alone:
        yield None, too_long(), ()
    else:
        middle = rows.num_rows // 2
        yield from _convert(rows.slice(0, middle), types)
        yield from _convert(rows.slice(middle), types)


def _convert_alone(
    row: pa.RecordBatch, types: ColumnTypes, error: Exception
) -> tuple[dict[str, Any] | None, BadRow | None]:
    """Convert a row that is broken, or that shares a dictionary with a broken row."""
    if isinstance(error, BadRow):
        return None, error
    if isinstance(error, KeyError):
        return None, BadRow(RejectCode.DUP_KEY, "a map contains the same key twice")
    try:
        return types.to_rows(without_dictionaries(row))[0], None
    except (pa.ArrowInvalid, UnicodeDecodeError) as broken:
        if isinstance(broken, UnicodeDecodeError) or "utf8" in str(broken).lower():
            return None, BadRow(RejectCode.BAD_UTF8, "a text column contains bytes that are not UTF-8")
        raise


def _parquet_batches(path: Path) -> Iterator[_Batch]:
    with pq.ParquetFile(path, buffer_size=READ_AHEAD_BYTES, pre_buffer=False) as file:
        # With a dictionary a value that many rows share is in memory only once.
        texts = [field.name for field in file.schema_arrow if field.type in _TEXTS]
    with pq.ParquetFile(path, buffer_size=READ_AHEAD_BYTES, pre_buffer=False, read_dictionary=texts) as file:
        rows, stored, done = max(file.metadata.num_rows, 1), path.stat().st_size, 0
        for group in range(file.num_row_groups):
            _refuse_bomb(file.metadata.row_group(group).total_byte_size, stored)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group], use_threads=False):
                yield _Batch(batch, min(done / rows, 1))
                done += batch.num_rows
        if done != file.metadata.num_rows:
            raise ValueError(f"it contains {done} rows, but its footer declares {file.metadata.num_rows}")


def _refuse_bomb(size: int, stored: int) -> None:
    if size > EXPANSION_MATTERS_BYTES and size > MAX_EXPANSION * stored:
        raise ValueError(f"{stored} bytes would grow to {size} when decompressed")


def _arrow_file_batches(path: Path) -> Iterator[_Batch]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        for index in range(reader.num_record_batches):
            yield _Batch(reader.get_batch(index), index / reader.num_record_batches)


def _arrow_stream_batches(path: Path) -> Iterator[_Batch]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        size = max(source.size(), 1)
        while True:
            share = source.tell() / size
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                return
            yield _Batch(batch, share)


_KINDS: dict[bytes, tuple[str, Callable[[Path], Iterator[_Batch]]]] = {
    PARQUET_MAGIC: ("Parquet", _parquet_batches),
    ARROW_FILE_MAGIC[:4]: ("Arrow", _arrow_file_batches),
    ARROW_STREAM_MAGIC: ("Arrow", _arrow_stream_batches),
}
