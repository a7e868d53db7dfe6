import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from finetune_api.handoff import ExitCode
from finetune_api.spec import DatasetFormat, Objective
from finetune_trainer.cli import app
from finetune_trainer.commands.check_data import Request, check_local_rows, parse_columns, parse_kwargs
from finetune_trainer.data.formats.export import ExportFormat
from finetune_trainer.errors import TrainerError

ALPACA = {"instruction": "add", "input": "1 2", "output": "3"}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
LABELLED = {"prompt": "q", "completion": "a", "label": True}
TEXT = {"text": "words"}
PROMPT = {"prompt": "why?"}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(out: Path) -> Any:
    return json.loads((out / "summary.json").read_text())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "checked"


def test_without_a_folder_rows_are_checked_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write(tmp_path / "rows.jsonl", ALPACA, "{\n")
    with pytest.raises(TrainerError, match="1 of 2 rows are malformed") as caught:
        check_local_rows([str(rows)], None, Request(Objective.CHAT))
    assert caught.value.code is ExitCode.DATASET_UNUSABLE
    assert re.search(r"accepted +1 .*rejected +1 ", capsys.readouterr().out, re.DOTALL)
    assert list(tmp_path.iterdir()) == [rows]


def test_a_conversion_needs_a_folder(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ALPACA)
    done = CliRunner().invoke(app, ["check-data", str(rows), "--to", "openai"])
    assert (done.exit_code, "--to needs --out" in done.output) == (2, True)


