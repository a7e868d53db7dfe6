"""The child process that reads a table: PATH NAME MAGIC MEMORY SECONDS, and rows to standard output."""

import os
import sys
from pathlib import Path

import orjson

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.readers.table_process import BYTES_KEY, LENGTH_BYTES, OUT_OF_LIMITS
from finetune_trainer.data.rows import NamedPath, TableRow, UnreadableFile
from finetune_trainer.limits import limit_process


def main() -> int:
    """Read the table that the arguments name; return OUT_OF_LIMITS if it does not fit."""
    path, name, magic, memory, seconds = sys.argv[1:]
    # The allocators that pyarrow prefers reserve memory ahead, which would count against the limit.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    from finetune_trainer.data.readers.arrow import read_table  # noqa: PLC0415 - it loads pyarrow

    limit_process(int(memory), int(seconds))
    try:
        for row in read_table(NamedPath(Path(path), name), bytes.fromhex(magic)):
            _write_row(row)
    except UnreadableFile as error:
        _write([0, None, str(error), 0, ()])
    except (MemoryError, BrokenPipeError):
        return OUT_OF_LIMITS
    return 0


def _write_row(row: TableRow) -> None:
    problem = [row.problem.code, row.problem.detail] if row.problem else None
    try:
        _write([row.number, row.value, problem, row.share, row.repairs])
    except TypeError:
        _write([row.number, None, [RejectCode.BAD_JSON, "the row is nested too deep"], row.share, ()])


def _write(message: list[object]) -> None:
    content = orjson.dumps(message, default=lambda cell: {BYTES_KEY: cell.hex()})
    sys.stdout.buffer.write(len(content).to_bytes(LENGTH_BYTES))
    sys.stdout.buffer.write(content)


if __name__ == "__main__":
    sys.exit(main())
