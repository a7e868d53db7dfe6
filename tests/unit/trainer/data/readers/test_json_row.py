from typing import Any

import orjson
import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.readers.json_row import (
    first_repeated,
    load_exactly,
    name_type,
    parse_object,
    parse_value,
)
from finetune_trainer.data.rows import BadRow


@pytest.mark.parametrize(
    ("raw", "code", "detail"),
    [
        (b"[1]", RejectCode.NOT_OBJECT, "expected a JSON object, found an array"),
        (b"null", RejectCode.NOT_OBJECT, "expected a JSON object, found null"),
        (b'{"a": "\xff"}', RejectCode.BAD_UTF8, "byte 8 of the row is not UTF-8"),
        (b'{"a": "\\ud800"}', RejectCode.LONE_SURROGATE, "a \\u escape is half of a surrogate pair"),
        (b" ", RejectCode.BAD_JSON, "the row is empty"),
        (b'{"a": {"b": 1, "b": 2}}', RejectCode.DUP_KEY, "the object contains the key 'b' twice"),
        (b'{"\\u0022": 1, "\\u0022": 2}', RejectCode.DUP_KEY, "the object contains the key '\"' twice"),
    ],
)
def test_a_fault_is_named_exactly(raw: bytes, code: RejectCode, detail: str) -> None:
    with pytest.raises(BadRow) as bad:
        parse_object(raw)
    assert (bad.value.code, bad.value.detail) == (code, detail)


def test_what_python_writes_for_a_missing_number_is_null() -> None:
    assert parse_object(b'{"score": NaN, "best": -Infinity, "text": "NaN"}') == {
        "score": None,
        "best": None,
        "text": "NaN",
    }


def test_a_row_with_nan_is_checked_like_any_other() -> None:
    for raw, code in (
        (b'{"a": NaN, "a": 1}', RejectCode.DUP_KEY),
        (b'{"a": NaN', RejectCode.BAD_JSON),
        (b'{"a": NaN, "b": "\\ud800"}', RejectCode.BAD_JSON),
        (b'{"a": NaN, "b": %s}' % (b"9" * 400), RejectCode.BAD_JSON),
        (b'{"a": NaN, "b": %s}' % (b"9" * 5000), RejectCode.BAD_JSON),
    ):
        with pytest.raises(BadRow) as bad:
            parse_object(raw)
        assert bad.value.code is code


@pytest.mark.parametrize("number", [2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**300])
@pytest.mark.parametrize("row", ['{"a": [%d], "t": "é"}', '{"a": [%d], "n": NaN, "t": "é"}'])
def test_an_integer_of_any_size_is_exact(number: int, row: str) -> None:
    assert parse_object((row % number).encode())["a"] == [number]
    assert parse_value(str(number).encode()) == number
    assert load_exactly(str(number)) == number


def test_a_row_with_a_long_integer_is_checked_like_any_other() -> None:
    for raw, code in (
        (b'{"a": 12345678901234567890123, "a": 1}', RejectCode.DUP_KEY),
        (b'{"a": 12345678901234567890123, "b": %s1%s}' % (b"[" * 300, b"]" * 300), RejectCode.BAD_JSON),
        (b'{"a": %s}' % (b"9" * 400), RejectCode.BAD_JSON),
        (b"12345678901234567890123", RejectCode.NOT_OBJECT),
    ):
        with pytest.raises(BadRow) as bad:
            parse_object(raw)
        assert bad.value.code is code


def test_a_text_nested_without_end_is_read_or_not_json() -> None:
    for levels in (500, 1000, 1020, 100_000):
        text = "[" * levels + "12345678901234567890123" + "]" * levels
        try:
            load_exactly(text)
        except orjson.JSONDecodeError:
            assert levels > 1000


@pytest.mark.parametrize("raw", [b'{"a": "\\ud83d\\ude00"}', b'{"\\u0022": "\\u0022"}', b'{"a\\"": {"a\\"": ""}}'])
def test_escapes_are_no_fault(raw: bytes) -> None:
    assert parse_object(raw)


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "a boolean"), (1, "a number"), (1.5, "a number"), ("", "a string"), ({}, "an object")],
)
def test_a_type_has_its_name_in_json(value: Any, name: str) -> None:
    assert name_type(value) == name
    assert name_type(b"") == "bytes"


@pytest.mark.parametrize(("names", "twice"), [("", None), ("abc", None), ("abcbc", "b"), ("aa", "a")])
def test_the_first_name_that_repeats_an_earlier_one_is_found(names: str, twice: str | None) -> None:
    assert first_repeated(names) == twice


@pytest.mark.parametrize(("begin", "end"), [('{"a":', "}"), ("[", "]")])
@pytest.mark.parametrize("levels", [250, 300, 1000, 100_000])
def test_a_row_nested_without_end_is_a_row_or_a_bad_one_and_never_an_error(begin: str, end: str, levels: int) -> None:
    raw = f'{{"x":{begin * levels}1{end * levels}}}'.encode()
    if levels < 255:
        assert parse_object(raw)["x"]
        return
    with pytest.raises(BadRow) as refused:
        parse_object(raw)
    assert refused.value.code is RejectCode.BAD_JSON
