"""Questions on general ability: the columns that are read, and the rows that are refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.handoff import ExitCode
from finetune_trainer.data.ability import Question, choose_questions, parse_question, read_questions, write_questions
from finetune_trainer.data.rows import NamedPath
from finetune_trainer.errors import TrainerError

MMLU = {"question": "What is 2 + 2?", "subject": "maths", "choices": ["3", "4", "5", "6"], "answer": 1}
ARC = {"id": "a", "question": "Ice is", "choices": {"text": ["hot", "cold"], "label": ["1", "2"]}, "answerKey": "2"}
OPENBOOK = {"question_stem": "The sun is", "choices": {"text": ["a star", "a lamp"], "label": ["A", "B"]}}


@pytest.mark.parametrize(
    ("row", "correct"),
    [
        (MMLU, 1),
        (MMLU | {"answer": "B"}, 1),
        (MMLU | {"answer": "3"}, 3),
        (MMLU | {"answer": 0}, 0),
        (ARC, 1),
        (ARC | {"answerKey": "1"}, 0),
        (ARC | {"choices": {"text": ["hot", "cold"], "label": [1, 2]}, "answerKey": 1}, 0),
        (OPENBOOK | {"answerKey": "A"}, 0),
    ],
)
def test_the_columns_of_mmlu_arc_and_openbookqa_are_read(row: dict[str, Any], correct: int) -> None:
    found = parse_question(row)
    assert found.correct == correct
    assert found.question == row.get("question", row.get("question_stem"))
    assert len(found.choices) >= 2


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "x"}, "needs the columns question, choices .*; it has prompt"),
        ({"question": "x", "choices": ["3", "4"]}, "needs the columns question, choices .*; it has question, choices$"),
        (MMLU | {"choices": "3, 4"}, r"choices is '3, 4': give a list of texts, .* \["),
        (MMLU | {"choices": "['3' '4'"}, r"choices is \"\['3' '4'\": give a list of texts"),
        (MMLU | {"choices": "null"}, "choices is 'null': give a list of texts"),
        (MMLU | {"choices": None}, "choices is None: give a list of texts"),
        (MMLU | {"choices": {"text": ["a", "b"], "label": ["A"]}}, "choices is {'label': .*: give .*text and label"),
        (MMLU | {"choices": "[" * 1000 + "]" * 1000}, "choices has 1 texts: .* it is .*"),
        (MMLU | {"choices": "[1, " + "[" * 1000 + "]" * 1001}, r"choices\[0\] is not a text: 1"),
        (MMLU | {"choices": '["1", ' + "[" * 1000 + "]" * 1001}, r"choices\[1\] is not a text: \[\["),
        (MMLU | {"question": None}, "question is not a text: None"),
        (MMLU | {"answer": None}, "answer is None: give one of A, B, C, D or its index, 0 to 3"),
        (MMLU | {"choices": ["3"]}, r"choices has 1 texts: give 2 to 26; it is \['3'\]"),
        (MMLU | {"choices": "['3' '4']"}, r"choices is \"\['3' '4'\]\": give a list of texts"),
        (MMLU | {"choices": ["3", ""]}, r"choices\[1\] is not a text: ''"),
        (MMLU | {"choices": ["3", 4]}, r"choices\[1\] is not a text: 4"),
        (MMLU | {"question": " "}, "question is not a text"),
        (MMLU | {"question": "x" * 8193}, "question has 8,193 characters, more than 8,192: shorten it"),
        (MMLU | {"choices": ["3", "3"]}, "two of its choices are equal"),
        (MMLU | {"answer": 4}, "answer is 4: give one of A, B, C, D or its index, 0 to 3"),
        (MMLU | {"answer": -1}, "answer is -1: give one of"),
        (MMLU | {"answer": True}, "answer is True: give one of"),
        (MMLU | {"answer": "E"}, "answer is 'E': give one of"),
    ],
)
def test_a_bad_question_is_refused_with_the_field_and_the_fix(row: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_question(row)


def _file(path: Path, rows: list[dict[str, Any]]) -> NamedPath:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return NamedPath(path, "s3://data/q.jsonl")


def test_one_bad_row_refuses_the_file_with_its_line(tmp_path: Path) -> None:
    source = _file(tmp_path / "q", [MMLU, MMLU | {"answer": 9}])
    with pytest.raises(TrainerError) as refused:
        choose_questions(source, 400, 1)
    assert refused.value.code is ExitCode.DATASET_UNUSABLE
    assert refused.value.message.startswith("s3://data/q.jsonl: line 2: answer is 9: give one of A, B, C, D")
    assert refused.value.message.endswith("correct the file, or name another in evaluation.ability.uri")


@pytest.mark.parametrize("content", [b"", b"{]\n", b"\x80\x04pickle"], ids=["empty", "not JSON", "pickle"])
def test_a_file_without_questions_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q").write_bytes(content)
    with pytest.raises(TrainerError, match=r"s3://data/q\.jsonl: .*evaluation\.ability\.uri"):
        choose_questions(NamedPath(tmp_path / "q", "s3://data/q.jsonl"), 400, 1)


def test_the_seed_chooses_the_questions_and_they_keep_their_order(tmp_path: Path) -> None:
    rows = [MMLU | {"question": f"{n}?"} for n in range(300)]
    source = _file(tmp_path / "q", rows)
    chosen = choose_questions(source, 50, 1)
    numbers = [int(one.question[:-1]) for one in chosen]
    assert len(set(numbers)) == 50
    assert numbers == sorted(numbers)
    assert choose_questions(source, 50, 1) == chosen
    assert choose_questions(source, 50, 2) != chosen
    assert len(choose_questions(source, 400, 1)) == 300


def test_parquet_as_the_hub_has_it_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ARC, ARC | {"answerKey": "1"}]), tmp_path / "q")
    found = choose_questions(NamedPath(tmp_path / "q", "s3://data/arc.parquet"), 400, 1)
    assert [one.correct for one in found] == [1, 0]


@pytest.mark.parametrize(
    "rows",
    [
        'question,choices,answer\n2 + 2?,"[""3"", ""4""]",1\n',
        "question,choices,answer\n2 + 2?,\"['3', '4']\",B\n",
        'question,choices,answerKey\n2 + 2?,"{""text"": [""3"", ""4""], ""label"": [""1"", ""2""]}",2\n',
    ],
    ids=["JSON", "Python literal", "ARC"],
)
def test_a_list_in_a_cell_of_csv_is_read(tmp_path: Path, rows: str) -> None:
    (tmp_path / "q.csv").write_text(rows, encoding="utf-8")
    found = choose_questions(NamedPath(tmp_path / "q.csv", "s3://data/q.csv"), 400, 1)
    assert found == [Question("2 + 2?", ["3", "4"], 1)]


def test_questions_are_read_as_they_were_written(tmp_path: Path) -> None:
    questions = [parse_question(MMLU), Question("Größe?", ["ä\n", "🙂"], 0)]
    write_questions(tmp_path / "q.jsonl", questions)
    assert list(read_questions(tmp_path / "q.jsonl")) == questions
