"""The process as it starts: quick, and with an exit code for each kind of failure."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubectl_finetune.errors import ExitCode

HEAVY = ("kubernetes", "torch", "rich", "yaml", "jsonschema", "boto3")
LOOK = """
import sys
sys.argv = ["kubectl-finetune", *sys.argv[1:]]
from kubectl_finetune.__main__ import main
try:
    main()
except SystemExit:
    pass
print("loaded:", *(name for name in {heavy} if name in sys.modules))
"""

BUG = """
import sys
from kubectl_finetune import __main__ as process
from finetune_client.cluster import client
text = sys.argv.pop()
def fail(*_):
    raise ValueError(text)
client.open_cluster = fail
process.main()
"""


@pytest.mark.parametrize("arguments", [("--help",), ("list", "--help"), ("--version",)])
@pytest.mark.process
def test_help_and_version_load_no_client_and_nothing_heavy(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", LOOK.format(heavy=HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.process
def test_the_client_is_imported_without_kopf_training_or_storage() -> None:
    heavy = ("kopf", "torch", "boto3", "rich", "typer", "transformers")
    code = f"import sys; from finetune_client import FineTuneClient; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.process
def test_a_manifest_is_checked_without_the_client(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: FineTuneJob\n")
    command = [sys.executable, "-c", LOOK.format(heavy=("kubernetes", "torch")), "validate", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.process
def test_a_command_whose_output_nothing_reads_any_more_ends_without_a_traceback(
    front: Any, job: Callable[..., Any]
) -> None:
    seen = [job().raw | {"metadata": job().raw["metadata"] | {"resourceVersion": str(one)}} for one in range(600)]
    front.answers["one"] = [(200, one) for one in seen]
    command = [sys.executable, "-m", "kubectl_finetune", "progress", "one", "--context", "lab", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "Training 42%" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_command_that_is_interrupted_ends_with_130(
    front: Any, finetune: Callable[..., Any], job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    front.answers["one"] = [(200, job().raw)]
    monkeypatch.setattr("time.sleep", interrupt)
    done = finetune("progress", "one", "--context", "lab")
    assert (done.code, done.err) == (130, "")


def test_a_full_disk_is_an_error_without_a_traceback(
    finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kubectl_finetune.commands.validate.read_files", write)
    done = finetune("validate", "job.yaml")
    assert (done.code, done.err.splitlines()[0]) == (1, f"error: {os.strerror(errno.ENOSPC)}")


def test_every_command_has_help_with_an_example(finetune: Callable[..., Any]) -> None:
    commands = [
        line.split()[0]
        for line in finetune("--help").out.split("Commands:")[1].split("Exit codes")[0].splitlines()
        if line.startswith("  ") and line[2:3].strip()
    ]
    assert len(commands) >= 12
    for command in commands:
        assert f"kubectl finetune {command}" in finetune(command, "--help").out


def test_no_cluster_has_its_own_exit_code(
    finetune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = finetune("list")
    assert done.code == 5
    assert "no cluster is configured" in done.err
    path = tmp_path / "away"
    path.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: away\n"
        "contexts: [{name: away, context: {cluster: c, user: u, namespace: team}}]\n"
        "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:9'}}]\nusers: [{name: u, user: {token: t}}]\n"
    )
    done = finetune("list", "--kubeconfig", str(path))
    assert done.code == 5
    assert "is unreachable at https://127.0.0.1:9" in done.err
    done = finetune("list", "--kubeconfig", str(path), "--context", "other")
    assert (done.code, "it has away" in done.err) == (2, True)


def test_help_names_every_exit_code_of_the_plugin(finetune: Callable[..., Any]) -> None:
    text = " ".join(finetune("--help").out.split())
    for code in ExitCode:
        assert f"{code.value} {code.meaning}" in text


@pytest.mark.process
def test_an_unexpected_error_prints_its_traceback_without_what_a_terminal_interprets() -> None:
    command = [sys.executable, "-c", BUG, "list", "\x1b[2J\u202eforged"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.splitlines()[-1] == "ValueError: \\u001b[2J\\u202eforged"


END = [
    {"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-03-01T12:25:00Z"}
    for kind in ("Validated", "Complete")
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("report one --save {file}", ExitCode.USAGE, "error: --save {file} cannot be made: {file} is a file"),
        (
            "report one --save {file}/below",
            ExitCode.USAGE,
            "error: --save {file}/below cannot be made: {file} is a file",
        ),
        ("validate -", ExitCode.FAILED, "error: stdin is not a text in UTF-8\n  convert it to UTF-8"),
        ("import -", ExitCode.FAILED, "error: stdin is not a text in UTF-8\n  convert it to UTF-8"),
        ("describe one", ExitCode.DONE, ""),
        ("describe page", ExitCode.UNREACHABLE, "error: the cluster's address answers with something else"),
        ("describe list", ExitCode.UNREACHABLE, "error: the cluster's address answers with something else"),
    ],
)
@pytest.mark.process
def test_what_a_user_or_a_gateway_can_cause_has_its_exit_code_and_no_traceback(
    front: Any, job: Callable[..., Any], arguments: str, code: ExitCode, message: str
) -> None:
    file = os.environ["KUBECONFIG"]
    better = {"verdict": "Better", "metric": "Loss", "before": 2.0, "after": 1.0}
    artifacts = {"uri": "s3://b/out", "reportURI": "s3://b/out/finetune_report.md", "manifestSHA256": "ab" * 32}
    done_job = job(phase="Succeeded", conditions=END, artifacts=artifacts, evaluation=better)
    front.answers = {"one": [(200, done_job.raw)], "events": [(200, {"items": []})]}
    front.answers |= {"page": [(200, b"<html>Log in</html>")], "list": [(200, b"[]")]}
    words = [word.replace("{file}", file) for word in arguments.split()]
    command = [sys.executable, "-m", "kubectl_finetune", "--context", "lab", *words]
    own = {
        "PYTHONIOENCODING": "cp1252:strict",
        "PYTHONUTF8": "0",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    done = subprocess.run(command, input=b"a: \xff\x81\n", capture_output=True, check=False, env=os.environ | own)
    told = done.stderr.decode()
    assert (done.returncode, "Traceback" in told) == (code, False), told
    assert message.replace("{file}", file) in told
    assert ("2 → 1" in done.stdout.decode("utf-8")) == (code is ExitCode.DONE)
