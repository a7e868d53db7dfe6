import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune_api.dataset.codes import RejectCode
from finetune_trainer.data.checks.output import CheckOutput, Conversion, print_conversion, print_summary, read_accepted
from finetune_trainer.data.checks.summary import Summary
from finetune_trainer.data.formats.export import LOSSES, ExportFormat, LossCode
from finetune_trainer.data.rows import ChatRow, DataFormat, Rejected, Source
from finetune_trainer.tokenization.samples import Encoded


def test_accepted_rows_come_back_as_they_were(check: Any, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    turns = [{"role": "user", "content": "é\u2028"}, {"role": "assistant", "content": "a", "weight": 0}]
    rows, summary = check({"messages": turns, "tools": tools}, b"{", {"instruction": "q", "output": "a"})
    with CheckOutput(tmp_path / "out", summary) as output:
        for row in rows:
            output.write(row)
    kept = [row for row in rows if isinstance(row, ChatRow)]
    again = list(read_accepted(tmp_path / "out" / "accepted.jsonl"))
    assert [(row.content(), row.source) for row in again] == [(row.content(), row.source) for row in kept]
    (rejected,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert rejected.keys() == {"file", "line", "code", "detail", "excerpt"}
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary.to_dict()


def test_all_three_files_are_there_after_a_crash(check: Any, tmp_path: Path) -> None:
    rows, summary = check(b"{")
    broken = ChatRow([{"role": "user", "content": object()}], Source("f", 1), DataFormat.OPENAI)  # type: ignore[typeddict-item]
    with pytest.raises(TypeError), CheckOutput(tmp_path, summary) as output:
        list(map(output.write, [rows[0], broken]))
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["code"] == "BAD_JSON"
    assert json.loads((tmp_path / "summary.json").read_text())["rejectedRows"] == 1
    assert (tmp_path / "accepted.jsonl").read_text() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_names_each_code_with_its_count_and_meaning(check: Any, terminal: bool) -> None:
    _, summary = check(b"{", b"{", {"instruction": "q", "output": 1})
    text = io.StringIO()
    print_summary(summary, Console(file=text, force_terminal=terminal, width=160, color_system=None))
    assert "rejected  2 (2 malformed, 66.7 %)" in text.getvalue()
    assert "BAD_JSON" in text.getvalue()
    assert "not valid JSON" in text.getvalue()
    assert "COERCED_SCALAR" in text.getvalue()
    assert ("what it means" in text.getvalue()) == terminal


def test_rows_that_a_format_cannot_hold_are_counted_by_code(check: Any, tmp_path: Path) -> None:
    rows, _ = check({"prompt": "q", "chosen": "a", "rejected": "b"}, {"text": "t"}, {"text": "u"}, objective=None)
    with Conversion(tmp_path, ExportFormat.OPENAI) as conversion:
        for row in rows:
            conversion.write(row)
    assert conversion.to_dict() == {
        "format": "openai",
        "converted": 0,
        "unconverted": 3,
        "unconvertedByCode": {"NO_PROMPT": 2, "TWO_ANSWERS": 1},
    }
    text = io.StringIO()
    print_conversion(conversion, Console(file=text))
    assert "converted 0 to openai" in text.getvalue()
    assert "NO_PROMPT" in text.getvalue()


@pytest.mark.parametrize("target", [ExportFormat.OPENAI, ExportFormat.SHAREGPT])
@pytest.mark.parametrize(("objective", "converted"), [(None, 0), ("RLHF", 1), ("Distillation", 1)])
def test_a_prompt_with_earlier_answers_is_converted_for_the_objectives_that_read_it_again_as_one(
    check: Any, tmp_path: Path, target: ExportFormat, objective: str | None, converted: int
) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("user", "q2"))]
    (row,), _ = check({"prompt": turns}, objective=objective)
    with Conversion(tmp_path, target, objective) as conversion:
        conversion.write(row)
    assert conversion.converted == converted
    assert conversion.unconverted_by_code == ({} if converted else {LossCode.READS_DIFFERENTLY: 1})
    if converted:
        (again,), _ = check((tmp_path / "converted.jsonl").read_bytes(), objective=objective)
        assert again.content() == row.content()


def test_an_empty_summary_prints() -> None:
    text = io.StringIO()
    print_summary(Summary(), Console(file=text))
    assert text.getvalue() == "rows      0\naccepted  0 (0 repaired)\nrejected  0 (0 malformed, 0.0 %)\n"


