import io

from finetune_trainer.data.csv_rows import CsvRow, read_csv
from finetune_trainer.data.rows import RejectCode


def read(text: bytes, delimiter: str = ",", limit: int = 1 << 20) -> list[CsvRow]:
    return list(read_csv(io.BufferedReader(io.BytesIO(text)), delimiter, limit))  # type: ignore[type-var]


def results(rows: list[CsvRow]) -> list[object]:
    return [row.value if row.problem is None else row.problem.code for row in rows]


def test_cells_stay_strings_and_may_span_lines() -> None:
    rows = read(b'a,b\r\n007,"x\r\ny, ""z"""\r\n1.0,true\r\n')
    assert results(rows) == [{"a": "007", "b": 'x\ny, "z"'}, {"a": "1.0", "b": "true"}]
    assert [row.line for row in rows] == [2, 4]


def test_blank_lines_are_no_records() -> None:
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


def test_bytes_that_are_not_utf8_are_rejected_with_their_line() -> None:
    rows = read(b"a,b\n1,\xff\n3,\xc3\xa9\n")
    assert results(rows) == [RejectCode.BAD_UTF8, {"a": "3", "b": "é"}]
    assert rows[0].line == 2


def test_text_after_a_closing_quote_is_no_csv() -> None:
    assert results(read(b'a,b\n"x"y,1\n2,3\n')) == [RejectCode.BAD_JSON, {"a": "2", "b": "3"}]


def test_a_quote_that_never_closes_ends_at_the_limit() -> None:
    rows = read(b'a,b\n"x,1\n' + b"y,2\n" * 200, limit=400)
    assert RejectCode.TOO_LONG in results(rows)
    assert rows[0].line == 2
