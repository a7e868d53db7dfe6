from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_trainer.data.formats import fields
from finetune_trainer.data.formats.fields import (
    Repairs,
    parse_nested,
    read_cell,
    read_label,
    read_list,
    read_optional_text,
    read_text,
)
from finetune_trainer.data.rows import BadRow


def refusal(call: Any, *arguments: Any) -> tuple[RejectCode, str]:
    with pytest.raises(BadRow) as bad:
        call(*arguments)
    return bad.value.code, bad.value.detail


@pytest.mark.parametrize(
    ("value", "text", "repairs"),
    [
        ("a", "a", set()),
        (0, "0", {RepairCode.COERCED_SCALAR}),
        (False, "false", {RepairCode.COERCED_SCALAR}),
        (2**70, "1180591620717411303424", {RepairCode.COERCED_SCALAR}),
        (["a", {"text": "b"}], "ab", set()),
        ([], "", set()),
    ],
)
def test_a_value_is_read_as_text(value: object, text: str, repairs: Repairs) -> None:
    made: Repairs = set()
    assert read_text(value, "x", made) == text
    assert made == repairs


@pytest.mark.parametrize(
    ("value", "code", "detail"),
    [
        (None, RejectCode.NULL_FIELD, "x is null: give it a text, or remove the row"),
        ({}, RejectCode.WRONG_TYPE, "x is an object instead of text"),
        ([1], RejectCode.WRONG_TYPE, "x has a part that is a number"),
        ([{"type": "text"}], RejectCode.WRONG_TYPE, "x has a text part without text, but type"),
        ([{"type": "image"}], RejectCode.UNSUPPORTED_MODALITY, "x has a part of type 'image'; only text is trained"),
        ([{"type": 5}], RejectCode.UNSUPPORTED_MODALITY, "x has a part of type '5'; only text is trained"),
    ],
)
def test_what_is_not_text_is_named(value: object, code: RejectCode, detail: str) -> None:
    assert refusal(read_text, value, "x", set()) == (code, detail)


def test_a_cell_is_one_text() -> None:
    assert read_cell(["a"], "x", set()) == "a"
    assert read_cell([{"text": "a"}, "b"], "x", set()) == "ab"
    assert refusal(read_cell, ["a", "b"], "x", set()) == (
        RejectCode.WRONG_TYPE,
        "x contains 2 texts instead of one: join them into one text, or keep one of them",
    )


def test_an_optional_text_may_be_absent_or_null() -> None:
    made: Repairs = set()
    assert read_optional_text({}, "x", made) == ""
    assert made == set()
    assert read_optional_text({"x": None}, "x", made) == ""
    assert made == {RepairCode.NONE_STRIPPED}
    assert read_optional_text({"x": "a"}, "x", made) == "a"


@pytest.mark.parametrize(("value", "label"), [(" TRUE", True), ("0", False), (1.0, True), (False, False)])
def test_a_label_has_several_forms(value: object, label: bool) -> None:
    assert read_label(value, "x") is label


@pytest.mark.parametrize("value", [None, [], {}, 2, "2"])
def test_anything_else_is_no_label(value: object) -> None:
    code, detail = refusal(read_label, value, "x")
    assert code is RejectCode.BAD_LABEL
    assert detail.startswith(f"x is {str(value)!r} instead of true or false")


@pytest.mark.parametrize(
    ("value", "code", "detail"),
    [
        (None, RejectCode.NULL_FIELD, "x is null"),
        ("null", RejectCode.NULL_FIELD, "x is null"),
        ({}, RejectCode.BAD_TOOLS, "x is an object instead of an array"),
        ("{}", RejectCode.BAD_TOOLS, "x is an object instead of an array"),
        ("[1", RejectCode.BAD_TOOLS, "x is a string that is neither JSON nor a Python literal"),
    ],
)
def test_what_is_not_a_list_is_named(value: object, code: RejectCode, detail: str) -> None:
    assert refusal(read_list, value, "x", RejectCode.BAD_TOOLS) == (code, detail)


@pytest.mark.parametrize("value", [[1], "[1]", " [1,]"])
def test_a_list_may_be_text(value: object) -> None:
    assert read_list(value, "x", RejectCode.BAD_TOOLS) == [1]


def test_a_text_is_parsed_as_python_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_LITERAL_CHARACTERS", 4)
    assert parse_nested("'ab'", "x", RejectCode.WRONG_TYPE) == "ab"
    assert refusal(parse_nested, "'abc'", "x", RejectCode.WRONG_TYPE)[1] == (
        "x is a string that is not JSON; a Python literal may have at most 0 KiB"
    )


@pytest.mark.parametrize("text", ["[12345678901234567890123]", "[12345678901234567890123,]"])
def test_a_long_integer_in_a_string_is_exact(text: str) -> None:
    assert parse_nested(text, "x", RejectCode.WRONG_TYPE) == [12345678901234567890123]


@pytest.mark.parametrize("value", ["{1, 2}", "b'a'", "1j", "{(1, 2): 3}", "...", "0x" + "f" * 5000])
def test_a_python_literal_with_a_value_that_json_does_not_have_is_refused(value: str) -> None:
    for text in (f"[{{'a': {value}}}]", value):
        assert refusal(parse_nested, text, "x", RejectCode.BAD_TOOLS) == (
            RejectCode.BAD_TOOLS,
            "x is a string with a Python value that JSON does not have",
        )
