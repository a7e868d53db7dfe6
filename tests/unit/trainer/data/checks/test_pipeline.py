import logging
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.checks.pipeline import check_rows
from finetune_trainer.data.checks.split import collect_prompts
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.rows import ChatRow, NamedPath, Rejected

GOOD = {"instruction": "q", "output": "a"}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def chat(*turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


def test_a_surrogate_that_a_python_literal_spells_is_found_as_well(check: Any) -> None:
    (row,), _ = check({"conversations": "[{'from': 'human', 'value': '\\ud800'}, {'from': 'gpt', 'value': 'a'}]"})
    assert row.code is RejectCode.LONE_SURROGATE


def test_the_same_row_in_another_format_is_a_duplicate(check: Any) -> None:
    rows, summary = check(GOOD, chat(USER, ANSWER), {**GOOD, "output": "b"})
    assert [type(row) for row in rows] == [ChatRow, Rejected, ChatRow]
    assert summary.rejected_by_code == {RejectCode.DUPLICATE: 1}
    assert summary.malformed == 0


def test_prompts_of_the_validation_file_are_not_trained_on(check: Any) -> None:
    held_out, _ = check({"instruction": " What   IS it?", "output": "x"})
    rows, summary = check(
        {"instruction": "what is it?", "output": "y"}, GOOD, validation_prompts=collect_prompts(held_out)
    )
    assert rows[0].code is RejectCode.EVAL_LEAK
    assert (summary.accepted, summary.malformed) == (1, 0)


def test_counts_add_up_and_name_the_formats(check: Any) -> None:
    sharegpt = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
    _, summary = check(GOOD, b"{", sharegpt, chat(USER, {**ANSWER, "content": "z"}), GOOD)
    counts = summary.to_dict()
    assert (counts["rows"], counts["acceptedRows"], counts["rejectedRows"], counts["malformedRows"]) == (5, 3, 2, 1)
    assert counts["rowsByFormat"] == {"Alpaca": 1, "ShareGPT": 1, "OpenAI": 1}
    assert summary.malformed_percent == 20


def test_max_samples_ends_with_the_last_wanted_row(check: Any) -> None:
    rows, summary = check(*({"instruction": f"q{n}", "output": "a"} for n in range(9)), max_samples=4)
    assert len(rows) == summary.rows == 4


def test_a_given_format_is_held_to(check: Any) -> None:
    (row,), _ = check(GOOD, format="OpenAI")
    assert row.code is RejectCode.MISSING_COLUMN


def test_columns_are_renamed_before_detection(check: Any) -> None:
    rows, _ = check({"q": "x", "a": "y"}, {"q": "x"}, columns={"prompt": "q", "completion": "a"})
    assert [message["content"] for message in rows[0].messages] == ["x", "y"]
    assert rows[1].code is RejectCode.MISSING_COLUMN
    assert "completion as 'a'" in rows[1].detail


def test_a_csv_row_is_a_row_like_any_other(check: Any) -> None:
    rows, _ = check(b"instruction,output\nq,42\n,a\n", name="rows.csv")
    assert rows[0].messages[1] == {"role": "assistant", "content": "42"}
    assert (rows[1].code, rows[1].line) == (RejectCode.EMPTY_PROMPT, 3)


def test_the_first_five_of_each_code_are_logged(check: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check(*[b"{"] * 9, [1])
    assert len([record for record in caplog.records if "BAD_JSON" in record.message]) == 5
    assert "s3://data/rows.jsonl:10: NOT_OBJECT" in caplog.text


def test_progress_counts_rows_and_bytes_over_all_files(check: Any) -> None:
    seen: list[tuple[int, int]] = []
    rows = [{"instruction": f"q{n}", "output": "a"} for n in range(1200)]
    check(*rows, on_progress=lambda *progress: seen.append(progress))
    assert [count for count, _ in seen] == [500, 1000, 1200]
    assert sorted(seen) == seen


def test_progress_counts_the_next_file_from_the_end_of_the_first(tmp_path: Path) -> None:
    paths = [NamedPath(tmp_path / name, name) for name in ("a", "b")]
    for path in paths:
        path.path.write_bytes(b"".join(b'{"text": "%s %d"}\n' % (path.name.encode(), n) for n in range(400)))
    seen: list[tuple[int, int]] = []
    list(check_rows(paths, summary=Summary(), objective=None, on_progress=lambda *progress: seen.append(progress)))
    sizes = [path.path.stat().st_size for path in paths]
    assert [count for count, _ in seen] == [500, 800]
    assert sizes[0] < seen[0][1] <= seen[1][1] == sum(sizes)


@pytest.mark.parametrize(
    ("row", "options", "code", "detail"),
    [
        (
            {"a": 1, "b": 2},
            {},
            RejectCode.UNKNOWN_FORMAT,
            "the columns match no known format; columns found: a, b; name yours in dataset.columns, for example "
            "{question: YOURS, answer: YOURS}",
        ),
        (
            {"a": 1, "b": 2},
            {"objective": "DPO"},
            RejectCode.UNKNOWN_FORMAT,
            "the columns match no known format; columns found: a, b; name yours in dataset.columns, for example "
            "{prompt: YOURS, chosen: YOURS, rejected: YOURS}",
        ),
        (
            {"prompt": "q", "reply": "a"},
            {},
            RejectCode.NO_ASSISTANT,
            "the row has a prompt but no answer; columns found: prompt, reply; name yours in dataset.columns, "
            "for example {answer: reply}",
        ),
        (
            {"question": "q", "id": 7, "reply": "a"},
            {},
            RejectCode.NO_ASSISTANT,
            "the row has a prompt but no answer; columns found: question, id, reply; name yours in "
            "dataset.columns, for example {answer: reply}",
        ),
        (
            {"question": "q"},
            {},
            RejectCode.NO_ASSISTANT,
            "the row has a prompt but no answer; columns found: question",
        ),
        (
            {"prompt": "q", "reply": "a", "label": True},
            {"format": "Unpaired"},
            RejectCode.NO_ASSISTANT,
            "the row has label but no answer; columns found: prompt, reply, label; name yours in "
            "dataset.columns, for example {answer: reply}",
        ),
        (
            {"frage": "q", "answer": "a"},
            {"format": "Alpaca"},
            RejectCode.MISSING_COLUMN,
            "the row has none of these columns: instruction, query, question, problem, prompt; columns found: frage, "
            "answer; name yours in dataset.columns, for example {instruction: frage}",
        ),
        (
            {"prompt": "q", "better": "a", "worse": "b"},
            {"objective": "DPO"},
            RejectCode.NOT_FOR_OBJECTIVE,
            "the row is a prompt without an answer, but DPO trains on preference pairs (prompt, chosen, rejected): "
            "choose the objective RLHF or Distillation; columns found: prompt, better, worse; name yours in "
            "dataset.columns, for example {chosen: YOURS, rejected: YOURS}",
        ),
        (
            {"q": "x"},
            {"columns": {"prompt": "q", "completion": "a", "system": "s"}},
            RejectCode.MISSING_COLUMN,
            "dataset.columns names completion as 'a', system as 's', which the row does not have; columns found: "
            "prompt",
        ),
    ],
)
def test_a_row_whose_columns_do_not_suffice_names_those_that_it_has_and_the_field(
    check: Any, row: dict[str, Any], options: dict[str, Any], code: RejectCode, detail: str
) -> None:
    (refused,), _ = check(row, **options)
    assert (refused.code, refused.detail) == (code, detail)


def test_of_equal_rejects_the_log_has_the_sentence_once(check: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check({"prompt": "p"}, {"prompt": "q"}, {"question": "r"})
    assert [record.message.partition("rows.jsonl:")[2] for record in caplog.records] == [
        "1: NO_ASSISTANT: the row has a prompt but no answer; columns found: prompt (the row is skipped)",
        "2: NO_ASSISTANT: as line 1 (the row is skipped)",
        "3: NO_ASSISTANT: the row has a prompt but no answer; columns found: question (the row is skipped)",
    ]


def test_no_files_give_no_rows() -> None:
    summary = Summary()
    assert list(check_rows([], summary=summary)) == []
    assert summary.malformed_percent == 0
