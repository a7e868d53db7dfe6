"""Split a byte stream into numbered lines of bounded length."""

from collections.abc import Iterator
from io import BufferedReader

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.rows import BadRow

MAX_ROW_BYTES = 16 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def skip_mark(stream: BufferedReader) -> None:
    """Skip a UTF-8 byte order mark at the start of the stream."""
    if stream.peek(len(BYTE_ORDER_MARK)).startswith(BYTE_ORDER_MARK):
        stream.read(len(BYTE_ORDER_MARK))


def read_lines(stream: BufferedReader, limit: int = MAX_ROW_BYTES) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (line number, line without its end, whole); a line above the limit is truncated and not `whole`."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        whole = len(line) <= limit or line.endswith(b"\n")
        if not whole:
            _skip_to_line_end(stream)
        yield number, line.rstrip(b"\r\n"), whole


def too_long(limit: int = MAX_ROW_BYTES) -> BadRow:
    """Return the error for a row above the limit."""
    return BadRow(RejectCode.TOO_LONG, f"the row is longer than {limit >> 20} MiB")


def _skip_to_line_end(stream: BufferedReader) -> None:
    while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass
