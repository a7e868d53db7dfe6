"""What the options of the commands accept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api import __version__

Finetune = Callable[..., Any]
GIVEN = ("--model", "hf://owner/model", "--data", "s3://data/rows/", "--result", "s3://models/out", "-f", "-")


def test_the_version_is_printed_alone(finetune: Finetune) -> None:
    done = finetune("--version")
    assert (done.code, done.out, done.err) == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(("option", "lowest", "highest"), [("--gpus", 0, 16), ("--validation-percent", 0, 50)])
def test_a_number_within_its_limits_is_accepted_and_one_outside_is_wrong_use(
    finetune: Finetune, option: str, lowest: int, highest: int
) -> None:
    codes = [finetune("new", "one", *GIVEN, option, str(n)).code for n in (lowest - 1, lowest, highest, highest + 1)]
    assert codes == [2, 0, 0, 2]


def test_a_rank_a_tail_or_an_interval_below_its_limit_is_wrong_use(finetune: Finetune, front: Any, job: Any) -> None:
    front.answers = {"one": [(200, job().raw)], "pods": [(200, {"items": []})]}
    for option in ("--rank", "--tail"):
        assert [finetune("logs", "one", option, n, "--context", "lab").code for n in ("-1", "0")] == [2, 3]
    assert finetune("progress", "one", "--interval", "0.09", "--context", "lab").code == 2


def test_a_starter_has_one_gpu_and_the_usual_secret_unless_asked_otherwise(finetune: Finetune) -> None:
    text = finetune("new", "one", *GIVEN).out
    assert "gpusPerNode: 1\n" in text
    assert "credentialsSecretRef: {name: s3-credentials}\n" in text
    assert "namespace:" not in text
    assert "\n  namespace: team\n" in finetune("-n", "team", "new", "one", *GIVEN).out
    assert "\n  namespace: other\n" in finetune("-n", "team", "new", "one", "-n", "other", *GIVEN).out


def test_a_question_and_a_note_go_to_stderr_so_that_a_pipe_gets_the_result_alone(
    finetune: Finetune, front: Any, job: Any
) -> None:
    front.answers["one"] = [(200, job().raw)]
    done = finetune("cancel", "one", "--context", "lab", stdin="n\n")
    assert (done.out.strip(), "Cancel one" in done.err) == ("one not cancelled", True)


@pytest.mark.parametrize(
    ("command", "page"),
    [
        ("list", "Training"),
        ("describe one", "Phase:"),
        ("lineage one", "base model: hf://owner/model\n"),
        ("diff one two", "no difference"),
    ],
)
def test_a_command_prints_a_page_for_people_and_an_object_for_programs(
    finetune: Finetune, front: Any, job: Any, command: str, page: str
) -> None:
    one, two = job().raw, job("two").raw
    front.answers = {"one": [(200, one)], "two": [(200, two)], "events": [(200, {"items": []})]}
    front.answers["finetunejobs"] = [(200, {"items": [one], "metadata": {}})]
    assert page in finetune(*command.split(), "--context", "lab").out
    assert isinstance(json.loads(finetune(*command.split(), "-o", "json", "--context", "lab").out), dict)


@pytest.mark.parametrize("command", ["validate", "report one --save", "validate {job} --rows rows.jsonl --rows-out"])
def test_a_path_that_no_file_system_takes_is_an_error_without_a_traceback(
    finetune: Finetune, front: Any, job: Any, tmp_path: Path, command: str
) -> None:
    artifacts = {"uri": "s3://b/out", "reportURI": "s3://b/out/finetune_report.md", "manifestSHA256": "ab" * 32}
    front.answers["one"] = [(200, job(artifacts=artifacts).raw)]
    path = tmp_path / "job.yaml"
    path.write_text(finetune("new", "one", *GIVEN).out)
    words = [str(path) if word == "{job}" else word for word in command.split()]
    done = finetune("--context", "lab", *words, "kind: FineTuneJob " * 20)
    assert (done.code, "Traceback" in done.err) == (1 if command == "validate" else 2, False), done.err
    assert "File name too long" in done.err
