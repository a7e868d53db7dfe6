"""Faults of YAML have a line, a column and a fix, and do not hide the faults of other documents."""

import pytest

from finetune_api.manifest.yaml_document import read_documents, read_stream
from finetune_api.manifest.yaml_faults import YamlError


@pytest.mark.parametrize(
    ("text", "place", "problem", "fix"),
    [
        ("a:\n\tb: 1\n", (2, 1), "a tab indents this line", "indent with spaces"),
        ("a:\n  b: 1\n  \tc: 2\n", (3, 3), "a tab indents this line", "indent with spaces"),
        ('a:\n  b: "open\n', (2, 6), "the quote that opens here is not closed", "close the quote"),
        ("a: 'open\n---\nb: 1\n", (1, 4), "the quote that opens here is not closed", "close the quote"),
        ('a: "open\nb: "closed"\n', (2, 5), "expected <block end>", "close the quote that opens in line 1"),
        ("a:\n    b: 1\n  c: 2\n", (3, 3), "expected <block end>", "the same indentation"),
        ("a: 1\n  b: 2\n", (2, 4), "mapping values are not allowed", "in quotes, or give all fields of a block"),
        ("a: Fix: it\n", (1, 7), "mapping values are not allowed", "put a value with a colon and a space in quotes"),
        ("a: 1\nb\nc: 2\n", (3, 1), "could not find expected ':'", "with a colon and a space"),
        ("a: [1, 2\n", (2, 1), "expected ',' or ']'", "close the list with ]"),
        ("a: {b: 1\n", (2, 1), "expected ',' or '}'", "close the block with }"),
        ('a: "C:\\path"\n', (1, 8), "unknown escape character", "single quotes"),
        ("a: @name\n", (1, 4), "cannot start any token", "put the value in quotes"),
        ("a: *name\n", (1, 4), "found undefined alias", "an unquoted * names an anchor"),
        ("a: |x\n", (1, 5), "expected chomping or indentation indicators", "put the value in quotes"),
        ("a: 1\nb: \x07\n", (2, 4), "special characters are not allowed", "remove the character"),
        ("? [a]\n: 1\n", (1, 3), "a key must be a word", "put it in quotes"),
        ("a: &a [*a]\n", (1, 4), "nested more than 100 deep", "remove the alias"),
    ],
)
def test_a_fault_has_its_place_and_a_fix(text: str, place: tuple[int, int], problem: str, fix: str) -> None:
    with pytest.raises(YamlError) as caught:
        read_documents(text)
    error = caught.value
    assert (error.line, error.column) == place
    assert problem in error.problem
    assert fix in error.fix
    assert str(error) == f"line {place[0]}, column {place[1]}: {error.problem}: {error.fix}"


def test_every_document_is_read_and_every_fault_reported_with_its_line_in_the_file() -> None:
    text = "# first\na: 1\n---\na: [\n---\na: 2\n---\n\tb: 3\n\tc: 4\n"
    documents, faults = read_stream(text)
    assert [document.value for document in documents] == [{"a": 1}, {"a": 2}, {"b": 3, "c": 4}]
    assert [document.line(("a",)) for document in documents[:2]] == [2, 6]
    assert documents[2].line(("c",)) == 9
    assert [(fault.line, fault.column) for fault in faults] == [(5, 1), (8, 1), (9, 1)]


def test_tabs_in_texts_and_comments_are_no_faults() -> None:
    documents, faults = read_stream("a: |\n  all:\n  \tgo build\nb: 'x\ty'  # comment\twith a tab\n")
    assert faults == []
    assert documents[0].value == {"a": "all:\n\tgo build\n", "b": "x\ty"}


def test_a_file_with_directives_and_comments_between_its_documents_has_no_more_faults() -> None:
    _, faults = read_stream("%YAML 1.1\n# one\n---\na: 1\n---\n# nothing\n---\na: [\n")
    assert len(faults) == 1


def test_the_items_of_a_list_are_documents_with_their_own_lines() -> None:
    text = "kind: List\nitems:\n- kind: A\n  x: On\n- kind: List\n  items:\n  - kind: B\n    y: 1\n    y: 2\n- 3\n"
    (document,) = read_documents(text)
    first, second, third = document.objects()
    assert (first.value, first.path, first.line(("x",))) == ({"kind": "A", "x": True}, ("items", 0), 4)
    assert first.written[("x",)] == "On"
    assert (second.path, second.duplicates, second.place(("y",))) == (("items", 1, "items", 0), {("y",): 8}, (9, 5))
    assert third.value == 3


def test_what_is_called_a_list_without_entries_is_a_document() -> None:
    for text in ("kind: List\n", "kind: List\nitems: {a: 1}\n", "items: [1]\n", "- 1\n"):
        (document,) = read_documents(text)
        assert document.objects() == [document]


def test_json_may_be_indented_with_tabs_as_kubectl_reads_it() -> None:
    documents, faults = read_stream('{\n\t"kind": "A",\n\t"x": {\n\t\t"y": "1\\t2"\n\t}\n}\n')
    assert faults == []
    assert documents[0].value == {"kind": "A", "x": {"y": "1\t2"}}
    assert documents[0].line(("x", "y")) == 4
