"""Read files of rows in bounded memory: JSONL, JSON, CSV and TSV, compressed or not, Parquet and Arrow."""

import bz2
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import starmap
from pathlib import PurePath
from typing import Any, NamedTuple, cast

import orjson

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats.fields import MAX_LITERAL_CHARACTERS, parse_nested
from finetune_trainer.data.readers.csv import read_csv
from finetune_trainer.data.readers.json_row import parse_object
from finetune_trainer.data.readers.json_stream import looks_like_rows_in_one_value, read_elements
from finetune_trainer.data.readers.lines import read_lines, skip_mark, too_long
from finetune_trainer.data.readers.table_process import read_table_apart
from finetune_trainer.data.rows import EXCERPT_CHARACTERS, BadRow, NamedPath, UnreadableFile

BUFFER_BYTES = 1 << 18
COLUMNAR_MAGICS = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")
FOREIGN_FILES = {
    b"PARE": "an encrypted Parquet file",
    b"FEA1": "a Feather file of the first version",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\x80\x04": "a pickle, which is not opened because it can run code",
    b"\x80\x05": "a pickle, which is not opened because it can run code",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"7z\xbc\xaf": "a 7z archive",
    b"\xfd7zXZ": "an xz file",
    b"\xff\xfe": "a text in UTF-16",
    b"\xfe\xff": "a text in UTF-16",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a Git LFS pointer instead of the file itself",
    b"<!DOCTYPE html": "a web page instead of the file itself",
    b"<html": "a web page instead of the file itself",
}
LETTERS_ALONE = (b"PARE", b"FEA1", b"ORC")
"""First bytes of foreign files with which the header of a CSV file may begin, too."""
SUPPORTED = "JSONL, JSON, CSV and TSV in UTF-8, compressed with gzip, bzip2 or Zstandard, Parquet and Arrow are read"
COMPRESSIONS = {"gzip": rb"\x1f\x8b", "bzip2": rb"BZh[1-9](1AY&SY|\x17rE8P)", "Zstandard": rb"\x28\xb5\x2f\xfd"}
"""Expressions for the first bytes of a compressed file."""
COMPRESSED_SUFFIXES = {".gz", ".bz2", ".zst"}
_TAR, _TAR_AT = b"ustar", 257

_WIDE_LETTERS = re.compile(rb"(?:[\t-~]\0){4}|(?:\0[\t-~]){4}")
_PYTHON_DICT = re.compile(rb"\s*\{'")
_ARRAY_UNDER_KEY = re.compile(rb'\s*\{\s*"(\w{1,40})"\s*:\s*\[\s*\{')
_CONTROL_CHARACTER = re.compile(rb"[\x00-\x08\x0e-\x1f]")


class Record(NamedTuple):
    """One row of a file: its value or its problem."""

    line: int
    value: dict[str, Any] | None
    problem: BadRow | None
    source: bytes | str | Mapping[str, Any]
    repairs: tuple[RepairCode, ...] = ()

    @property
    def excerpt(self) -> str:
        """The start of the row, without incomplete characters."""
        if isinstance(self.source, bytes):
            return self.source[: 4 * EXCERPT_CHARACTERS].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]
        text = self.source if isinstance(self.source, str) else _dump(self.source)
        return text[:EXCERPT_CHARACTERS].rstrip("\n").encode("utf-8", "replace").decode("utf-8")


