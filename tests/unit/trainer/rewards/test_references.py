"""The reference of a row passes the checks of rows, and comes back with its prompt; a row without one is rejected."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from finetune_api.dataset.codes import RejectCode, RepairCode
from finetune_api.rewards import AnswerReward, Reward
from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import NamedPath, PromptRow, Rejected, Row, read_canonical
from finetune_trainer.rewards.references import References, read_references
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.sample_table import as_samples

USER = {"role": "user", "content": "2 + 2?"}
FOUR = {"role": "assistant", "content": "4"}


def references(*answers: dict[str, Any]) -> References:
    return References([Reward.model_validate({"type": "Answer", "answer": answer}) for answer in answers])


def in_column(name: str) -> AnswerReward:
    return AnswerReward.model_validate({"match": "Exact", "column": name})


@pytest.fixture
def check(tmp_path: Path) -> Any:
    def run(
        text: str, name: str = "rows.jsonl", answers: Any = ({"match": "Numeric"},), rewards: Any = (), **options: Any
    ) -> list[Any]:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        rows = check_rows(
            [NamedPath(path, name)],
            summary=Summary(),
            objective="RLHF",
            references=References(rewards) if rewards else references(*answers),
            **options,
        )
        return list(rows)

    return run


def prompt_of(row: Row | Rejected) -> PromptRow:
    assert isinstance(row, PromptRow), row
    return row


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "2 + 2?", "answer": "It is 2 + 2.\\n#### 4"}',
        '{"prompt": "2 + 2?", "completion": "4"}',
        '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}',
        '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}',
        '{"prompt": "2 + 2?", "completion": "4", "label": true}',
        '{"question": "2 + 2?", "answer": 4}',
    ],
)
def test_the_answer_of_any_format_is_the_reference_and_is_not_in_the_prompt(check: Any, line: str) -> None:
    row = prompt_of(check(line)[0])
    assert [message["content"] for message in row.prompt] == ["2 + 2?"]
    assert row.reference
    assert row.reference["answer"].endswith("4")
    assert RepairCode.ANSWER_UNUSED not in row.repairs
    again = prompt_of(read_canonical(orjson.loads(row.to_line())))
    assert (again.prompt, again.reference) == (row.prompt, row.reference)


def test_a_column_of_the_file_is_the_reference_under_its_own_name(check: Any) -> None:
    line = '{"messages": [{"role": "user", "content": "2 + 2?"}], "solution": 4, "Level": "easy"}'
    row = prompt_of(check(line, answers=[{"match": "Numeric", "column": "solution"}])[0])
    assert row.reference == {"columns": {"solution": 4}}
    assert read_references(row.reference, in_column("solution")) == ["4"]


def test_a_reference_may_be_inside_a_column(check: Any) -> None:
    line = '{"prompt": "2 + 2?", "reward_model": {"style": "rule", "ground_truth": ["4", "four"]}, "ability": "math"}'
    name = "reward_model.ground_truth"
    row = prompt_of(check(line, answers=[{"match": "Exact", "column": name}])[0])
    assert row.reference == {"columns": {name: ["4", "four"]}}
    assert row.unused == ("ability",)
    assert read_references(row.reference, in_column(name)) == ["4", "four"]
    (row,) = check(line, answers=[{"match": "Exact", "column": "reward_model.answer"}])
    assert "names 'reward_model.answer', which the row does not have" in row.detail


@pytest.mark.parametrize("answer", ['["4", "four"]', '{"value": "4"}', "null", '""', '"  "'])
def test_an_answer_that_is_not_a_text_costs_no_prompt(check: Any, answer: str) -> None:
    line = f'{{"question": "2 + 2?", "answer": {answer}}}'
    row = prompt_of(check(line, answers=[])[0])
    assert (row.prompt, row.reference) == ([USER], {})
    (refused,) = check(line)
    assert refused.code is RejectCode.NO_REFERENCE
    assert refused.detail.startswith("the row has no answer for rlhf.rewards[0].answer: map its column")


def test_a_list_in_the_column_of_the_answer_has_several_references(check: Any) -> None:
    line = '{"question": "2 + 2?", "answer": ["4", "four"]}'
    row = prompt_of(check(line, answers=[{"match": "Exact", "column": "answer"}])[0])
    assert read_references(row.reference, in_column("answer")) == ["4", "four"]


def test_a_mapped_answer_is_the_reference(check: Any) -> None:
    row = prompt_of(check('{"problem": "2 + 2?", "solution": "4"}', columns={"answer": "solution"})[0])
    assert row.reference == {"answer": "4"}


def test_several_rewards_keep_what_each_reads(check: Any) -> None:
    line = '{"question": "2 + 2?", "answer": "four", "value": "4", "names": ["four", "Vier"]}'
    answers = [
        {"match": "Exact"},
        {"match": "Numeric", "column": "value"},
        {"match": "Exact", "column": "names"},
    ]
    row = prompt_of(check(line, answers=answers)[0])
    assert row.reference == {"answer": "four", "columns": {"value": "4", "names": ["four", "Vier"]}}
    assert read_references(row.reference, in_column("names")) == [
        "four",
        "Vier",
    ]


def posted(*columns: str) -> Reward:
    service = {"endpoint": "http://grader"} | ({"columns": list(columns)} if columns else {})
    return Reward.model_validate({"type": "Service", "service": service})


def test_a_server_gets_the_rows_answer_if_there_is_one_and_the_columns_that_it_names(check: Any) -> None:
    line = '{"question": "2 + 2?", "answer": "four", "tests": [{"in": 1}], "other": 3}'
    row = prompt_of(check(line, rewards=[posted("tests")])[0])
    assert row.reference == {"answer": "four", "columns": {"tests": [{"in": 1}]}}
    assert not prompt_of(check('{"prompt": "q"}', rewards=[posted()])[0]).reference
    (row,) = check('{"prompt": "q"}', rewards=[posted("tests")])
    assert row.code is RejectCode.NO_REFERENCE
    assert "rlhf.rewards[0].service.columns names 'tests', which the row does not have" in row.detail


def test_the_reference_next_to_turns_that_end_with_the_question_is_the_rows_answer(check: Any) -> None:
    row = prompt_of(check('{"messages": [{"role": "user", "content": "2 + 2?"}], "answer": 4}')[0])
    assert row.reference == {"answer": "4"}


def test_the_reference_of_a_csv_file_is_text(check: Any) -> None:
    row = prompt_of(check("question,answer\n2 + 2?,4\n", "rows.csv")[0])
    assert row.reference == {"answer": "4"}


@pytest.mark.parametrize(
    ("line", "answer", "detail"),
    [
        ('{"prompt": "2 + 2?"}', {"match": "Exact"}, "map its column in dataset.columns"),
        ('{"prompt": "2 + 2?", "solution": "4"}', {"match": "Exact"}, "columns found: prompt, solution"),
        ('{"prompt": "q", "completion": "4", "label": false}', {"match": "Exact"}, "the row has no answer"),
        ('{"prompt": "q"}', {"match": "Exact", "column": "x"}, "column names 'x', which the row does not have"),
        ('{"prompt": "q", "x": null}', {"match": "Exact", "column": "x"}, "column names 'x'"),
        ('{"prompt": "q", "x": []}', {"match": "Exact", "column": "x"}, "0 references"),
        ('{"prompt": "q", "x": {"a": 1}}', {"match": "Exact", "column": "x"}, "give a text, a number, or a list"),
        ('{"prompt": "q", "x": "four"}', {"match": "Numeric", "column": "x"}, "'four' is not a number"),
        ('{"prompt": "q", "x": ["4", "four"]}', {"match": "Numeric", "column": "x"}, "'four' is not a number"),
        ('{"prompt": "q", "x": "NaN"}', {"match": "Numeric", "column": "x"}, "'NaN' is not a number"),
        ('{"prompt": "q", "x": "Paris"}', {"match": "MultipleChoice", "column": "x"}, "not the letter of a choice"),
    ],
)
def test_a_row_without_a_usable_reference_is_rejected_with_what_to_change(
    check: Any, line: str, answer: dict[str, Any], detail: str
) -> None:
    (row,) = check(line, answers=[answer])
    assert isinstance(row, Rejected)
    assert row.code is RejectCode.NO_REFERENCE
    assert detail in row.detail


def test_the_same_prompt_with_another_reference_is_another_row(check: Any) -> None:
    rows = check('{"prompt": "q", "completion": "4"}\n{"prompt": "q", "completion": "5"}')
    assert not [row for row in rows if isinstance(row, Rejected)]


def test_rewards_of_the_text_alone_keep_nothing() -> None:
    assert References([Reward.model_validate({"type": "Length", "targetTokens": 4})]).is_empty


def test_the_reference_is_in_the_sample_that_the_rewards_get(model_folder: Path, check: Any) -> None:
    line = '{"question": "2 + 2?", "answer": "4", "names": ["four"]}'
    answers = [{"match": "Exact"}, {"match": "Exact", "column": "names"}]
    row = prompt_of(check(line, answers=answers)[0])
    encoded = Labeler(model_folder).encode(row, "RLHF", 64)
    (sample,) = as_samples(encoded)  # type: ignore[arg-type]
    assert sample.reference == {"answer": "4", "columns": {"names": ["four"]}}  # type: ignore[union-attr]


@pytest.mark.parametrize("value", ["12345678901234567890123", "[12345678901234567890123]", f"{-(2**63) - 1}"])
def test_a_long_integer_in_a_column_is_compared_with_all_its_digits(check: Any, value: str) -> None:
    (row,) = check(f'{{"prompt": "q", "sol": {value}}}', answers=({"match": "Numeric", "column": "sol"},))
    (line,) = [orjson.loads(row.to_line())]
    kept = read_canonical(line).reference
    assert read_references(kept, in_column("sol")) == [value.strip("[]")]
