"""`kubectl finetune import`: what it prints, writes and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import blocks

FILE = """\
base_model: acme/base-1b
hf_token: hf_abcdefghijklmnop
datasets:
  - path: ./rows.jsonl
    type: chat_template
output_dir: ./outputs/out
adapter: lora
lora_r: 512
lora_alpha: 16
lora_target_linear: true
sequence_len: 2048
learning_rate: 2e-4
group_by_length: true
logging_steps: 1
sequence_length: 1024
warmup_ratio: 0.03
"""
GIVEN = ("--data", "s3://data/rows.jsonl", "--result", "s3://models/out")
Finetune = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write FILE."""
    path = tmp_path / "My_QLoRA.yml"
    path.write_text(FILE)
    return path


def test_the_manifest_is_printed_and_the_rest_is_a_table_on_stderr(finetune: Finetune, path: Path) -> None:
    done = finetune("import", str(path), *GIVEN)
    job = yaml.safe_load(done.out)
    assert (job["kind"], job["metadata"]) == ("FineTuneJob", {"name": "my-qlora"})
    assert job["spec"]["dataset"]["train"]["uri"] == "s3://data/rows.jsonl"
    assert job["spec"]["hyperparameters"]["learningRate"] == 0.0002
    lines = [" ".join(line.split()) for line in done.err.splitlines()]
    assert lines[:5] == [
        "not carried, changes the training:",
        "LINE KEY VALUE WHY, AND WHAT TO DO",
        "13 group_by_length true rows are not ordered by their length",
        "15 sequence_length 1024 this key is not known; did you mean sequence_len?",
        "not carried, without effect on the training:",
    ]
    assert "14 logging_steps 1 every step is logged" in lines


def test_a_problem_of_the_manifest_names_line_and_key_of_the_file(finetune: Finetune, path: Path) -> None:
    done = finetune("import", str(path), *GIVEN)
    assert done.code == 1
    assert f"{path}:8: lora_r: spec.tuning.lora.rank must be at most 256\n    value: 512\n" in done.err
    path.write_text(FILE.replace("512", "64"))
    assert finetune("import", str(path), *GIVEN).code == 0


def test_a_local_path_is_a_placeholder_that_validation_refuses_with_what_to_do(finetune: Finetune, path: Path) -> None:
    path.write_text(FILE.replace("512", "64"))
    done = finetune("import", str(path))
    assert done.code == 0
    rows = [" ".join(line.split()) for line in done.err.partition("to fill in before it can run:\n")[2].splitlines()]
    assert rows == [
        "FIELD KEY VALUE WHAT TO DO",
        "spec.dataset.train.uri datasets[0].path ./rows.jsonl use --data",
        "spec.output.uri output_dir ./outputs/out use --result",
    ]
    checked = finetune("validate", "-", stdin=done.out)
    assert checked.code == 1
    assert (
        "value: fill-in:./rows.jsonl\n"
        "    fix: this is a placeholder: replace it by the URI of ./rows.jsonl, which no pod can read\n"
    ) in checked.out


def test_a_secret_is_neither_printed_nor_copied(finetune: Finetune, path: Path) -> None:
    for extra in ("", "wandb_api_key: 0123456789abcdef\n", "mlflow_tracking_uri: http://me:pa55@mlflow:5000\n"
                  "mlflow_experiment_name: bots\n", "wandb_project: hf_zyxwvutsrqponm\n"):  # fmt: skip
        path.write_text(FILE.replace("acme/base-1b", "https://me:pa55@models/base") + extra)
        for form in ((), ("-o", "json"), ("-o", "yaml")):
            done = finetune("import", str(path), *form)
            for secret in ("hf_abcdef", "0123456789abcdef", "pa55", "hf_zyxw"):
                assert secret not in done.out + done.err, (extra, form)
    assert "(hidden)" in done.out


@pytest.mark.parametrize(
    "name", ["neptune_api_token", "mlflow_tracking_token", "AWS_SESSION_TOKEN", "bot_token", "bearer", "passphrase"]
)
def test_a_token_of_another_service_is_not_printed(finetune: Finetune, path: Path, name: str) -> None:
    path.write_text(f"{path.read_text()}{name}: mine\nenv: {{{name}: mine}}\npad_token: <pad>\n")
    done = finetune("import", str(path))
    assert "mine" not in done.out + done.err
    assert "<pad>" in done.err


