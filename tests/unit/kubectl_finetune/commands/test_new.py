import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.defaults import Facts, resolve
from finetune_api.manifest.yaml_document import read_documents
from finetune_api.objectives import Objective
from finetune_api.spec import FORMATS, FineTuneJobSpec
from kubectl_finetune.commands import new as prompts

GIVEN = ("--model", "hf://owner/model", "--data", "s3://data/rows/", "--result", "s3://models/out")


@pytest.mark.parametrize("objective", [one.value for one in Objective])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--validation-percent", "0", "--gpus", "0", "--queue", "team-a", "-n", "team", "--endpoint", "http://s3:9000"),
    ],
    ids=["few", "many"],
)
def test_a_starter_of_every_objective_is_valid(
    finetune: Callable[..., Any], objective: str, options: tuple[str, ...]
) -> None:
    written = finetune("new", "first", *GIVEN, "--objective", objective, "-f", "-", *options)
    assert written.code == 0, written.err
    assert yaml.safe_load(written.out)["spec"]["objective"] == objective
    checked = finetune("validate", "-", stdin=written.out)
    assert checked.out == "first is valid\n", checked.out


def test_a_starter_names_the_formats_of_its_objective_and_the_commands_that_come_next(
    finetune: Callable[..., Any],
) -> None:
    lines = finetune("new", "first", *GIVEN, "--objective", "kto", "--method", "qlora", "-f", "-").out.splitlines()
    assert lines[:3] == [
        "# A KTO job. Check it:   kubectl finetune validate first.yaml",
        "#           Start it:   kubectl apply -f first.yaml",
        "#           Follow it:  kubectl finetune progress first",
    ]
    (formats,) = [line for line in lines if "formats:" in line]
    assert formats.partition("formats: ")[2].split(";")[0].split(", ") == FORMATS["KTO"][1:]
    assert "    validationSplitPercent: 10  # held out for evaluation" in lines
    assert any(line.startswith("  earlyStopping: {patience: 3}") for line in lines)
    assert "    method: QLoRA               # QLoRA, LoRA or Full; Auto is QLoRA unless Full fits vramBudget" in lines


def test_the_commands_of_a_starter_name_its_file_and_its_namespace(
    finetune: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "of my team.yaml"
    assert finetune("new", "first", *GIVEN, "-f", str(path), "-n", "team").code == 0
    assert [line.partition("kubectl ")[2] for line in path.read_text().splitlines()[:3]] == [
        f"finetune validate '{path}'",
        f"apply -f '{path}'",
        "finetune progress first -n team",
    ]


def test_a_starter_names_the_endpoint_or_where_to_write_it(finetune: Callable[..., Any]) -> None:
    given = finetune("new", "first", *GIVEN, "--endpoint", "http://s3:9000", "-f", "-").out
    assert "\n    endpoint: http://s3:9000\n" in given
    assert "# endpoint" not in given
    commented = finetune("new", "first", *GIVEN, "-f", "-").out
    (line,) = [line for line in commented.splitlines() if "endpoint:" in line]
    assert line == "    # endpoint: http://minio.minio:9000  # default: that of the operator, else AWS S3"
    plain = commented.replace("    # endpoint:", "    endpoint:")
    assert yaml.safe_load(plain)["spec"]["storage"]["endpoint"] == "http://minio.minio:9000"
    assert finetune("validate", "-", stdin=plain).out == "first is valid\n"


def test_a_starter_without_held_out_rows_has_no_early_stopping(finetune: Callable[..., Any]) -> None:
    for options in (("--objective", "Chat", "--validation-percent", "0"), ("--objective", "RLHF")):
        assert "earlyStopping" not in finetune("new", "first", *GIVEN, *options, "-f", "-").out


def test_a_file_that_cannot_be_written_is_an_error_with_its_reason(
    finetune: Callable[..., Any], tmp_path: Path
) -> None:
    done = finetune("new", "first", *GIVEN, "-f", str(tmp_path / "none" / "job.yaml"))
    reason = (
        "job.yaml cannot be written: No such file or directory\n  choose another folder, or free space on its disk\n"
    )
    assert (done.code, reason in done.err) == (1, True)


def test_a_file_is_written_once_and_again_only_by_force(finetune: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    assert finetune("new", "first", *GIVEN, "-f", str(path)).code == 0
    path.write_text("mine")
    refused = finetune("new", "first", *GIVEN, "-f", str(path))
    assert refused.code == 1
    assert "--force overwrites it" in refused.err
    assert path.read_text() == "mine"
    assert finetune("new", "first", *GIVEN, "-f", str(path), "--force").code == 0
    assert "kind: FineTuneJob" in path.read_text()
    done = finetune("new", "first", *GIVEN, "-f", f"{path}2")
    assert (done.out, done.err) == ("", f"wrote {path}2\ncheck it: kubectl finetune validate {path}2\n")


def test_without_a_terminal_the_missing_options_are_named(finetune: Callable[..., Any]) -> None:
    done = finetune("new", "first", "--model", "hf://owner/model", "-f", "-")
    assert done.code == 2
    assert "missing --data, --result" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--objective", "Chatt"), "did you mean Chat?"),
        (("--method", "Lora8"), "must be one of Auto, QLoRA, LoRA, Full"),
        (("--model", "owner/model"), "must be hf://owner/name, pvc://claim/path, or s3://bucket/path"),
        (("--queue", "Team A"), "spec.scheduling.queueName"),
    ],
)
def test_a_wrong_answer_is_refused_with_the_right_one(
    finetune: Callable[..., Any], options: tuple[str, ...], told: str
) -> None:
    done = finetune("new", "first", *GIVEN, *options, "-f", "-")
    assert done.code == 2
    assert told in done.err