def test_a_folder_of_mixed_files_is_read_in_order_with_each_row_s_place(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "rows"
    write(folder / "a.jsonl", "\ufeff", ALPACA, "\r\n", "{\n")
    write(folder / "b.json", json.dumps({"data": [SHAREGPT]}))
    write(folder / "c.csv", "instruction,output\r\nadd,4\r\n")
    pq.write_table(pa.Table.from_pylist([{"instruction": "add", "output": "5"}]), folder / "d.parquet")
    write(folder / "README.md", "# rows")
    check_local_rows([str(folder)], out, Request(Objective.CHAT, max_rejected_percent=50))
    accepted = lines(out / "accepted.jsonl")
    assert [(Path(row["_source"]["file"]).name, row["_source"]["line"]) for row in accepted] == [
        ("a.jsonl", 1), ("b.json", 1), ("c.csv", 2), ("d.parquet", 1),
    ]  # fmt: skip
    assert [row["messages"][-1]["content"] for row in accepted] == ["3", "hello", "4", "5"]
    assert [(row["code"], row["line"]) for row in lines(out / "rejected.jsonl")] == [("BAD_JSON", 3)]
    assert summary(out)["ignoredFiles"] == [str(folder / "README.md")]


def test_without_an_objective_rows_of_every_kind_are_converted_or_named(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.jsonl", ALPACA, SHAREGPT, PAIR, LABELLED, TEXT, PROMPT)
    check_local_rows([str(rows)], out, Request(to=ExportFormat.OPENAI))
    assert len(lines(out / "accepted.jsonl")) == 6
    assert lines(out / "converted.jsonl") == [
        {"messages": [{"role": "user", "content": "add\n1 2"}, {"role": "assistant", "content": "3"}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"messages": [{"role": "user", "content": "why?"}]},
    ]
    left_out = lines(out / "unconverted.jsonl")
    assert [(row["line"], row["code"]) for row in left_out] == [(3, "TWO_ANSWERS"), (4, "LABEL"), (5, "NO_PROMPT")]
    assert all(row.keys() == {"file", "line", "code", "detail", "excerpt"} for row in left_out)
    assert summary(out)["conversion"] == {
        "format": "openai",
        "converted": 3,
        "unconverted": 3,
        "unconvertedByCode": {"TWO_ANSWERS": 1, "LABEL": 1, "NO_PROMPT": 1},
    }
    assert "converted 3 to openai; 3 cannot be expressed in it" in capsys.readouterr().out


def test_with_an_objective_what_it_takes_of_a_row_is_converted(tmp_path: Path, out: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", PAIR, LABELLED)
    check_local_rows([str(rows)], out, Request(Objective.CHAT, to=ExportFormat.ALPACA))
    assert lines(out / "converted.jsonl") == [
        {"instruction": "q", "input": "", "output": "good"},
        {"instruction": "q", "input": "", "output": "a"},
    ]


def test_a_converted_file_is_checked_and_converted_back_to_the_same_rows(tmp_path: Path, out: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ALPACA, SHAREGPT)
    check_local_rows([str(rows)], out, Request(to=ExportFormat.SHAREGPT))
    back = tmp_path / "back"
    check_local_rows([str(out / "converted.jsonl")], back, Request(to=ExportFormat.OPENAI))
    messages = [row["messages"] for row in lines(out / "accepted.jsonl")]
    assert [row["messages"] for row in lines(back / "converted.jsonl")] == messages


def test_the_user_s_columns_are_known_by_the_names_that_are_given(tmp_path: Path, out: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"frage": "q", "antwort": "a"})
    columns = parse_columns(["prompt=frage, completion=antwort"])
    check_local_rows([str(rows)], out, Request(Objective.CHAT, columns=columns))
    assert [turn["content"] for turn in lines(out / "accepted.jsonl")[0]["messages"]] == ["q", "a"]


def test_names_within_turns_are_columns_that_are_given(tmp_path: Path, out: Path) -> None:
    turns = [{"speaker_kind": "human", "utterance": "q"}, {"speaker_kind": "ai", "utterance": "a"}]
    rows = write(tmp_path / "rows.jsonl", {"dialog": turns}, {"dialog": json.dumps([*turns, *turns])})
    columns = parse_columns(["messages=dialog,role=speaker_kind,content=utterance"])
    check_local_rows([str(rows)], out, Request(Objective.CHAT, columns=columns))
    said = [[turn["content"] for turn in row["messages"]] for row in lines(out / "accepted.jsonl")]
    assert said == [["q", "a"], ["q", "a", "q", "a"]]


def test_a_table_of_texts_and_labels_is_advised_to_name_both(tmp_path: Path, out: Path) -> None:
    rows = write(tmp_path / "rows.csv", "text,label\nMy invoice is wrong,billing\n")
    with pytest.raises(TrainerError) as error:
        check_local_rows([str(rows)], out, Request(Objective.CHAT))
    advice = (
        "name both columns in --columns (in a job: dataset.columns), for example prompt=text,answer=label; or choose"
    )
    assert advice in error.value.message


def test_a_column_that_nothing_reads_is_shown_with_the_option_that_names_it(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"problem": f"p{number}", "solution": "s" if number else None, "answer": "9"} for number in range(4)]
    check_local_rows([str(write(tmp_path / "rows.jsonl", *rows))], out, Request(Objective.CHAT))
    line = "columns not used: solution (75 %): name them in --columns if they belong to the training"
    assert line in capsys.readouterr().out.splitlines()
    assert summary(out)["unusedColumns"] == {"solution": 3}


@pytest.mark.parametrize(
    ("name", "fix"), [("rolle", "did you mean role[?]"), ("xyz", "the known names are messages, .*, role, content")]
)
def test_a_name_of_no_format_is_refused_with_the_names_of_columns_and_of_turns(
    tmp_path: Path, out: Path, name: str, fix: str
) -> None:
    with pytest.raises(TrainerError, match=f"--columns maps {name}, which is in no format: {fix}"):
        check_local_rows([str(tmp_path)], out, Request(Objective.CHAT, columns={name: "who"}))


def test_a_row_without_an_answer_is_reported_with_the_option_that_names_its_column(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write(tmp_path / "rows.jsonl", {"question": "q", "the reply": "a"})
    with pytest.raises(TrainerError, match="none of the 1 rows can be used"):
        check_local_rows([str(rows)], out, Request(Objective.CHAT))
    assert "name yours in --columns (in a job: dataset.columns), for example 'answer=the reply'" in caplog.text


def test_columns_may_be_given_one_by_one() -> None:
    assert parse_columns(["prompt=a", "completion=b=c"]) == {"prompt": "a", "completion": "b=c"}


@pytest.mark.parametrize("option", ["prompt", "prompt=", "=a", "prompt=a,"])
def test_half_a_pair_of_columns_is_refused_with_an_example(option: str) -> None:
    with pytest.raises(TrainerError, match="prompt=question") as refused:
        parse_columns([option])
    assert refused.value.code is ExitCode.INVALID_CONFIG


def test_the_check_of_a_manifest_names_the_fields_of_the_job(
    tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write(tmp_path / "rows.jsonl", '{"frage": "Wie?"}\n' + json.dumps(ALPACA))
    with pytest.raises(TrainerError, match=r"dataset\.maxRejectedPercent is 20") as refused:
        check_local_rows([str(rows)], out, Request(Objective.CHAT, names_fields=True))
    assert "name yours in dataset.columns, for example {question: YOURS, answer: YOURS}" in caplog.text
    assert "--" not in caplog.text + str(refused.value)


def test_a_column_of_no_format_is_refused_with_its_option(tmp_path: Path, out: Path) -> None:
    with pytest.raises(TrainerError, match="--columns maps frage, which is in no format"):
        check_local_rows([str(tmp_path)], out, Request(columns={"frage": "prompt"}))


@pytest.mark.parametrize(
    ("content", "request_", "message"),
    [
        ("", Request(Objective.CHAT), "there are no rows"),
        ("{\n", Request(Objective.CHAT), "none of the 1 rows can be used"),
        (json.dumps(PAIR), Request(Objective.DOMAIN_ADAPTATION), "choose the objective DPO"),
        (json.dumps(ALPACA) + "\n{", Request(Objective.CHAT), "--max-rejected-percent is 20"),
        (json.dumps(TEXT), Request(to=ExportFormat.OPENAI), "none of the 1 accepted rows can be converted to openai"),
        (json.dumps(ALPACA), Request(Objective.CHAT, DatasetFormat.OPENAI), "none of the 1 rows can be used"),
        ("PAR1", Request(Objective.CHAT), "damaged Parquet file"),
        ("\x89HDF", Request(Objective.CHAT), "none of the 1 rows can be used"),
    ],
)
def test_rows_that_cannot_be_used_end_in_65_with_every_file_written(
    tmp_path: Path, out: Path, content: str, request_: Request, message: str
) -> None:
    rows = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(TrainerError, match=message) as refused:
        check_local_rows([str(rows)], out, request_)
    assert refused.value.code is ExitCode.DATASET_UNUSABLE
    assert {"accepted.jsonl", "rejected.jsonl", "summary.json"} <= {path.name for path in out.iterdir()}


def test_a_missing_file_ends_in_65_with_every_file_written(tmp_path: Path, out: Path) -> None:
    with pytest.raises(TrainerError, match="No such file"):
        check_local_rows([str(tmp_path / "absent.jsonl")], out, Request(Objective.CHAT))
    assert summary(out)["rows"] == 0


def test_an_input_is_never_written_over(tmp_path: Path) -> None:
    rows = write(tmp_path / "accepted.jsonl", ALPACA)
    with pytest.raises(TrainerError, match="would be overwritten"):
        check_local_rows([str(rows)], tmp_path, Request(Objective.CHAT))
    assert lines(rows) == [ALPACA]


def test_with_a_model_the_lengths_are_shown(
    tmp_path: Path, out: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(
        tmp_path / "rows.jsonl", *({"instruction": "what is one", "output": "x" * size} for size in (1, 9, 60))
    )
    check_local_rows([str(rows)], out, Request(Objective.CHAT, model=model_folder))
    lengths = summary(out)["lengths"]
    assert 0 < lengths["p50"] < lengths["max"] <= lengths["advisedMaxLength"]
    assert f"maximum {lengths['max']}; maxLength {lengths['advisedMaxLength']} truncates" in capsys.readouterr().out


def test_rows_with_too_many_tokens_are_skipped_as_the_job_does(tmp_path: Path, out: Path, model_folder: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *({"instruction": "what is one", "output": "x" * size} for size in (1, 99)))
    request = Request(Objective.CHAT, model=model_folder, max_length=64, skips_long=True)
    check_local_rows([str(rows)], out, request)
    assert summary(out)["rejectedRowsByCode"] == {"OVER_MAX_LENGTH": 1}
    with pytest.raises(TrainerError, match="each of the 2 rows has more tokens than --max-length: raise it"):
        check_local_rows([str(rows)], None, Request(Objective.CHAT, model=model_folder, max_length=16, skips_long=True))
    done = CliRunner().invoke(app, ["check-data", str(rows), "--long-rows", "skip"])
    assert (done.exit_code, "--long-rows needs --model" in done.output) == (2, True)


@pytest.mark.parametrize("answer", [{"content": "2", "reasoning_content": "hm"}, {"content": "<think>hm</think>2"}])
def test_reasoning_that_the_template_omits_is_a_warning_with_the_option(
    tmp_path: Path, out: Path, model_folder: Path, caplog: pytest.LogCaptureFixture, answer: dict[str, str]
) -> None:
    asked = {"role": "user", "content": "what is one plus one"}
    rows = write(tmp_path / "rows.jsonl", {"messages": [asked, {"role": "assistant", **answer}]}, ALPACA)
    stripped = tmp_path / "own.jinja"
    stripped.write_text("{% for one in messages %}{{ one['content'].split('</think>')[-1] + eos_token }}{% endfor %}")
    check_local_rows([str(rows)], out, Request(Objective.CHAT, model=model_folder, chat_template=str(stripped)))
    assert "omits the reasoning of answers in 1 of 2 rows (50.0 %), which is not trained on: set --chat-template" in (
        caplog.text
    )


def test_the_first_accepted_rows_are_shown_as_the_model_reads_them_with_the_trained_parts_marked(
    tmp_path: Path, out: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"instruction": "what is\x1b[2J\u202e ⟦one⟧", "output": "two\nrows      9"}
    rows = write(tmp_path / "rows.jsonl", "{\n", asked, ALPACA, {"instruction": "never", "output": "shown"})
    request = Request(Objective.CHAT, model=model_folder, max_rejected_percent=50, show=2)
    check_local_rows([str(rows)], out, request)
    summed_up, title, shown = capsys.readouterr().out.partition("The first 2 accepted rows as the model reads them;")
    assert title
    assert summed_up.startswith("rows      4\n")
    assert shown == (
        " what is trained is between ⟦ and ⟧:\n"
        f"{rows}:2\n"
        "    <|im_start|>user\n"
        "    what is\\u001b[2J\\u202e [one]<|im_end|>\n"
        "    <|im_start|>assistant\n"
        "    ⟦two\n"
        "    rows      9<|im_end|>⟧\n"
        "    \n"
        f"{rows}:3\n"
        "    <|im_start|>user\n"
        "    add\n"
        "    1 2<|im_end|>\n"
        "    <|im_start|>assistant\n"
        "    ⟦3<|im_end|>⟧\n"
        "    \n"
    )


def test_no_row_is_shown_unless_it_is_asked_for_and_an_answer_is_shown_as_far_as_it_is_trained(
    tmp_path: Path, out: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.jsonl", {"instruction": "what is one", "output": "two " * 50})
    check_local_rows([str(rows)], out, Request(Objective.CHAT, model=model_folder, max_length=60))
    assert "The first" not in capsys.readouterr().out
    check_local_rows([str(rows)], out, Request(Objective.CHAT, model=model_folder, max_length=60, show=5))
    shown = capsys.readouterr().out.partition("The first 1 accepted row as the model reads it;")[2]
    assert re.search(r"⟦t.*two⟧ \[\d+ tokens do not fit in maxLength\]\n$", shown)


def test_a_shown_row_has_the_characters_that_are_trained(
    tmp_path: Path, out: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a name of an emoji nor what looks like markup is replaced."""
    rows = write(tmp_path / ":key:.jsonl", {"instruction": "what [bold]is[/bold] one", "output": ":heart: one"})
    check_local_rows([str(rows)], out, Request(Objective.CHAT, model=model_folder, show=1))
    shown = capsys.readouterr().out.partition("The first 1")[2]
    assert "⟦:heart: one" in shown
    assert "what [bold]is[/bold] one" in shown
    assert ":key:.jsonl:1\n" in shown


def test_rows_are_shown_only_with_a_model_whose_template_writes_them(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ALPACA)
    command = ["check-data", str(rows), "--out", str(tmp_path / "out"), "--show", "1"]
    refused = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert "--show needs --model" in refused.output


def accepted_tokens(out: Path, rows: Path, model: Path, **choice: Any) -> int:
    check_local_rows([str(rows)], out, Request(Objective.CHAT, model=model, **choice))
    return int(summary(out)["lengths"]["max"])


def test_a_chosen_template_replaces_that_of_the_model(tmp_path: Path, out: Path, model_folder: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"instruction": "what is one", "output": "one"})
    template = tmp_path / "own.jinja"
    template.write_text("{% for one in messages %}{{ mark }}{{ one['content'] }}{% endfor %}{{ eos_token }}")
    short = accepted_tokens(out, rows, model_folder, chat_template="completion")
    assert short < accepted_tokens(out, rows, model_folder, chat_template="Alpaca")
    marked = {"chat_template": str(template), "chat_template_kwargs": {"mark": "one one one"}}
    assert accepted_tokens(out, rows, model_folder, **marked) > short


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"chat_template": "alpca"}, "--chat-template alpca: No such file or directory: give a file of a template"),
        ({"chat_template": "BROKEN"}, "^--chat-template: "),
        ({"chat_template_kwargs": {"enable_thinkin": "false"}}, "^--chat-template-kwargs: .*enable_thinkin"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_by_its_option(
    tmp_path: Path, out: Path, model_folder: Path, choice: dict[str, Any], message: str
) -> None:
    rows = write(tmp_path / "rows.jsonl", ALPACA)
    (tmp_path / "broken.jinja").write_text("{% for one in messages %}")
    if choice.get("chat_template") == "BROKEN":
        choice = {"chat_template": str(tmp_path / "broken.jinja")}
    with pytest.raises(TrainerError, match=message) as refused:
        check_local_rows([str(rows)], out, Request(Objective.CHAT, model=model_folder, **choice))
    assert refused.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("eos_token=X", "--chat-template-kwargs: eos_token has a value already: remove it"),
        ("Thinking=no", "--chat-template-kwargs Thinking: .*as in model.chatTemplateKwargs"),
        ("thinking", "--chat-template-kwargs 'thinking': write VARIABLE=VALUE"),
    ],
)
def test_a_variable_that_no_job_takes_is_refused(pair: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        parse_kwargs([pair])


def test_variables_of_a_template_are_given_together_or_one_by_one() -> None:
    assert parse_kwargs(["enable_thinking=false,mark=a", "level=2"]) == {
        "enable_thinking": "false", "mark": "a", "level": "2",
    }  # fmt: skip


@pytest.mark.process
def test_a_terminal_gets_tables_and_a_pipe_gets_lines(tmp_path: Path, out: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *({"instruction": f"q{n}", "output": "a"} for n in range(2000)), "{\n")
    command = [sys.executable, "-m", "finetune_trainer", "check-data", str(rows), "--out", str(out), "--to", "openai"]
    piped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "BAD_JSON" in piped.stdout
    assert "│" not in piped.stdout
    assert "checking" not in piped.stderr
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    environment = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 65536):
                shown += block
        except OSError:  # the other end is closed
            pass
        assert process.wait(60) == 0
    os.close(ours)
    assert "│ BAD_JSON" in shown.decode()
    assert "checking:" in shown.decode()


def test_with_several_files_what_became_of_each_is_shown(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rows"
    good, bad, empty = (folder / name for name in ("a [b].jsonl", "b.jsonl", "c.jsonl"))
    write(good, ALPACA, SHAREGPT)
    write(bad, ALPACA, "{\n", "{\n")
    write(empty, "")
    check_local_rows([str(folder)], out, Request(Objective.CHAT, max_rejected_percent=50))
    assert summary(out)["files"] == [
        {"file": str(good), "rows": 2, "acceptedRows": 2, "rejectedRowsByCode": {}},
        {"file": str(bad), "rows": 3, "acceptedRows": 0, "rejectedRowsByCode": {"BAD_JSON": 2, "DUPLICATE": 1}},
        {"file": str(empty), "rows": 0, "acceptedRows": 0, "rejectedRowsByCode": {}},
    ]
    printed = capsys.readouterr().out
    assert f"2  rows, 2 accepted: {good}\n" in printed
    assert f"3  rows, 0 accepted: {bad} (BAD_JSON 2, DUPLICATE 1)" in printed


def test_a_model_that_cannot_be_used_ends_in_66_with_every_file_written(tmp_path: Path, out: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ALPACA)
    with pytest.raises(TrainerError) as refused:
        check_local_rows([str(rows)], out, Request(Objective.CHAT, model=tmp_path / "absent"))
    assert refused.value.code is ExitCode.MODEL_UNAVAILABLE
    assert {"accepted.jsonl", "rejected.jsonl", "summary.json"} == {path.name for path in out.iterdir()}


@pytest.mark.process
def test_the_name_of_a_file_forges_no_line_of_the_log(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "rows"
    write(folder / "a.jsonl", ALPACA)
    write(folder / "b\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\x9b\u202e.txt")
    command = [sys.executable, "-m", "finetune_trainer", "check-data", str(folder), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "b\\n2026-01-01T00:00:00Z ERROR forged\\u001b[2J\\u009b\\u202e.txt" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("2026-01-01")] == []
    assert not {"\x1b", "\x9b", "\u202e"} & set(done.stderr + done.stdout)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_name_of_a_file_is_text_in_the_table_of_files(
    tmp_path: Path, out: Path, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "rows" / "a.jsonl", ALPACA)
    write(tmp_path / "rows" / "b\n\x1b[2J.jsonl", ALPACA)
    monkeypatch.setenv("COLUMNS", "200")
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    check_local_rows([str(tmp_path / "rows")], out, Request())
    printed = capsys.readouterr().out
    assert "b\\n\\u001b[2J.jsonl" in printed
    assert "\x1b[2J" not in printed
