"""Options before and after the command, and output for programs."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubectl_finetune.__main__ import complete
from kubectl_finetune.options import pour

Finetune = Callable[..., Any]
LIST = (200, {"items": [], "metadata": {}})


def test_options_before_the_command_count_unless_it_has_its_own(
    front: Any, finetune: Finetune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.answers["finetunejobs"] = [LIST]
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    before = ("--kubeconfig", str(path), "--context", "lab", "-n", "early")
    assert finetune(*before, "list").err == "no jobs in namespace early\n"
    assert finetune(*before, "list", "-n", "late").err == "no jobs in namespace late\n"
    assert "no context other" in finetune(*before, "list", "--context", "other").err
    assert "no cluster is configured" in finetune(*before, "list", "--kubeconfig", str(tmp_path / "none")).err


@pytest.mark.parametrize("before", [True, False])
def test_names_are_completed_with_the_options_before_and_after_the_command(
    front: Any, job: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, before: bool
) -> None:
    front.answers["finetunejobs"] = [(200, {"items": [job("early").raw], "metadata": {}})]
    given = ("--context", "lab", "-n", "early")
    words = (*given, "describe", "") if before else ("describe", *given, "")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-finetune", *words])
    complete()
    assert capsys.readouterr().out == "early\n:4\n"
    assert "/namespaces/early/" in front.requests[0][1]


def test_json_is_indented_and_keeps_every_letter(front: Any, finetune: Finetune, job: Any) -> None:
    raw = job(message="Größe").raw
    front.answers["one"] = [(200, raw)]
    out = finetune("describe", "one", "-o", "json", "--context", "lab").out
    assert out == json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
    assert "Größe" in out
    assert finetune("describe", "one", "-o", "JSON", "--context", "lab").out == out


@pytest.mark.parametrize(("command", "front_path"), [("describe one", "one"), ("list", "finetunejobs")])
def test_an_object_is_printed_without_managed_fields_as_by_kubectl(
    front: Any, finetune: Finetune, job: Any, command: str, front_path: str
) -> None:
    raw = job().raw
    raw["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    front.answers[front_path] = [(200, raw if front_path == "one" else {"items": [raw], "metadata": {}})]
    out = finetune(*command.split(), "-o", "yaml", "--context", "lab").out
    assert "managedFields" not in out
    assert "resourceVersion" in out


def test_a_pipe_gets_long_lines_whole_and_texts_as_they_are(front: Any, finetune: Finetune, job: Any) -> None:
    message = "[red]a long[/red] :smile: message " * 9
    complete = {"type": "Complete", "status": "True", "reason": "R", "lastTransitionTime": "2026-03-01T12:25:00Z"}
    raw = job(message=message, conditions=[complete | {"message": ""}]).raw
    front.answers = {"one": [(200, raw)], "events": [(200, {"items": []})]}
    for command in ("describe", "progress"):
        assert message.strip() in finetune(command, "one", "--context", "lab").out


def test_a_terminal_without_a_width_gets_the_page_too(
    front: Any, finetune: Finetune, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    front.answers = {"one": [(200, job().raw)], "events": [(200, {"items": []})]}
    assert "Phase:" in finetune("describe", "one", "--context", "lab").out
    assert "one Chat Training" in finetune("lineage", "one", "--context", "lab").out


def test_a_log_is_written_as_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw)))  # type: ignore[arg-type, type-var]

    def chunks() -> Iterator[bytes]:
        yield b"step 1\n"
        assert raw.getvalue() == b"step 1\n"
        yield b"step 2\n"
        assert raw.getvalue() == b"step 1\nstep 2\n"

    pour(chunks())


BAD_NAMES = ("", "a/b", "a?b", "..", "../finetunejobs/one", "One", "a b", "one\n")
READ = ("describe", "progress", "logs", "logs -f", "report", "lineage", "diff one")
TAKE_NAMES = (*READ, "suspend", "resume", "cancel -y")


@pytest.mark.parametrize("command", [*TAKE_NAMES, "diff -- {} one", "suspend one"])
def test_a_name_that_no_job_can_have_is_wrong_use_without_a_request(
    front: Any, finetune: Finetune, command: str
) -> None:
    for name in BAD_NAMES:
        words = command.split()
        given = [name if word == "{}" else word for word in words] if "{}" in words else [*words, name]
        done = finetune("--context", "lab", *given)
        assert (done.code, "cannot be the name of a job\n  lowercase letters" in done.err) == (2, True), (name, done)
    assert front.requests == []


@pytest.mark.parametrize("command", ["list", *(f"{command} two" for command in TAKE_NAMES)])
def test_a_namespace_that_cannot_exist_is_wrong_use_without_a_request(
    front: Any, finetune: Finetune, command: str
) -> None:
    for namespace in ("a/b", "a?b", "..", "A", "a.b", "a" * 64):
        done = finetune("--context", "lab", "-n", namespace, *command.split())
        assert (done.code, "cannot be the name of a namespace\n  at most 63" in done.err) == (2, True), done
    assert front.requests == []


ENDED = [
    {"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-03-01T12:25:00Z"}
    for kind in ("Validated", "Complete")
]
ARTIFACTS = {"uri": "s3://b/out", "reportURI": "s3://b/out/finetune_report.md", "manifestSHA256": "ab" * 32}
WORSE = {"phase": "Succeeded", "conditions": ENDED, "artifacts": ARTIFACTS, "evaluation": {"verdict": "Worse"}}


@pytest.mark.parametrize(
    ("command", "status"),
    [
        *((f"{command} one", WORSE) for command in ("cancel", "suspend", "describe", "report")),
        *(("describe one", {"phase": phase}) for phase in ("Failed", "Training", "Merging", "Preflight")),
        ("describe gone", WORSE),
    ],
)
def test_a_command_in_a_hint_is_for_the_same_cluster(
    front: Any, finetune: Finetune, job: Any, command: str, status: dict[str, Any]
) -> None:
    missing = {"message": "not found", "details": {"name": "gone"}}
    front.answers = {"one": [(200, job(**status).raw)], "gone": [(404, missing)], "events": [(200, {"items": []})]}
    front.answers["finetunejobs"] = [LIST]
    path = Path(os.environ["KUBECONFIG"])
    path = path.rename(path.with_name("of a lab"))
    given = ("--context", "lab", "--kubeconfig", str(path))
    for arguments in ((*given, *command.split()), (*command.split(), *given)):
        done = finetune(*arguments)
        hints = [line for line in (done.out + done.err).splitlines() if "kubectl " in line]
        assert hints
        assert all(f" --context lab --kubeconfig '{path}'" in line for line in hints), hints