def test_programs_get_everything_as_json(finetune: Finetune, path: Path) -> None:
    found = json.loads(finetune("import", str(path), "-o", "json").out)
    assert list(found) == ["format", "manifest", "problems", "fillIn", "notCarried", "refused"]
    assert found["format"] == "axolotl"
    assert [one["key"] for one in found["notCarried"] if one["changesTraining"]] == [
        "group_by_length",
        "sequence_length",
    ]
    assert [one["field"] for one in found["fillIn"]] == ["spec.dataset.train.uri", "spec.output.uri"]
    assert [one["field"] for one in found["problems"]] == ["lora_r: spec.tuning.lora.rank"]


def test_strict_prints_no_manifest_if_the_training_would_be_another_one(finetune: Finetune, path: Path) -> None:
    path.write_text(FILE.replace("512", "64"))
    done = finetune("import", str(path), *GIVEN, "--strict")
    assert (done.code, done.out) == (1, "")
    assert "error: --strict, and the training would be another one" in done.err
    path.write_text(
        FILE.replace("512", "64").replace("group_by_length: true\n", "").replace("sequence_length: 1024\n", "")
    )
    assert finetune("import", str(path), *GIVEN, "--strict").code == 0


def test_a_file_is_written_once_and_again_only_by_force(finetune: Finetune, path: Path, tmp_path: Path) -> None:
    path.write_text(FILE.replace("512", "64"))
    target = tmp_path / "job.yaml"
    done = finetune("import", str(path), *GIVEN, "--name", "bot", "-f", str(target))
    assert (done.code, done.out) == (0, "")
    assert finetune("validate", str(target)).out == "bot is valid\n"
    assert "--force overwrites it" in finetune("import", str(path), "-f", str(target)).err
    assert finetune("import", str(path), *GIVEN, "-f", str(target), "--force").code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_model: !!python/name:os.system x\n", "the tag !!python/name:os.system is not allowed"),
        ("base_model: {{ MODEL }}\n", "is not YAML"),
        ("a: [\n", "is not YAML"),
        ("- a\n", "is not one YAML or JSON object"),
        ("a: 1\n---\nb: 2\n", "is not one YAML or JSON object"),
        ("a: 1\n", "is of no known format: its keys are a"),
        ("kind: FineTuneJob\napiVersion: finetune.dev/v1alpha1\n", "is a manifest of Kubernetes"),
        ("distributed_type: FSDP\nnum_processes: 8\n", "is a configuration of accelerate"),
        ("a: &a [*a, *a]\n", "nested more than 100 deep"),
    ],
)
def test_a_file_that_is_not_a_training_file_is_an_error_with_what_it_is(
    finetune: Finetune, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    done = finetune("import", str(path))
    assert (done.code in {1, 2}, done.out) == (True, "")
    assert message in done.err


def test_a_template_is_refused_with_its_key(finetune: Finetune, path: Path) -> None:
    path.write_text(FILE.replace("acme/base-1b", '"{{ base }}"') + "chat_template_jinja: '{% for m in messages %}'\n")
    done = finetune("import", str(path))
    assert (done.code, done.out) == (1, "")
    assert (
        "1 base_model {{ base }} the value is a template, which is not filled in; write the value itself"
        in " ".join(done.err.split())
    )
    assert "chat_template_jinja" not in done.err.partition("not carried")[0]


def test_a_misspelt_format_is_named_with_the_one_that_is_meant(finetune: Finetune, path: Path) -> None:
    done = finetune("import", str(path), "--from", "axolot")
    assert (done.code, "did you mean axolotl?" in done.err) == (2, True)


def test_a_training_file_is_read_from_stdin(finetune: Finetune) -> None:
    done = finetune("import", "-", "--from", "axolotl", *GIVEN, stdin=FILE.replace("512", "64"))
    assert (done.code, yaml.safe_load(done.out)["metadata"]["name"]) == (0, "stdin")


def test_the_documentation_shows_what_is_printed(
    finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, shown = (block.text for block in blocks() if block.document == "docs/import.md")
    command, _, output = shown.partition("\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qlora.yml").write_text(file)
    done = finetune(*command.removeprefix("$ kubectl finetune ").split())
    assert (done.code, done.err + done.out) == (0, output)
