import bz2
import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.readers import lines
from finetune_trainer.data.readers.rows_of_file import Record, RowFile
from finetune_trainer.data.rows import NamedPath, UnreadableFile


def read(path: Path, content: bytes) -> list[Record]:
    path.write_bytes(content)
    return list(RowFile(NamedPath(path, path.name)).records())


def values(records: list[Record]) -> list[object]:
    return [record.value if record.problem is None else record.problem.code for record in records]


def test_a_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    records = read(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}\r\n')
    assert values(records) == [{"a": 1}, {"a": 2}]
    assert [record.line for record in records] == [1, 4]


def test_a_last_line_without_its_end_is_read(tmp_path: Path) -> None:
    assert values(read(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": 2}')) == [{"a": 1}, {"a": 2}]


def zstandard(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compression_is_known_by_its_bytes_and_the_name_before_its_suffix_decides_the_format(
    tmp_path: Path, suffix: str
) -> None:
    pack = PACKERS[suffix]
    assert values(read(tmp_path / f"a.csv{suffix}", pack(b"a,b\n1,x\n"))) == [{"a": "1", "b": "x"}]
    assert values(read(tmp_path / "a.jsonl", pack(b'{"a": 1}\n'))) == [{"a": 1}]
    two = pack(b'{"a": 1}\n') + pack(b'{"a": 2}\n')
    assert values(read(tmp_path / f"parts.jsonl{suffix}", two)) == [{"a": 1}, {"a": 2}]
    with pytest.raises(UnreadableFile, match="is a compressed Parquet or Arrow file; decompress it first"):
        read(tmp_path / f"a.parquet{suffix}", pack(b"PAR1...."))


def test_a_table_whose_header_begins_like_bzip2_is_read(tmp_path: Path) -> None:
    assert values(read(tmp_path / "a.csv", b"BZh9,b\n1,x\n")) == [{"BZh9": "1", "b": "x"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a"])
def test_every_line_of_rows_whose_first_key_is_data_is_a_row(tmp_path: Path, name: str) -> None:
    records = read(tmp_path / name, b'{"data": ["x"], "n": 1}\n{"data": [{"y": 1}], "n": 2}\n{"n": 3}\n')
    assert [(record.line, record.value and record.value["n"]) for record in records] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(("name", "separator"), [("a.csv.gz", ","), ("A.TSV.GZ", "\t")])
def test_a_table_that_was_decompressed_on_its_way_and_kept_its_name_is_read_as_before(
    tmp_path: Path, name: str, separator: str
) -> None:
    content = f"a{separator}b\n1{separator}x\n".encode()
    assert values(read(tmp_path / name, content)) == [{"a": "1", "b": "x"}]


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b'{"a": 1}\n' * 999)[:-20],
        gzip.compress(b"{}")[:-8] + b"x" * 8,
        bz2.compress(b'{"a": 1}\n' * 999)[:-20],
        bz2.compress(b"{}" * 99)[:-12] + b"x" * 12,
        zstandard(b'{"a": 1}\n' * 999)[:-8],
        zstandard(b'{"a": 1}\n' * 999) + b"more",
    ],
    ids=["gzip cut off", "another checksum", "bzip2 cut off", "damaged", "Zstandard cut off", "more behind it"],
)
def test_a_damaged_compressed_file_is_an_error_of_the_file_and_not_a_few_missing_rows(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(UnreadableFile, match=r"a\.jsonl is a damaged (gzip|bzip2|Zstandard) file"):
        read(tmp_path / "a.jsonl", content)


@pytest.mark.parametrize(
    ("content", "what"), [(b"PAR1....", "Parquet"), (b"PK\x03\x04..", "ZIP"), (b"\xff\xfe{\x00", "UTF-16")]
)
def test_a_foreign_file_is_named_for_what_it_is(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(UnreadableFile, match=what):
        read(tmp_path / "a.jsonl", content)


@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_a_tar_archive_is_refused_under_any_name(tmp_path: Path, suffix: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("a.jsonl", "b.jsonl"):
            member = tarfile.TarInfo(name)
            member.size = 9
            archive.addfile(member, io.BytesIO(b'{"a": 1}\n'))
    for kind in ("a.jsonl", "a.csv"):
        with pytest.raises(UnreadableFile, match=rf"{kind}\S* is a tar archive: extract its files, and name their fol"):
            read(tmp_path / f"{kind}{suffix}", PACKERS.get(suffix, bytes)(packed.getvalue()))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_utf16_without_a_mark_is_refused(tmp_path: Path, encoding: str, name: str) -> None:
    with pytest.raises(UnreadableFile, match=rf"{name} is a text in UTF-16; .* in UTF-8"):
        read(tmp_path / name, '{"a": "é"}\n'.encode(encoding))


@pytest.mark.parametrize("column", ["ORCID", "ORC", "PARENT", "FEA1"])
def test_a_csv_header_may_begin_with_the_letters_of_a_foreign_file(tmp_path: Path, column: str) -> None:
    assert values(read(tmp_path / "a.csv", f"{column},b\n1,x\n".encode())) == [{column: "1", "b": "x"}]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"ORC\x1d\x00\x00\x0a", "an ORC file"),
        (b"ORCa\x00\x00", "an ORC file"),
        (b"PARE\x15\x00", "an encrypted Parquet file"),
        (b"FEA1\x00\x00\x00\x00", "a Feather file"),
    ],
)
def test_a_foreign_file_whose_first_bytes_are_letters_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(UnreadableFile, match=what):
        read(tmp_path / "a.jsonl", content)


def test_a_missing_file_is_an_unreadable_one(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"gone\.jsonl cannot be read: No such file"):
        list(RowFile(NamedPath(tmp_path / "gone.jsonl", "gone.jsonl")).records())


def test_a_line_above_the_limit_is_one_bad_row_and_the_next_is_read(tmp_path: Path) -> None:
    long = b'{"a": "' + b"x" * (lines.MAX_ROW_BYTES + 5) + b'"}'
    records = read(tmp_path / "a.jsonl", long + b'\n{"a": 2}\n')
    assert values(records) == [RejectCode.TOO_LONG, {"a": 2}]
    assert [record.line for record in records] == [1, 2]
    assert len(records[0].excerpt) == 120


@pytest.mark.parametrize("suffix", PACKERS)
def test_bytes_read_reaches_the_size_of_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](b'{"a": 1}\n' * 1000))
    file = RowFile(NamedPath(path, path.name))
    assert sum(1 for _ in file.records()) == 1000
    assert file.bytes_read == path.stat().st_size


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{bad}", RejectCode.BAD_JSON),
        (b'{"a": NaN,}', RejectCode.BAD_JSON),
        (b'{"a":' * 5000, RejectCode.BAD_JSON),
        (b'{"a": "\xff"}', RejectCode.BAD_UTF8),
        (b'{"a": "\xed\xa0\x80"}', RejectCode.BAD_UTF8),
        (b'{"a": "\\ud800"}', RejectCode.LONE_SURROGATE),
        (b'{"a": 1, "a": 2}', RejectCode.DUP_KEY),
        (b'{"a": {"b": 1, "b": 1}}', RejectCode.DUP_KEY),
        (b'{"a": "\\u0022", "b": 1, "b": 2}', RejectCode.DUP_KEY),
        (b"[1]", RejectCode.NOT_OBJECT),
        (b'"text"', RejectCode.NOT_OBJECT),
    ],
)
def test_a_fault_of_a_line_is_reported_exactly(tmp_path: Path, raw: bytes, code: RejectCode) -> None:
    assert values(read(tmp_path / "a.jsonl", b'{"a": 1}\n' + raw)) == [{"a": 1}, code]


