"""Find the rows in a JSON file that is one value: an array, `{"data": [...]}`, or objects over several lines; also in
a file of another name if its first line is a bracket alone.

Only brackets and strings are scanned, so that a malformed element rarely affects the next ones, and only one element is
in memory.
"""

import re
from collections.abc import Iterator
from io import BufferedReader

import orjson

from finetune_trainer.data.readers.lines import MAX_ROW_BYTES

CHUNK_BYTES = 1 << 18
CLIPPED_BYTES = 512
MAX_OPEN = 1 << 14
"""Open brackets that are kept, many times what the JSON parser accepts: a row that is nested deeper is malformed."""
_ARRAY_OF_ROWS = re.compile(rb"\s*\[\s*(?:[{\]]|$)")
_ROWS_UNDER_KEY = re.compile(rb'\s*\{\s*"data"\s*:\s*(?:\[|$)')
_OBJECT_OVER_LINES = re.compile(rb'\s*\{[ \t\r]*\n\s*"')
_ONE_LINE_OBJECT = re.compile(rb"\s*\{[^\n]*\}[ \t\r]*(?:,[ \t\r]*)?(?:\n|$)")
# A string, a bracket, a comma, a newline, or a quote whose string ends neither here nor on this line.
_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+"|[{}\[\],\n"]')
_NEXT_ROW = re.compile(rb"\s+\{")
_VALUE_IS_ROWS = re.compile(rb"\s*:\s*\[(?=\s*(?:[{\]]|$))")
_BETWEEN_ELEMENTS = b", \t\r\n"
_OPENER = {b"}": b"{", b"]": b"["}


def looks_like_rows_in_one_value(start: bytes, *, is_json_file: bool) -> bool:
    """Return, by a file's first bytes, whether its rows are inside one JSON value instead of one per line."""
    if _ARRAY_OF_ROWS.match(start):
        return True
    if not is_json_file:
        return bool(_OBJECT_OVER_LINES.match(start))
    if start.lstrip()[:1] != b"{":
        return False
    if _ROWS_UNDER_KEY.match(start):
        return not _has_row_in_first_line(start.lstrip())
    return not _ONE_LINE_OBJECT.match(start)


def _has_row_in_first_line(start: bytes) -> bool:
    """Return whether the first line is a JSON value, and others follow: `data` is then a column."""
    line, _, others = start.partition(b"\n")
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return bool(others.strip())


def read_elements(stream: BufferedReader, limit: int = MAX_ROW_BYTES) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (line number, bytes, whole) of every row; of a row above the limit only the start, with `whole` false."""
    return _Splitter(stream, limit).split()


class _Splitter:
    """Counts brackets over a sliding window of the stream."""

    def __init__(self, stream: BufferedReader, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._data = b""
        self._at = 0  # where the next token is searched
        self._start = 0  # where the present element starts, spaces included
        self._start_line = self._line = 1
        self._clipped: bytes | None = None
        self._open: list[bytes] = []
        self._count_open = {b"{": 0, b"[": 0}
        self._in_array = self._under_key = self._leaves_rows = self._behind_rows = self._ended_in_string = False

    def split(self) -> Iterator[tuple[int, bytes, bool]]:
        """Yield the elements in order, and any text between them other than spaces and commas."""
        self._read_more()
        self._enter_array()
        while token := self._next_token():
            end = self._end_of_element(token)
            if end is not None:
                yield from self._take(end)
        yield from self._take(len(self._data))

    def _enter_array(self) -> None:
        """Enter the array that contains the rows; without one, the top-level objects are the rows."""
        if self._data.lstrip()[:1] == b"[":
            self._step_inside(self._data.index(b"[") + 1)
            return
        depth = 0
        for match in _TOKEN.finditer(self._data):
            token = match.group()
            depth += (token in (b"{", b"[")) - (token in (b"}", b"]"))
            if depth == 0 and token == b"}":
                return
            if depth == 1 and token == b'"data"' and (value := _VALUE_IS_ROWS.match(self._data, match.end())):
                self._under_key = True
                self._step_inside(value.end())
                return

    def _step_inside(self, position: int) -> None:
        self._at = self._start = position
        self._start_line = self._line = 1 + self._data.count(b"\n", 0, position)
        self._in_array = True

    def _next_token(self) -> bytes | None:
        while True:
            match = _TOKEN.search(self._data, self._at)
            if match is None:
                self._at = len(self._data)
            elif match.group() != b'"':
                self._at = match.end()
                return match.group()
            elif (line_end := self._data.find(b"\n", match.end())) >= 0:
                self._at = line_end
                if _NEXT_ROW.match(self._data, line_end):
                    self._close_all()  # the brackets that close the element are in the broken string
                    self._ended_in_string = True
                continue
            else:
                self._at = match.start()
            if not self._read_more():
                return None

    def _read_more(self) -> bool:
        if len(self._data) - self._start > self._limit:
            self._clip()
        # At least as much as is held: a string without an end is scanned again from its start each time.
        chunk = self._stream.read(max(CHUNK_BYTES, min(len(self._data) - self._start, self._limit)))
        self._data = self._data[self._start :] + chunk
        self._at -= self._start
        self._start = 0
        return bool(chunk)

    def _clip(self) -> None:
        # A string above the limit is dropped too; the scan recovers at the next line end.
        if self._clipped is None:
            self._clipped = self._data[self._start : self._start + CLIPPED_BYTES]
        if len(self._data) - self._at > self._limit:
            self._at = len(self._data)
        self._start = self._at

    def _end_of_element(self, token: bytes) -> int | None:
        if token == b"\n":
            self._line += 1
            ended, self._ended_in_string = self._ended_in_string, False
            return None if self._open or (self._in_array and not ended) else self._at
        if token in (b"{", b"["):
            if len(self._open) < MAX_OPEN:
                self._open.append(token)
                self._count_open[token] += 1
        elif token == b",":
            return None if self._open else self._at - 1
        elif token in _OPENER:
            return self._close(token)
        return None

    def _close(self, token: bytes) -> int | None:
        opener = _OPENER[token]
        if self._count_open[opener]:
            while (popped := self._open.pop()) != opener:
                self._count_open[popped] -= 1
            self._count_open[opener] -= 1
            return None if self._open else self._at
        if token == b"]" and self._in_array:
            self._close_all()
            self._in_array = False
            if self._under_key:  # the rest of the object up to its own bracket is no row
                self._leaves_rows = True
                self._open.append(b"{")
                self._count_open[b"{"] = 1
            return self._at - 1
        return None

    def _close_all(self) -> None:
        self._open.clear()
        self._count_open = dict.fromkeys(self._count_open, 0)

    def _take(self, end: int) -> Iterator[tuple[int, bytes, bool]]:
        raw = self._data[self._start : end]
        text = raw.lstrip(_BETWEEN_ELEMENTS)
        if self._clipped is not None and not self._behind_rows:
            yield self._start_line, self._clipped.lstrip(_BETWEEN_ELEMENTS), False
        elif text and not self._behind_rows:
            yield self._start_line + raw.count(b"\n", 0, len(raw) - len(text)), text.rstrip(), True
        self._behind_rows, self._leaves_rows = self._leaves_rows, False
        self._clipped = None
        self._start = self._at
        self._start_line = self._line
