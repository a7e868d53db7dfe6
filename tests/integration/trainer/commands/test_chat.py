"""`finetune-trainer run` at a terminal, and `chat` with its result: real training of a tiny model, real processes."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tiny_model import make_tiny_model

QUESTION = "Is 3 even?"
JOB = f"""
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: local}}
spec:
  objective: Instruction
  model: {{uri: s3://bucket/model}}
  tuning: {{method: METHOD}}
  dataset:
    train: {{uri: s3://bucket/rows.jsonl}}
    validationSplitPercent: 20
  hyperparameters: {{learningRate: 1e-2, maxLength: 64, maxSteps: 12, gradientAccumulationSteps: 1}}
  evaluation: {{steps: 6, prompts: [{{prompt: '{QUESTION}'}}], maxNewTokens: 8}}
  output: {{uri: s3://bucket/out}}
"""
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LOG = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ ")


def trainer(
    folder: Path, *arguments: str, stdin: str = "", python: str = sys.executable
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [python, "-m", "finetune_trainer", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


def at_a_terminal(folder: Path, *arguments: str, typed: bytes = b"", python: str = sys.executable) -> tuple[int, str]:
    """Run the command with a terminal for input, output and errors; return its exit code and all that it wrote."""
    own, theirs = pty.openpty()
    termios.tcsetwinsize(own, (40, 120))
    process = subprocess.Popen(
        [python, "-m", "finetune_trainer", *arguments],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "TERM": "xterm"},
    )
    os.close(theirs)
    os.write(own, typed)
    seen = b""
    try:
        while part := os.read(own, 1 << 16):
            seen += part
    except OSError:  # the last process with the terminal has ended
        pass
    os.close(own)
    return process.wait(600), seen.decode("utf-8", "replace")


def make_folder(folder: Path, method: str) -> Path:
    make_tiny_model(folder / "model")
    rows = [{"instruction": f"Is {index} even?", "output": "yes" if index % 2 == 0 else "no"} for index in range(50)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "job.yaml").write_text(JOB.replace("METHOD", method))
    return folder


RUN = ("run", "job.yaml", "-o", "out", "--map", "s3://bucket/model=model", "--map", "s3://bucket/rows.jsonl=rows.jsonl")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, trainer_python: str) -> tuple[Path, str]:
    """A folder in which LoRA was run at a terminal, and what the terminal showed."""
    folder = make_folder(tmp_path_factory.mktemp("lora"), "LoRA")
    code, seen = at_a_terminal(folder, *RUN, python=trainer_python)
    assert code == 0, seen
    return folder, seen


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which method Full was run."""
    folder = make_folder(tmp_path_factory.mktemp("full"), "Full")
    done = trainer(folder, *RUN)
    assert done.returncode == 0, done.stderr
    return folder


def frames(seen: str) -> list[str]:
    """What was drawn on the lines of the terminal, one after the other."""
    return [frame.strip() for frame in re.split(r"[\r\n]+", ANSI.sub("", seen)) if frame.strip()]


def answers(text: str) -> dict[str, str]:
    """The answers in the output of a pipe by name."""
    return {name: answer.strip() for name, answer in re.findall(r"^(base|tuned):\n(.*?)\n\n", text, re.M | re.S)}


def letters(text: str) -> str:
    """The text without what the report and a terminal show in another way."""
    return "".join(letter for letter in text if letter.isalnum())


def test_the_terminal_shows_stages_and_steps_and_no_log_line_is_in_a_bar(adapted: tuple[Path, str]) -> None:
    shown = frames(adapted[1])
    stages = {found[1] for frame in shown if (found := re.match(r"([A-Z][a-z]+)( \d+%)? [\[|]", frame))}
    assert {"Loading", "Baseline", "Training", "Evaluating", "Publishing"} <= stages
    assert any(re.match(r"Baseline \d+% \[", frame) for frame in shown)
    logged = [frame for frame in shown if LOG.search(frame)]
    assert len(logged) >= 2
    assert [frame for frame in logged if not LOG.match(frame)] == []


def test_the_end_names_report_adapter_and_a_command_that_answers_as_the_report_does(
    adapted: tuple[Path, str],
) -> None:
    folder, seen = adapted
    *_, report, adapter, command = frames(seen)
    assert report == "local: report out/report.html"
    assert adapter == "local: adapter out/adapter"
    assert command == "local: try it with finetune-trainer chat out --base model"
    assert "kubectl" not in seen
    words = command.partition("finetune-trainer ")[2].split()
    done = trainer(folder, *words, "--prompt", QUESTION, "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr
    shown = answers(done.stdout)
    assert list(shown) == ["base", "tuned"]
    text = (folder / "out" / "finetune_report.md").read_text()
    section = text.partition("## Answers before and after")[2]
    question, *both = (letters(found) for found in re.findall(r"(?:^ {4}.*\n)+", section, re.MULTILINE)[:3])
    assert question == letters(QUESTION)
    assert [letters(answer) for answer in shown.values()] == both
    assert "aws s3" not in text  # the result is in no store


@pytest.mark.nightly
def test_an_adapter_alone_is_enough(adapted: tuple[Path, str]) -> None:
    folder, _ = adapted
    whole, alone = (trainer(folder, "chat", name, "--base", "model", "-p", QUESTION) for name in ("out", "out/adapter"))
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout == whole.stdout


@pytest.mark.nightly
def test_a_conversation_keeps_its_history_until_a_new_one_starts(adapted: tuple[Path, str]) -> None:
    folder, _ = adapted
    digits = "0123456789" * 60  # a token each, and the model reads 1,024 tokens
    options = ("chat", "out", "--base", "model", "--max-new-tokens", "8")
    apart = trainer(folder, *options, stdin=f"{digits}\n/new\n{digits}\n/exit\n{digits}\n")
    assert apart.returncode == 0, apart.stderr
    assert apart.stdout.count("tuned:\n") == 2
    together = trainer(folder, *options, stdin=f"{digits}\n{digits}\n")
    assert together.returncode == 64
    assert together.stdout.count("tuned:\n") == 1
    assert "longer than the 1024 of the model: start a new one" in together.stderr


@pytest.mark.nightly
def test_a_system_prompt_is_part_of_the_conversation(adapted: tuple[Path, str]) -> None:
    folder, _ = adapted
    done = trainer(folder, "chat", "out", "--base", "model", "-p", QUESTION, "--system", "0123456789" * 120)
    assert (done.returncode, "longer than the 1024 of the model" in done.stderr) == (64, True)


@pytest.mark.nightly
def test_a_terminal_shows_both_answers_side_by_side(adapted: tuple[Path, str]) -> None:
    folder, _ = adapted
    code, seen = at_a_terminal(folder, "chat", "out", "--base", "model", typed=f"{QUESTION}\n/exit\n".encode())
    assert code == 0, seen
    assert any(re.search(r"base .*tuned ", frame) for frame in frames(seen))


@pytest.mark.nightly
def test_a_fully_tuned_model_is_compared_with_the_base_that_is_named(tuned: Path) -> None:
    alone = trainer(tuned, "chat", "out/merged", "-p", QUESTION)
    assert alone.returncode == 0, alone.stderr
    assert list(answers(alone.stdout)) == ["tuned"]
    both = trainer(tuned, "chat", "out", "--base", "model", "-p", QUESTION)
    assert answers(both.stdout)["tuned"] == answers(alone.stdout)["tuned"]
    assert list(answers(both.stdout)) == ["base", "tuned"]


@pytest.mark.nightly
def test_another_base_is_refused(adapted: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = adapted
    other = shutil.copytree(folder / "model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    done = trainer(folder, "chat", "out", "--base", str(other), "-p", QUESTION)
    assert done.returncode == 66
    assert "the adapter does not fit the base" in done.stderr


def test_pickle_and_remote_code_are_refused(adapted: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = adapted
    pickled = shutil.copytree(folder / "out" / "adapter", tmp_path / "adapter")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    done = trainer(folder, "chat", str(pickled), "--base", "model", "-p", QUESTION)
    assert (done.returncode, "pickle" in done.stderr) == (66, True)
    code = shutil.copytree(folder / "model", tmp_path / "code")
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    done = trainer(folder, "chat", "out", "--base", str(code), "-p", QUESTION)
    assert (done.returncode, "remote code" in done.stderr) == (66, True)


@pytest.mark.nightly
def test_a_conversation_has_the_system_message_of_the_rows_unless_another_is_given(
    adapted: tuple[Path, str], trainer_python: str
) -> None:
    folder = adapted[0]
    shutil.copytree(folder / "out", folder / "with-message")
    config = folder / "with-message" / "finetune_config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("  dataset:\n", "  dataset:\n    systemMessage: no no no no\n", 1), encoding="utf-8")

    def answered(result: str, *options: str) -> dict[str, str]:
        words = ("chat", result, "--base", "model", "-p", QUESTION, *options)
        done = trainer(folder, *words, python=trainer_python)
        assert done.returncode == 0, done.stderr
        return answers(done.stdout)

    given, plain = answered("out", "--system", "no no no no"), answered("out")
    assert given["tuned"] != plain["tuned"]
    assert answered("with-message") == given
    assert answered("with-message", "--system", "") == plain