class RowFile:
    """One file of rows; `bytes_read` counts the bytes of the file itself, compressed or not."""

    def __init__(self, path: NamedPath) -> None:
        self._path = path
        self._file: io.BufferedReader | None = None
        self._compression = ""
        self._finished = 0

    @property
    def bytes_read(self) -> int:
        """The number of bytes read so far."""
        return self._file.tell() if self._file else self._finished

    def records(self) -> Iterator[Record]:
        """Yield every row in order, skipping blank lines; raises UnreadableFile if the file has no rows."""
        name = self._path.name
        try:
            file: io.BufferedReader = io.BufferedReader(io.FileIO(self._path.path), BUFFER_BYTES)
            with file:
                start = file.peek(BUFFER_BYTES)
                if start.startswith(COLUMNAR_MAGICS):
                    yield from self._table_records(start)
                else:
                    self._file = file
                    self._compression = next(
                        (kind for kind, magic in COMPRESSIONS.items() if re.match(magic, start)), ""
                    )
                    yield from _text_records(_decompress(file, self._compression), self._path)
                self._finished = self._path.path.stat().st_size
        except (EOFError, zlib.error, OSError) as error:
            if self._compression and getattr(error, "errno", None) is None:  # not from the machine
                raise UnreadableFile(f"{name} is a damaged {self._compression} file: {error}") from error
            raise UnreadableFile(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        finally:
            self._file = None

    def _table_records(self, start: bytes) -> Iterator[Record]:
        size = self._path.path.stat().st_size
        for number, value, problem, share, repairs in read_table_apart(self._path, start):
            self._finished = int(share * size)
            yield Record(number, value, problem, value or {}, repairs)


def _decompress(file: io.BufferedReader, compression: str) -> io.BufferedReader:
    if not compression:
        return file
    if compression == "Zstandard":
        import pyarrow  # noqa: PLC0415 - few files need it

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    else:
        stream = gzip.GzipFile(fileobj=file) if compression == "gzip" else bz2.BZ2File(file)
    return io.BufferedReader(cast("io.RawIOBase", stream), BUFFER_BYTES)


def _text_records(stream: io.BufferedReader, path: NamedPath) -> Iterator[Record]:
    name = path.name
    parts = [suffix.lower() for suffix in PurePath(path.file_name or name).suffixes]
    suffixes = [suffix for suffix in parts if suffix not in COMPRESSED_SUFFIXES]
    start = stream.peek(BUFFER_BYTES)
    _refuse_foreign(start, name)
    skip_mark(stream)
    kind = suffixes[-1] if suffixes else ""
    if kind in (".csv", ".tsv"):
        return starmap(Record, read_csv(stream, "\t" if kind == ".tsv" else ","))
    if looks_like_rows_in_one_value(stream.peek(BUFFER_BYTES), is_json_file=kind == ".json"):
        return _json_records(read_elements(stream))
    return _json_records(read_lines(stream))


def _refuse_foreign(start: bytes, name: str) -> None:
    if start.startswith(COLUMNAR_MAGICS):
        raise UnreadableFile(f"{name} is a compressed Parquet or Arrow file; decompress it first")
    if start.startswith(_TAR, _TAR_AT) and b"\0" in start[:_TAR_AT]:
        raise UnreadableFile(f"{name} is a tar archive: extract its files, and name their folder")
    if _WIDE_LETTERS.match(start):
        raise UnreadableFile(f"{name} is a text in UTF-16; {SUPPORTED}")
    for magic, what in FOREIGN_FILES.items():
        if start.startswith(magic) and (magic not in LETTERS_ALONE or _CONTROL_CHARACTER.search(start, 0, 64)):
            raise UnreadableFile(f"{name} is {what}; {SUPPORTED}")


def _json_records(elements: Iterable[tuple[int, bytes, bool]]) -> Iterator[Record]:
    for line, raw, whole in elements:
        if not whole:
            yield Record(line, None, _explain_long(raw), raw[: 4 * EXCERPT_CHARACTERS])
        elif raw and not raw.isspace():
            try:
                value = _parse_literal(raw) if _PYTHON_DICT.match(raw) else parse_object(raw)
                yield Record(line, value, None, raw)
            except BadRow as problem:
                yield Record(line, None, problem, raw)


def _parse_literal(raw: bytes) -> dict[str, Any]:
    """Parse a row that Python wrote with `str`; raises BadRow."""
    try:
        value = parse_nested(raw.decode(), "the row", RejectCode.BAD_JSON)
    except (BadRow, UnicodeDecodeError):
        most = f"{MAX_LITERAL_CHARACTERS >> 10} KiB"
        detail = f"the row is a Python dict with values that JSON does not have, or of more than {most}"
        raise BadRow(RejectCode.BAD_JSON, f"{detail}: write it with json.dumps") from None
    return parse_object(json.dumps(value).encode())


def _explain_long(raw: bytes) -> BadRow:
    problem = too_long()
    if found := _ARRAY_UNDER_KEY.match(raw):
        fix = f"if the rows of the file are under {found[1].decode()!r}, write that array into a file of its own"
        return BadRow(problem.code, f"{problem.detail}: {fix}")
    return problem


def _dump(row: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return repr(row)
