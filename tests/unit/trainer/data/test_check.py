import logging
from typing import Any

import pytest

from finetune_trainer.data.check import check_files
from finetune_trainer.data.rows import SENTENCES, ChatRow, RejectCode, Rejected, RepairCode
from finetune_trainer.data.split import collect_prompts
from finetune_trainer.data.summary import Summary

GOOD = {"instruction": "q", "output": "a"}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
TOOL = {"role": "tool", "content": "3"}
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def call(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": function}]}


def chat(*turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


REJECTED: dict[RejectCode, list[Any]] = {
    RejectCode.BAD_JSON: [b"{", b"not json", b'{"a": NaN}'],
    RejectCode.BAD_UTF8: [b'{"a": "\xff"}'],
    RejectCode.DUP_KEY: [b'{"output": "a", "output": "b"}'],
    RejectCode.NOT_OBJECT: [[1], "text", 7, None],
    RejectCode.UNKNOWN_FORMAT: [{}, {"a": 1}, {"label": True}],
    RejectCode.MISSING_COLUMN: [chat({"content": "q"}, ANSWER), chat({"role": "user"}, ANSWER)],
    RejectCode.NULL_FIELD: [
        {"instruction": "q", "output": None},
        {"instruction": None, "output": "a"},
        {"messages": None},
        chat({"role": "user", "content": None}, ANSWER),
        chat({"role": None, "content": "q"}, ANSWER),
    ],
    RejectCode.WRONG_TYPE: [
        {"instruction": {"a": 1}, "output": "a"},
        {"messages": 5},
        {"messages": "no list"},
        {"messages": "[" * 5000},
        chat("q", ANSWER),  # type: ignore[arg-type]
        chat({"role": 1, "content": "q"}, ANSWER),
        chat(USER, {**ANSWER, "weight": 0.5}),
        chat(USER, {**ANSWER, "train": "no"}),
        {"instruction": "q", "output": "a", "history": [["only a question"]]},
    ],
    RejectCode.EMPTY_PROMPT: [
        {"instruction": "", "input": " ", "output": "a"},
        chat({"role": "user", "content": " \n"}, ANSWER),
    ],
    RejectCode.EMPTY_RESPONSE: [{"instruction": "q", "output": ""}, chat(USER, {"role": "assistant", "content": " "})],
    RejectCode.EMPTY_TURN: [chat(USER, {"role": "assistant", "content": ""}, USER, ANSWER)],
    RejectCode.UNKNOWN_ROLE: [chat({"role": "narrator", "content": "q"}, ANSWER)],
    RejectCode.SYSTEM_NOT_FIRST: [chat(USER, {"role": "system", "content": "s"}, ANSWER)],
    RejectCode.BAD_ALTERNATION: [
        chat(USER, USER, ANSWER),
        chat(USER, ANSWER, ANSWER),
        chat(ANSWER),
        chat(USER, call(name="add"), TOOL, USER, ANSWER),
    ],
    RejectCode.NO_ASSISTANT: [chat(USER), chat(), chat({"role": "system", "content": "s"})],
    RejectCode.ORPHAN_TOOL: [
        chat(USER, TOOL, ANSWER),
        chat(USER, ANSWER, TOOL, ANSWER),
        chat(USER, call(name="add"), {**TOOL, "tool_call_id": "2"}, ANSWER),
    ],
    RejectCode.BAD_TOOL_CALL: [
        chat(USER, call(name="")),
        chat(USER, call(name="add", arguments="{")),
        chat(USER, call(name="add", arguments="[1]")),
        chat(USER, call(name="sub"), tools=TOOLS),
        chat(USER, {"role": "assistant", "content": "", "tool_calls": "add"}),
        chat(USER, {"role": "function_call", "content": "add(1)"}),
    ],
    RejectCode.BAD_TOOLS: [
        chat(USER, ANSWER, tools=5),
        chat(USER, ANSWER, tools=["add"]),
        chat(USER, ANSWER, tools=[{"function": {}}]),
        chat(USER, ANSWER, tools=[{"name": "add", "parameters": "none"}]),
    ],
    RejectCode.UNSUPPORTED_MODALITY: [
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
        chat(USER, ANSWER, images=["x.png"]),
    ],
    RejectCode.LONE_SURROGATE: [b'{"instruction": "\\udc00", "output": "a"}'],
}


@pytest.mark.parametrize(("code", "row"), [(code, row) for code, rows in REJECTED.items() for row in rows])
def test_a_malformed_row_is_rejected_with_its_code_and_line(check: Any, code: RejectCode, row: object) -> None:
    (first, bad, last), summary = check(GOOD, row, {"instruction": "q2", "output": "a2"})
    assert isinstance(first, ChatRow)
    assert isinstance(last, ChatRow)
    assert isinstance(bad, Rejected)
    assert (bad.code, bad.file, bad.line) == (code, "s3://data/rows.jsonl", 2)
    assert bad.detail
    assert len(bad.excerpt) <= 120
    assert summary.to_dict()["rejectedByCode"] == {code.value: 1}


def test_a_surrogate_that_a_python_literal_spells_is_found_as_well(check: Any) -> None:
    (row,), _ = check({"conversations": "[{'from': 'human', 'value': '\\ud800'}, {'from': 'gpt', 'value': 'a'}]"})
    assert row.code is RejectCode.LONE_SURROGATE


REPAIRED = {
    RepairCode.TRAILING_USER_TRIMMED: [chat(USER, ANSWER, USER), chat(USER, call(name="add"), TOOL)],
    RepairCode.COERCED_SCALAR: [{"instruction": "q", "output": 5}],
    RepairCode.NONE_STRIPPED: [
        {"instruction": "q", "input": None, "output": "a"},
        chat({"role": "system", "content": ""}, USER, ANSWER),
    ],
    RepairCode.SYSTEM_MERGED: [
        chat({"role": "system", "content": "s"}, {"role": "developer", "content": "t"}, USER, ANSWER),
        chat({"role": "system", "content": "s"}, USER, ANSWER, system="t"),
    ],
}


@pytest.mark.parametrize(("code", "row"), [(code, row) for code, rows in REPAIRED.items() for row in rows])
def test_a_repair_is_counted(check: Any, code: RepairCode, row: object) -> None:
    (kept,), summary = check(row)
    assert kept.repairs == (code,)
    assert summary.repaired == summary.accepted == 1
    assert summary.to_dict()["repairedByCode"] == {code.value: 1}


def test_every_code_has_a_sentence() -> None:
    assert set(SENTENCES) == {*RejectCode, *RepairCode}


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
    assert (counts["rows"], counts["accepted"], counts["rejected"], counts["malformed"]) == (5, 3, 2, 1)
    assert counts["formats"] == {"Alpaca": 1, "ShareGPT": 1, "OpenAI": 1}
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


def test_no_files_are_no_rows() -> None:
    summary = Summary()
    assert list(check_files([], summary=summary)) == []
    assert summary.malformed_percent == 0
