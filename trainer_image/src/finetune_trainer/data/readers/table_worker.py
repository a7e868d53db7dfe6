"""The child process that reads a table: PATH NAME MAGIC MEMORY SECONDS, and rows to standard output."""

import json
import os
import sys
from pathlib import Path

import orjson

from finetune_trainer.data.readers.table_process import BYTES_KEY, LENGTH_BYTES, OUT_OF_LIMITS
from finetune_trainer.data.rows import NamedPath, UnreadableFile
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
            problem = [row.problem.code, row.problem.detail] if row.problem else None
            _write([row.number, row.value, problem, row.share, row.repairs])
    except UnreadableFile as error:
        _write([0, None, str(error), 0, ()])
    except (MemoryError, BrokenPipeError):
        return OUT_OF_LIMITS
    return 0


def _write(message: list[object]) -> None:
    try:
        content = orjson.dumps(message, default=_mark_bytes)
    except TypeError:  # an integer above 64 bits or many levels of JSON
        content = json.dumps(message, default=_mark_bytes, ensure_ascii=False, separators=(",", ":")).encode()
    sys.stdout.buffer.write(len(content).to_bytes(LENGTH_BYTES))
    sys.stdout.buffer.write(content)


def _mark_bytes(cell: bytes) -> dict[str, str]:
    return {BYTES_KEY: cell.hex()}


if __name__ == "__main__":
    sys.exit(main())
