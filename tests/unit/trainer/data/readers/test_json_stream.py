import io

import pytest

from finetune_trainer.data.readers import json_stream
from finetune_trainer.data.readers.json_stream import looks_like_rows_in_one_value, read_elements


def elements(text: bytes, limit: int = 1000) -> list[tuple[int, bytes, bool]]:
    return list(read_elements(io.BufferedReader(io.BytesIO(text)), limit))  # type: ignore[type-var]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 18])
def test_rows_of_an_array_keep_their_lines_however_the_bytes_arrive(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk)
    text = b'[\n  {"a": "}],{"},\n  {"b": [1, {"c": 2}]},\n\n  {\n "d": "\\"]" }\n]\n'
    assert [(line, raw) for line, raw, _ in elements(text)] == [
        (2, b'{"a": "}],{"}'),
        (3, b'{"b": [1, {"c": 2}]}'),
        (5, b'{\n "d": "\\"]" }'),
    ]


def test_rows_under_data_are_found_behind_other_keys_and_the_rest_is_not_a_row() -> None:
    text = b'{"version": {"data": [0]}, "n": [1], "data": [{"a": 1}, {"a": 2}], "end": {"a": 3}}'
    assert [raw for _, raw, _ in elements(text)] == [b'{"a": 1}', b'{"a": 2}']


def test_what_follows_the_object_with_the_rows_is_found_too() -> None:
    text = b'{"data": [{"a": 1}],\n "end": [{"a": 2}], "more": "}"}\n{"b": 1},\n{"data": [{"c": 1}]} tail'
    assert [(line, raw) for line, raw, _ in elements(text)] == [
        (1, b'{"a": 1}'),
        (3, b'{"b": 1}'),
        (4, b'{"data": [{"c": 1}]}'),
        (4, b"tail"),
    ]


def test_keys_behind_the_rows_are_no_row_however_long_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 64)
    text = b'{"data": [{"a": 1}], "end": [' + b"1, " * 400 + b'1]}\n{"b": 1}'
    assert [(line, raw) for line, raw, _ in elements(text, limit=200)] == [(1, b'{"a": 1}'), (2, b'{"b": 1}')]


def test_a_data_key_of_a_later_object_is_a_column_of_a_row() -> None:
    assert [raw for _, raw, _ in elements(b'{\n"a": 1}\n{"data": [{"b": 2}]}')] == [
        b'{\n"a": 1}',
        b'{"data": [{"b": 2}]}',
    ]


def test_objects_written_over_many_lines_are_rows() -> None:
    assert [(line, raw) for line, raw, _ in elements(b'{\n"a": 1\n}\n{\n"a": 2\n}')] == [
        (1, b'{\n"a": 1\n}'),
        (4, b'{\n"a": 2\n}'),
    ]


def test_an_element_with_a_bracket_too_few_does_not_cost_the_next_one() -> None:
    assert [raw for _, raw, _ in elements(b'[{"a": [1, 2}, {"b": 1}]')] == [b'{"a": [1, 2}', b'{"b": 1}']


def test_a_string_that_never_ends_costs_its_line_only() -> None:
    assert elements(b'[\n{"a": "x},\n{"b": 1},\n{"c": 1}]')[-1][1] == b'{"c": 1}'


def test_text_between_the_rows_is_a_row_of_its_own() -> None:
    assert [raw for _, raw, _ in elements(b'[{"a": 1}, 7, "x", {"b": 1}] tail')] == [
        b'{"a": 1}',
        b"7",
        b'"x"',
        b'{"b": 1}',
        b"tail",
    ]


def test_an_element_above_the_limit_is_cut_and_the_next_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 64)
    text = b'[{"a": [' + b"1, " * 400 + b'1]},\n{"b": 1}]'
    (first, second) = elements(text, limit=200)
    assert not first[2]
    assert len(first[1]) <= json_stream.CLIPPED_BYTES
    assert second == (2, b'{"b": 1}', True)


@pytest.mark.parametrize(
    ("start", "is_json", "expected"),
    [
        (b'[{"a": 1}]', False, True),
        (b" [ ]", False, True),
        (b"[1, 2]\n", False, False),
        (b'{"data": [{"a": 1}]}', False, False),
        (b'{"data": [{"a": 1}]}\n', True, True),
        (b'{"data": [{"a": 1},\n{"a": 2}]}\n', True, True),
        (b'{"data": [{"a": 1}]}\n{"data": [{"a": 2}]}\n', True, False),
        (b'\n{"data": [{"a": 1}]}\r\n\n{"data"', True, False),
        (b'{"data":' + b"[" * 5000 + b"]" * 5000 + b"}\n1", True, True),
        (b'{"a": 1}\n{"a": 2}\n', True, False),
        (b'{\n "a": 1\n}', True, True),
        (b'{\n "a": 1\n}', False, True),
        (b'{ \r\n\t"a": 1\n}', False, True),
        (b'{\n{"a": 1}\n', False, False),
        (b"garbage", True, False),
    ],
)
def test_one_value_is_distinguished_from_one_row_a_line(start: bytes, is_json: bool, expected: bool) -> None:
    assert looks_like_rows_in_one_value(start, is_json_file=is_json) is expected


def test_the_last_element_is_read_to_its_end_though_it_has_no_bracket() -> None:
    assert [raw for _, raw, _ in elements(b'[{"a": 1}, 71]')] == [b'{"a": 1}', b"71"]
    assert [raw for _, raw, _ in elements(b'[{"a": 1}, 71, 82]')] == [b'{"a": 1}', b"71", b"82"]
