"""Read a table in a child process with limits: a small file that grows in memory ends this child alone.

How much memory a batch or a page takes is certain only after it was decompressed: sizes in headers are the author's.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any, cast

import orjson

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.readers.json_row import load_exactly
from finetune_trainer.data.readers.lines import MAX_ROW_BYTES
from finetune_trainer.data.rows import BadRow, NamedPath, TableRow, UnreadableFile
from finetune_trainer.monitoring.host_memory import available_bytes

MAX_MEMORY_BYTES = 1 << 30
"""Memory of the child beyond what it takes at its start, or half of what this container has left if that is less."""
SECONDS, SECONDS_PER_MIB = 60, 20
"""CPU time of the child; a MiB of text takes about a tenth of a second."""
OUT_OF_LIMITS = 3
LENGTH_BYTES = 4
MAX_MESSAGE_BYTES = 8 * MAX_ROW_BYTES
"""A row of at most `MAX_ROW_BYTES`, as JSON with each character escaped."""
BYTES_KEY = "\0"
"""Key of an object that represents bytes which are not text."""
_BYTES_MARK = orjson.dumps({BYTES_KEY: 0})[:-2]
# The child parses what a stranger wrote: it gets no keys.
PASSED_ON = ("PATH", "PYTHONPATH", "HOME", "TMPDIR", "LANG")


def read_table_apart(path: NamedPath, start: bytes) -> Iterator[TableRow]:
    """Yield every row of a Parquet or Arrow file; raises UnreadableFile if it is damaged, or exceeds a limit."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ModuleNotFoundError("Parquet and Arrow files need pyarrow", name="pyarrow")
    memory = min(MAX_MEMORY_BYTES, available_bytes() // 2)
    seconds = SECONDS + SECONDS_PER_MIB * (path.path.stat().st_size >> 20)
    options = [str(path.path), path.name, start[:4].hex(), str(memory), str(seconds)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "finetune_trainer.data.readers.table_worker", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
        ) as child,
    ):
        assert child.stdout is not None  # noqa: S101 - for the type checker
        try:
            yield from _read_rows(child.stdout)
        except BaseException:
            child.kill()
            raise
        child.stdout.close()  # a child that still writes ends
        if child.wait() > 0 and child.returncode != OUT_OF_LIMITS:
            errors.seek(0)
            raise RuntimeError(f"{path.name}: {errors.read()[-2000:].decode(errors='replace')}")
    if child.returncode:
        raise UnreadableFile(
            f"{path.name} takes more than {memory >> 20} MiB of memory or {seconds} s to read: "
            "write it with smaller row groups or batches, or as JSON lines"
        )


def _read_rows(stream: IO[bytes]) -> Iterator[TableRow]:
    while len(head := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
        length = int.from_bytes(head)
        if length > MAX_MESSAGE_BYTES or len(message := stream.read(length)) < length:
            return
        number, value, problem, share, repairs = cast("list[Any]", load_exactly(message))
        if number == 0:
            raise UnreadableFile(problem)
        if _BYTES_MARK in message:
            value = _with_bytes(value)
        bad = BadRow(RejectCode(problem[0]), problem[1]) if problem else None
        yield TableRow(number, value, bad, share, tuple(map(RepairCode, repairs)))


def _with_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_bytes(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {BYTES_KEY}:
            try:
                return bytes.fromhex(value[BYTES_KEY])
            except (TypeError, ValueError):  # a map of the file with this key
                return value
        return {key: _with_bytes(item) for key, item in value.items()}
    return value