def test_an_escaped_quote_is_not_taken_for_a_second_key(tmp_path: Path) -> None:
    raw = b'{"a": "\\u0022\\"", "b": "\\\\"}'
    assert values(read(tmp_path / "a.jsonl", raw)) == [{"a": '""', "b": "\\"}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=4), max_size=6)


@given(rows=rows, ascii_only=st.booleans(), indent=st.sampled_from([None, 0, 2]), shape=st.sampled_from("lad"))
@settings(max_examples=60, deadline=None)
def test_every_way_to_write_the_same_rows_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, object]],
    ascii_only: bool,
    indent: int | None,
    shape: str,
) -> None:
    path = tmp_path_factory.mktemp("read") / ("a.jsonl" if shape == "l" else "a.json")
    if shape == "l":
        text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    else:
        text = json.dumps(rows if shape == "a" else {"data": rows}, ensure_ascii=ascii_only, indent=indent)
    assert values(read(path, text.encode())) == rows


@given(content=st.binary(max_size=300), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a"]))
@settings(max_examples=120, deadline=None)
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.mktemp("read") / name
    try:
        records = read(path, content)
    except UnreadableFile:
        return
    assert all((record.value is None) != (record.problem is None) for record in records)
    assert [record.line for record in records] == sorted(record.line for record in records)


@given(mess=st.lists(st.sampled_from('{}[]",:\\ \n1aé'), max_size=40).map("".join))
@settings(max_examples=120, deadline=None)
def test_a_broken_line_never_costs_the_lines_around_it(tmp_path_factory: pytest.TempPathFactory, mess: str) -> None:
    path = tmp_path_factory.mktemp("read") / "a.jsonl"
    line = mess.replace("\n", " ")
    records = read(path, b'{"first": 1}\n' + line.encode() + b'\n{"last": 1}\n')
    assert (records[0].line, records[0].value) == (1, {"first": 1})
    assert (records[-1].line, records[-1].value) == (3, {"last": 1})
