import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.readers.csv import CsvRow, read_csv


def read(text: bytes, delimiter: str = ",", limit: int = 1 << 20) -> list[CsvRow]:
    return list(read_csv(io.BufferedReader(io.BytesIO(text)), delimiter, limit))  # type: ignore[type-var]


def results(rows: list[CsvRow]) -> list[object]:
    return [row.value if row.problem is None else row.problem.code for row in rows]


def test_cells_stay_strings_and_may_span_lines() -> None:
    rows = read(b'a,b\r\n007,"x\r\ny, ""z"""\r\n1.0,true\r\n')
    assert results(rows) == [{"a": "007", "b": 'x\ny, "z"'}, {"a": "1.0", "b": "true"}]
    assert [row.line for row in rows] == [2, 4]


def test_blank_lines_are_not_records() -> None:
    assert results(read(b"a\n\n1\n\n")) == [{"a": "1"}]


def test_semicolons_are_seen_from_the_header() -> None:
    assert results(read(b"a;b\n1,5;2\n")) == [{"a": "1,5", "b": "2"}]


def test_a_ragged_record_is_rejected_and_the_next_is_read() -> None:
    assert results(read(b"a,b\n1\n1,2,3\n1,2\n")) == [
        RejectCode.MISSING_COLUMN,
        RejectCode.MISSING_COLUMN,
        {"a": "1", "b": "2"},
    ]


def test_a_header_that_names_a_column_twice_is_rejected_row_by_row() -> None:
    assert results(read(b"a,a\n1,2\n")) == [RejectCode.DUP_KEY]


@pytest.mark.parametrize("again", [b"a,b", b'"a", b', b"\xef\xbb\xbfa,b", b'\xef\xbb\xbf"a","b"'])
def test_a_header_between_the_rows_of_joined_files_is_not_a_row(again: bytes) -> None:
    rows = read(b"a,b\n1,2\n" + again + b"\n3,4\n")
    assert results(rows) == [{"a": "1", "b": "2"}, RejectCode.BAD_JSON, {"a": "3", "b": "4"}]
    assert rows[1].problem is not None
    assert (rows[1].line, rows[1].problem.detail) == (
        3,
        "the record repeats the header, as in files that were joined: remove the line",
    )


def test_rows_below_a_header_in_another_order_are_refused_with_its_line() -> None:
    rows = read(b"a,b\n1,2\nb,a\n3,4\na,b\n5,6\n")
    bad = RejectCode.BAD_JSON
    assert results(rows) == [{"a": "1", "b": "2"}, bad, bad, bad, {"a": "5", "b": "6"}]
    details = {row.problem.detail for row in rows[1:3] if row.problem}
    assert details == {"line 3 is a header with the columns in another order: make it a file of its own"}


def test_columns_without_a_name_get_one() -> None:
    assert results(read(b",a,,\n0,x,,\n1,y,z,\n")) == [
        {"Unnamed: 0": "0", "a": "x", "Unnamed: 2": "", "Unnamed: 3": ""},
        {"Unnamed: 0": "1", "a": "y", "Unnamed: 2": "z", "Unnamed: 3": ""},
    ]


def test_semicolons_are_seen_from_a_header_with_a_comma_in_quotes() -> None:
    assert results(read(b'"a, or b";"c"\n1,5;2\n')) == [{"a, or b": "1,5", "c": "2"}]


def test_bytes_that_are_not_utf8_are_rejected_with_their_line() -> None:
    rows = read(b"a,b\n1,\xff\n3,\xc3\xa9\n")
    assert results(rows) == [RejectCode.BAD_UTF8, {"a": "3", "b": "é"}]
    assert rows[0].line == 2


def test_text_after_a_closing_quote_is_not_csv() -> None:
    rows = read(b'a,b\n"x"y,1\n2,3\n')
    assert results(rows) == [RejectCode.BAD_JSON, {"a": "2", "b": "3"}]
    assert rows[0].problem is not None
    assert rows[0].problem.detail.startswith("not a CSV record: ")


def test_a_quote_that_never_closes_costs_lines_that_are_each_rejected_by_number() -> None:
    rows = read(b'a,b\n1,2\n3,"x\n\n5,6\n7,8\n')
    assert [(row.line, row.text) for row in rows[1:]] == [(3, '3,"x'), (5, "5,6"), (6, "7,8")]
    assert results(rows) == [{"a": "1", "b": "2"}, *[RejectCode.BAD_JSON] * 3]
    details = [row.problem.detail for row in rows if row.problem]
    assert "never closed" in details[0]
    assert all("begins in line 3" in detail for detail in details[1:])


def test_a_quote_that_closes_in_the_wrong_place_costs_the_lines_up_to_there() -> None:
    rows = read(b'a,b\n1,"x\n3,4\n5,"6"\n7,8\n')
    assert results(rows) == [*[RejectCode.BAD_JSON] * 3, {"a": "7", "b": "8"}]
    assert [row.line for row in rows] == [2, 3, 4, 5]


def test_a_record_above_the_limit_ends_there_and_its_lines_are_rejected() -> None:
    rows = read(b'a,b\n"x,1\n' + b"y,2\n" * 200, limit=400)
    assert results(rows)[0] is RejectCode.TOO_LONG
    assert [row.line for row in rows] == list(range(2, 203))
    swallowed = [row for row in rows if row.problem]
    assert 90 < len(swallowed) < 110
    assert all(row.value == {"a": "y", "b": "2"} for row in rows[len(swallowed) :])


def test_a_line_above_the_limit_is_one_bad_row() -> None:
    assert results(read(b"a,b\n" + b"x" * 500 + b",1\n1,2\n", limit=400)) == [
        RejectCode.TOO_LONG,
        {"a": "1", "b": "2"},
    ]


cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6) | st.sampled_from(['"', ",", "\n"])


@given(rows=st.lists(st.tuples(cells, cells, cells), max_size=6), delimiter=st.sampled_from([",", ";", "\t"]))
@settings(max_examples=60, deadline=None)
def test_what_a_spreadsheet_writes_is_read_back_with_its_lines(rows: list[tuple[str, ...]], delimiter: str) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    starts = []
    for row in [("a", "b", "c"), *rows]:
        starts.append(out.getvalue().count("\n") + 1)
        writer.writerow(row)
    found = read(out.getvalue().encode(), "\t" if delimiter == "\t" else ",")
    assert results(found) == [dict(zip("abc", row, strict=True)) for row in rows]
    assert [row.line for row in found] == starts[1:]


@given(st.lists(st.sampled_from([b'"', b",", b"\n", b"a", b"\r", b"\xff", b"\0"]), max_size=40).map(b"".join))
@settings(max_examples=150, deadline=None)
def test_every_line_of_any_text_is_in_one_row_in_order(text: bytes) -> None:
    rows = read(b"a,b\n" + text)
    assert [row.line for row in rows] == sorted({row.line for row in rows})
    found = "".join(row.text for row in rows).replace("\n", "").encode("utf-8", "surrogateescape")
    kept = b"".join(line.rstrip(b"\r") for line in text.split(b"\n"))
    assert found.replace(b" ", b"") == kept