@pytest.mark.parametrize("objective", [one.value for one in Objective])
def test_a_starter_for_several_gpus_is_valid(finetune: Callable[..., Any], objective: str) -> None:
    written = finetune("new", "first", *GIVEN, "--objective", objective, "--gpus", "2", "-f", "-")
    assert written.code == 0, written.err
    assert yaml.safe_load(written.out)["spec"]["tuning"]["method"] == "Auto"
    assert finetune("validate", "-", stdin=written.out).out == "first is valid\n"


def test_without_a_method_another_wrong_answer_is_refused_as_ever(finetune: Callable[..., Any]) -> None:
    done = finetune("new", "first", *GIVEN, "--objective", "DPO", "--gpus", "2", "--queue", "Team A", "-f", "-")
    assert (done.code, "spec.scheduling.queueName" in done.err) == (2, True)


def test_a_wrong_answer_that_resembles_none_has_no_suggestion(finetune: Callable[..., Any]) -> None:
    done = finetune("new", "first", *GIVEN, "--method", "zzz", "-f", "-")
    assert done.err == "error: --method zzz: must be one of Auto, QLoRA, LoRA, Full\n"


@pytest.mark.parametrize("name", ["123", "1e3", "on", "null", "a.b"])
def test_a_name_that_yaml_would_read_as_something_else_is_quoted(finetune: Callable[..., Any], name: str) -> None:
    written = finetune("new", name, *GIVEN, "-f", "-")
    assert finetune("validate", "-", stdin=written.out).out == f"{name} is valid\n"


def test_at_a_terminal_what_is_missing_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("kto\ns3://data/rows/\n"))
    given = {"objective": None, "model": "hf://owner/model", "data": None, "result": "s3://models/out"}
    answers = prompts.ask(given)
    assert (answers["objective"], answers["data"]) == ("KTO", "s3://data/rows/")
    assert "Rows to train on" in capsys.readouterr().err


@pytest.mark.parametrize("objective", [one.value for one in Objective])
@pytest.mark.parametrize("method", ["Auto", "QLoRA", "LoRA", "Full"])
def test_a_setting_that_is_uncommented_has_the_value_that_the_job_has_without_it(
    finetune: Callable[..., Any], objective: str, method: str
) -> None:
    options = ("--objective", objective, "--method", method, "-f", "-")
    commented = finetune("new", "first", *GIVEN, *options).out
    plain = re.sub(r"^    # (\w+: [\d.e-]+ )", r"    \1", commented, flags=re.MULTILINE)
    hyper = yaml.safe_load(plain)["spec"]["hyperparameters"]
    assert set(hyper) == {"maxLength", "numTrainEpochs", "learningRate"}
    assert finetune("validate", "-", stdin=plain).out == "first is valid\n"
    facts = Facts(parameters=1_000_000_000, train_rows=1000, validation_rows=0)
    left, right = (
        resolve(FineTuneJobSpec.model_validate(read_documents(text)[0].value["spec"]), facts)
        for text in (plain, commented)
    )
    assert left == right
