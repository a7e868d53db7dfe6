from pathlib import Path

import pytest
import yaml

from finetune_api.manifest.yaml_document import drop_nulls, read_documents, read_scalar, write_document
from finetune_api.manifest.yaml_faults import YamlError

EXAMPLES = Path(__file__).parents[4] / "crds" / "examples"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1e-4", 1e-4), ("2.0E-4", 2e-4), (".5", 0.5), ("1e3", 1000), ("10", 10), ("010", 8), ("0o10", 8),
        ("0x1F", 31), ("1_000", 1000), ("3.0", 3), ("09", 9), ("On", True), ("y", True), ("oFF", "oFF"), ("No", False),
        ("~", None), ("", None), ("1:30", "1:30"), ("2026-03-01", "2026-03-01"), ("80Gi", "80Gi"), ("-", "-"),
        ("0x_", "0x_"), ("-0b_", "-0b_"), ("0o_", "0o_"),
        ("0xffffffffffffffff", 2**64 - 1), ("0x10000000000000000", "0x10000000000000000"),
        ("-0x" + "f" * 5000, "-0x" + "f" * 5000), ("18446744073709551616", 2**64), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_a_plain_word_is_read_as_kubectl_reads_it(written: str, expected: object) -> None:
    assert read_scalar(written) == expected
    assert type(read_scalar(written)) is type(expected)


def test_quoted_words_are_texts_and_anchors_and_merges_are_followed() -> None:
    text = 'base: &base {a: "1e-4", b: 2}\nmore: {<<: *base, b: 3}\n'
    (document,) = read_documents(text)
    assert document.value == {"base": {"a": "1e-4", "b": 2}, "more": {"a": "1e-4", "b": 3}}
    assert document.duplicates == {}
    assert document.line(("more", "b")) == 2


def test_a_document_that_grows_without_end_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(YamlError, match="too many aliases"):
        read_documents("\n".join(lines))


def test_a_written_document_is_read_as_the_same_value() -> None:
    texts = ["1e3", "0o10", "010", "On", "y", "~", "", "1:30", "2026-03-01", "<<", "=", "a: b", "two\nlines", "-"]
    value = {"texts": texts, "number": 3e-7, "whole": 10, "truth": True, "on": {"y": "no"}}
    (document,) = read_documents(write_document(value))
    assert document.value == value


@pytest.mark.parametrize("value", [2e-4, 5e-6, 1e-5, 3e-7, 1e22, 0.1, 1.0])
def test_a_written_number_is_one_for_readers_of_yaml_1_1_too(value: float) -> None:
    assert yaml.safe_load(write_document({"learningRate": value})) == {"learningRate": value}


def test_the_examples_are_the_same_for_kubectl_and_for_readers_of_yaml_1_1() -> None:
    """`2e-4` is a number for kubectl and a text for PyYAML, with which Ansible and Python clients send it."""
    paths = sorted(EXAMPLES.rglob("*.yaml"))
    assert len(paths) > 5
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert [one.value for one in read_documents(text)] == list(yaml.safe_load_all(text)), path


def test_nulls_are_dropped_from_blocks_and_kept_out_of_lists_of_blocks() -> None:
    assert drop_nulls({"a": None, "b": {"c": None}, "d": [{"e": None, "f": 0}]}) == {"b": {}, "d": [{"f": 0}]}


def test_a_line_is_that_of_the_nearest_field_around_a_missing_one() -> None:
    (document,) = read_documents("---\nspec:\n  tuning:\n    lora: {rank: 8}\n")
    assert [document.line(path) for path in [("spec", "tuning", "x"), ("spec", "y"), ("z",), ()]] == [3, 2, 2, 2]