def test_converted_rows_and_those_that_would_lose_something_are_written_apart_and_counted(
    check: Any, tmp_path: Path
) -> None:
    rows, summary = check({"instruction": "q", "output": "a"}, {"text": "t"}, {"text": "u"}, objective=None)
    with CheckOutput(tmp_path, summary, Conversion(tmp_path, ExportFormat.OPENAI)) as output:
        for row in rows:
            output.write(row)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert json.loads((tmp_path / "converted.jsonl").read_text()) == {"messages": turns}
    first, second = map(json.loads, (tmp_path / "unconverted.jsonl").read_text().splitlines())
    assert first == {
        "file": "s3://data/rows.jsonl",
        "line": 2,
        "code": "NO_PROMPT",
        "detail": LOSSES[LossCode.NO_PROMPT],
        "excerpt": '{"text":"t"}',
    }
    assert (second["line"], second["excerpt"]) == (3, '{"text":"u"}')
    conversion = json.loads((tmp_path / "summary.json").read_text())["conversion"]
    assert conversion == {
        "format": "openai",
        "converted": 1,
        "unconverted": 2,
        "unconvertedByCode": {"NO_PROMPT": 2},
    }


def test_the_counts_name_the_formats_and_the_lengths_of_the_samples() -> None:
    summary = Summary()
    encoded = (Encoded([1] * 8, [1] * 8, 5, left_out=2),)
    summary.count(ChatRow([], Source("f", 1), DataFormat.OPENAI, encodings=encoded))
    assert printed(summary).splitlines() == [
        "rows      1",
        "accepted  1 (0 repaired)",
        "rejected  0 (0 malformed, 0.0 %)",
        "tokens    8 (5 trained); per row: median 10, p90 10, p99 10, maximum 10; "
        "maxLength 64 truncates at most 1 % of the rows",
        "       1  OpenAI                 turns with role and content",
    ]


def test_rows_of_questions_and_answers_are_explained_where_their_format_is_named(check: Any) -> None:
    _, summary = check({"question": "Which port?", "answer": "8443"})
    line = "       1  Alpaca                 a question or instruction, and its answer, each in a column"
    assert line in printed(summary).splitlines()


def printed(summary: Summary, terminal: bool = False) -> str:
    text = io.StringIO()
    print_summary(summary, Console(file=text, force_terminal=terminal, width=160, color_system=None))
    return text.getvalue()


@pytest.mark.parametrize(("files", "more"), [(1, []), (2, []), (40, []), (41, ["and 1 more files, in summary.json"])])
def test_at_most_forty_files_are_listed_if_there_are_several(files: int, more: list[str]) -> None:
    summary = Summary()
    for number in range(files):
        summary.count(ChatRow([], Source(f"f{number}", 1), DataFormat.OPENAI))
    lines = [f"       1  rows, 1 accepted: f{number}" for number in range(min(files, 40))] if files > 1 else []
    assert [line for line in printed(summary).splitlines()[3:] if "OpenAI" not in line] == lines + more


def test_a_file_is_listed_with_its_codes_and_a_terminal_gets_tables() -> None:
    summary = Summary()
    summary.start_file("a")
    summary.count(Rejected("b", 1, RejectCode.BAD_JSON, "", ""))
    assert "       0  rows, 0 accepted: a\n       1  rows, 0 accepted: b (BAD_JSON 1)\n" in printed(summary)
    summary.formats.update({DataFormat.OPENAI: 1234, DataFormat.ALPACA: 5})
    table = printed(summary, terminal=True)
    for line in (
        "│ OpenAI │ 1,234 │ turns with role and content ",
        "│ Alpaca │     5 │ a question or instruction,",
        "│ b    │    1 │        0 │ BAD_JSON 1 │",
    ):
        assert line in table
    assert "rows, 0 accepted" not in table
    assert "│" not in printed(summary)
    assert "│" not in printed(Summary(), terminal=True)


def test_every_kind_of_row_comes_back_as_it_was(check: Any, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows, summary = check(
        {"prompt": "q", "chosen": "a", "rejected": "b", "tools": tools},
        {"prompt": "q", "completion": "a", "label": False},
        {"prompt": "q", "tools": tools},
        {"text": "t"},
        {"instruction": "q", "output": "a"},
        objective=None,
    )
    with CheckOutput(tmp_path / "out", summary) as output:
        for row in rows:
            output.write(row)
    again = list(read_accepted(tmp_path / "out" / "accepted.jsonl"))
    assert [(type(row), row.content()) for row in again] == [(type(row), row.content()) for row in rows]
    assert [row.source.line for row in again] == [1, 2, 3, 4, 5]
