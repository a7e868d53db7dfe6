"""Files whose rows are arranged in a way that is not read: the message names the arrangement and the fix."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_trainer.data.rows import Rejected

Check = Callable[..., tuple[list[Any], Any]]
TAB = "the separator is a tab: save the file as .tsv, or with commas"
BAR = "the separator is |: save the file with commas"
CR = "lines end in CR: convert them to LF"
PANDAS = "write one row a line, in pandas with to_json(path, orient='records', lines=True)"
NUMPY = "is a NumPy array as text, which has no commas: write the column as JSON, with json.dumps"


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("rows.csv", b"prompt\tcompletion\nIs 2 even?\tyes\n", TAB),
        ("rows.csv", b"prompt\tcompletion\nIs 2, or 3, even?\t2\n", TAB),
        ("rows.csv", b"prompt|completion\nIs 2 even?|yes\n", BAR),
        ("rows.csv", b"sep=,\nprompt,completion,id\n", "the first line, 'sep=', names a separator"),
        ("rows.csv", b"sep=;\nprompt;completion\nIs 2 even?;yes\n", "instead of the columns: remove it"),
        ("rows.csv", b"sep=|\nprompt|completion\n", "the first line, 'sep=|', names a separator"),
        ("rows.csv", b"prompt,completion\rIs 2 even?,yes\r", CR),
        ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\r{"prompt": "c", "completion": "d"}\r', CR),
        ("rows.json", b'{"version": 1, "data": [{"prompt": "a"}]}', "the rows are under data: write that array into"),
        ("rows.json", b'{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}', "the rows are under train: write"),
        ("rows.jsonl", b'{"rows": [{"prompt": "a"}]}', "the rows are under rows: write that array"),
        ("rows.jsonl", b'{"train": [' + b'{"prompt": "a"},' * (1 << 20) + b'{"prompt": "a"}]}', "under 'train', write"),
        ("rows.json", b'{"prompt":{"0":"a","1":"c"},"completion":{"0":"b","1":"d"}}', PANDAS),
        ("rows.json", b'{"0":{"prompt":"a","completion":"b"},"1":{"prompt":"c","completion":"d"}}', PANDAS),
        ("rows.json", b'{"columns":["prompt","completion"],"index":[0],"data":[["a","b"]]}', PANDAS),
        ("rows.jsonl", b"{'prompt': 'a', 'completion': array([1])}", "is a Python dict with values that JSON does"),
        ("rows.csv", b"messages\n\"[{'role': 'user', 'content': 'q'}\n {'role': 'user', 'content': 'a'}]\"\n", NUMPY),
        ("rows.csv", b"messages\n\"array([{'role': 'user', 'content': 'q'}], dtype=object)\"\n", NUMPY),
        ("rows.csv", b"conversations\n\"['q' 'a' 'q2'\n 'a2']\"\n", NUMPY),
        ("rows.csv",
         b"prompt,completion\n\"[{'role': 'system', 'content': 's'}\n {'role': 'user', 'content': 'q'}]\",a\n", NUMPY),
        ("rows.jsonl", b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null}]}',
         "turn 2 is null: give it a text, or remove the row"),
    ],
)  # fmt: skip
def test_the_arrangement_is_named_with_the_fix(check: Check, name: str, text: bytes, fix: str) -> None:
    results, _ = check(text, name=name)
    assert results
    for row in results:
        assert isinstance(row, Rejected)
        assert fix in row.detail
        assert "name yours" not in row.detail


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl",
         b'{\n  "prompt": "q",\n  "completion": "a"\n}\n{\n  "prompt": "r",\n  "completion": "a"\n}\n'),
        ("rows.jsonl", b"{'prompt': 'q', 'completion': 'a', 'n': None}\n{'prompt': \"r\", 'completion': 'a'}\n"),
        ("rows.csv", b"messages\n\"[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]\"\n"
         b"\"[{'role': 'user', 'content': 'r'}, {'role': 'assistant', 'content': 'a'}]\"\n"),
        ("rows.csv", b"conversations\n\"['q', 'a']\"\n\"['r', \"\"a\"\"]\"\n"),
        ("rows.csv", b",prompt,completion,,\n0,q,a,,\n1,r,a,,\n"),
    ],
)  # fmt: skip
def test_an_arrangement_that_has_one_meaning_is_read(check: Check, name: str, text: bytes) -> None:
    results, summary = check(text, name=name)
    assert [[turn["content"] for turn in row.messages] for row in results] == [["q", "a"], ["r", "a"]]
    assert not summary.describe_unused()


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_column_named_data_of_objects_over_many_lines_is_no_array_of_rows(check: Check, name: str) -> None:
    text = b'{\n "id": 1,\n "data": ["q", "a"]\n}\n{\n "id": 2,\n "data": ["r", "a"]\n}'
    results, _ = check(text, name=name, columns={"messages": "data"})
    assert [[turn["content"] for turn in row.messages] for row in results] == [["q", "a"], ["r", "a"]]


def test_a_text_in_a_list_may_have_quotes_next_to_each_other(check: Check) -> None:
    ((row,), _) = check({"conversations": str(['say "a" "b"', "a' 'b"])})
    assert [turn["content"] for turn in row.messages] == ['say "a" "b"', "a' 'b"]


def test_a_cr_in_a_later_line_is_of_that_line(check: Check) -> None:
    results, _ = check(b"prompt,completion\na,b\nc\rd,e\n", name="rows.csv")
    assert results[1].detail == "the line has a CR outside quotes: write the cell in quotes, or convert CR to LF"


def test_a_single_column_that_is_named_in_the_job_may_contain_a_separator(check: Check) -> None:
    results, _ = check(b"a|b\nsome text\n", name="rows.csv", columns={"text": "a|b"}, objective="DomainAdaptation")
    assert not isinstance(results[0], Rejected)


def test_a_broken_object_of_a_file_with_both_line_ends_has_its_own_error(check: Check) -> None:
    results, _ = check(b'[{"a": [{"b": 1}\r\n{"c": 2}]}]', name="rows.json")
    assert "CR" not in results[0].detail
