import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from published_result import publish_result
from typer.testing import CliRunner
from waiting import wait_until

from finetune_api.handoff import HANDOFF_VERSION, Artifact, Report
from finetune_trainer.cli import app

SIGTERM_BIT = 1 << (signal.SIGTERM - 1)


Call = Callable[..., "subprocess.CompletedProcess[str]"]


def call(python: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "finetune_trainer", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"COLUMNS": "200"},
        check=False,
    )


@pytest.fixture
def trainer(trainer_python: str) -> Call:
    """Call a command; its libraries are loaded already."""
    return partial(call, trainer_python)


def start(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "NO_PROXY": "127.0.0.1"},
    )


@pytest.fixture
def silent_store() -> Iterator[tuple[str, threading.Event, socket.socket]]:
    """An endpoint that takes connections and says nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    asked = threading.Event()
    held = []

    def accept() -> None:
        try:
            while True:
                held.append(server.accept()[0])
                asked.set()
        except OSError:
            for one in held:
                one.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", asked, server
    server.shutdown(socket.SHUT_RDWR) if server.fileno() >= 0 else None
    server.close()
    thread.join(10)


@pytest.fixture
def config_file(tmp_path: Path, job_config: Any) -> Path:
    path = tmp_path / "config.json"
    path.write_text(job_config().model_dump_json(by_alias=True))
    return path


@pytest.fixture
def termination_log(tmp_path: Path) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    return path


def test_the_help_names_every_command_and_exit_code() -> None:
    text = " ".join(call(sys.executable, "--help").stdout.split())
    for word in (
        "preflight",
        "check-data",
        "estimate",
        "run",
        "chat",
        "merge",
        "verify",
        "75 stopped",
        "77 storage denied",
    ):
        assert word in text


@pytest.mark.parametrize("command", ["preflight", "train", "check-data", "estimate", "run", "chat", "merge", "verify"])
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.stdout


def test_the_handler_is_set_before_anything_heavy_is_loaded() -> None:
    code = (
        "import signal, sys, finetune_trainer.__main__\n"
        "assert callable(signal.getsignal(signal.SIGTERM))\n"
        "print([m for m in ('pydantic', 'typer', 'boto3', 'tokenizers', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.strip() == "[]"


def test_a_signal_while_the_process_loads_ends_in_75(config_file: Path, termination_log: Path, tmp_path: Path) -> None:
    process = start(
        "preflight", "--config", config_file, "--workspace", tmp_path, "--port", 0, "--termination-log", termination_log
    )
    status = Path(f"/proc/{process.pid}/status")
    wait_until(lambda: int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) & SIGTERM_BIT, "the handler")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 75, errors
    report = Report.model_validate_json(termination_log.read_text())
    assert (report.outcome, report.job_uid) == ("Preempted", "uid-1")


def test_a_signal_while_storage_does_not_answer_ends_in_75(
    tmp_path: Path, job_config: Any, termination_log: Path, silent_store: Any
) -> None:
    endpoint, asked, server = silent_store
    config = tmp_path / "config.json"
    config.write_text(job_config({"storage": {"endpoint": endpoint}}).model_dump_json(by_alias=True))
    process = start(
        "preflight", "--config", config, "--workspace", tmp_path, "--port", 0, "--termination-log", termination_log
    )
    assert asked.wait(600)
    process.send_signal(signal.SIGTERM)
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 75, errors
    assert Report.model_validate_json(termination_log.read_text()).reason == "Preempted"


def test_a_config_with_a_wrong_field_ends_in_64_and_echoes_the_job(
    trainer: Call, tmp_path: Path, config_file: Path, termination_log: Path
) -> None:
    content = json.loads(config_file.read_text())
    content["spec"]["hyperparameters"]["learningRate"] = "fast"
    config_file.write_text(json.dumps(content))
    done = trainer("preflight", "--config", config_file, "--port", 0, "--termination-log", termination_log)
    report = Report.model_validate_json(termination_log.read_text())
    assert done.returncode == 64
    assert report.reason == "InvalidConfig"
    assert "config.spec.hyperparameters.learningRate" in report.message
    assert (report.job_uid, report.config_sha256) == ("uid-1", content["configSHA256"])


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"uid": "u"}'])
def test_a_config_that_cannot_be_read_ends_in_64(
    trainer: Call, tmp_path: Path, content: str | None, termination_log: Path
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    done = trainer("preflight", "--config", path, "--port", 0, "--termination-log", termination_log)
    assert done.returncode == 64
    assert Report.model_validate_json(termination_log.read_text()).reason == "InvalidConfig"


def test_training_without_a_preflight_ends_in_64(trainer: Call, config_file: Path) -> None:
    done = trainer("train", "--config", config_file, "--port", 0)
    assert done.returncode == 64
    assert "run preflight first" in done.stderr


def test_an_error_without_a_name_ends_in_70_with_a_traceback(tmp_path: Path, config_file: Path) -> None:
    (tmp_path / "out" / "accepted.jsonl").mkdir(parents=True)
    done = call(sys.executable, "check-data", tmp_path / "absent.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "InternalError: IsADirectoryError" in done.stderr


def test_a_panic_of_a_library_in_rust_ends_in_70_with_a_report(termination_log: Path) -> None:
    """Such a panic is a BaseException and no Exception."""
    program = f"""
import pathlib, finetune_trainer.cli as cli, finetune_trainer.__main__ as process
class PanicException(BaseException): pass
def app(obj):
    obj.termination_log = pathlib.Path({str(termination_log)!r})
    raise PanicException("no entry found for key")
cli.app = app
process.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 70, done.stderr
    report = Report.model_validate_json(termination_log.read_text())
    assert (report.reason, report.message) == ("InternalError", "PanicException: no entry found for key")


def test_a_config_of_a_newer_operator_ends_in_64_and_echoes_the_job(
    trainer: Call, config_file: Path, termination_log: Path
) -> None:
    content = json.loads(config_file.read_text()) | {"handoffVersion": HANDOFF_VERSION + 1}
    config_file.write_text(json.dumps(content))
    done = trainer("preflight", "--config", config_file, "--port", 0, "--termination-log", termination_log)
    assert done.returncode == 64
    report = Report.model_validate_json(termination_log.read_text())
    assert f"handoffVersion {HANDOFF_VERSION + 1}" in report.message
    assert report.job_uid == "uid-1"


def test_checked_data_is_written_and_counted(trainer: Call, tmp_path: Path, rows_file: Path) -> None:
    done = trainer("check-data", rows_file, "--out", tmp_path / "checked")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "checked" / "accepted.jsonl").read_text().splitlines()) == 100
    assert json.loads((tmp_path / "checked" / "summary.json").read_text())["rejectedRows"] == 10
    assert "BAD_JSON" in done.stdout


def test_checked_data_with_a_model_also_counts_what_is_too_long(
    trainer: Call, tmp_path: Path, rows_file: Path, model_folder: Path
) -> None:
    done = trainer(
        "check-data", rows_file, "--out", tmp_path / "checked", "--model", model_folder, "--max-length", 16,
        "--max-rejected-percent", 100,
    )  # fmt: skip
    codes = json.loads((tmp_path / "checked" / "summary.json").read_text())["rejectedRowsByCode"]
    assert codes.get("PROMPT_FILLS_CONTEXT", 0) > 0, done.stderr


def test_too_much_malformed_data_ends_in_65_with_the_files_written(
    trainer: Call, tmp_path: Path, rows_file: Path
) -> None:
    done = trainer("check-data", rows_file, "--out", tmp_path / "checked", "--max-rejected-percent", 5)
    assert done.returncode == 65
    assert "10 of 110 rows are malformed (9.1 %, --max-rejected-percent is 5)" in done.stderr
    assert (tmp_path / "checked" / "rejected.jsonl").exists()


def test_a_missing_data_file_ends_in_65(trainer: Call, tmp_path: Path) -> None:
    done = trainer("check-data", tmp_path / "absent.jsonl", "--out", tmp_path / "checked")
    assert done.returncode == 65
    assert "Traceback" not in done.stderr


def test_verify_proves_a_published_folder_and_finds_what_changed(trainer: Call, tmp_path: Path, world: Any) -> None:
    publish_result(world.config, world.storage, tmp_path)
    good = trainer("verify", world.out)
    assert good.returncode == 0, good.stderr
    assert "5 files match the manifest" in good.stdout
    assert "base s3://bucket/model" in good.stdout
    path = world.out / Artifact.CONFIG
    path.write_text("spec: []\n")
    bad = trainer("verify", world.out, "--json")
    assert bad.returncode == 1
    assert "finetune_config.yaml does not match its SHA-256" in bad.stderr
    assert json.loads(bad.stdout)["ok"] is False


def test_run_names_the_wrong_field_of_a_manifest(trainer: Call, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\nspec: {objective: Poetry}\n"
    )
    done = trainer("run", job, "--output", tmp_path / "out")
    assert done.returncode == 64
    assert "spec.objective" in done.stderr
    assert "spec.model" in done.stderr


def test_no_text_of_a_library_or_of_an_error_forges_a_line_or_controls_a_terminal() -> None:
    program = r"""
import logging, warnings, finetune_trainer.cli as cli, finetune_trainer.__main__ as process
text = "of\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\x9b\u202e"
def app(obj):
    library = logging.getLogger("transformers")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    library.warning("unknown key %s", text)
    warnings.warn(f"unknown module {text}")
    raise ValueError(f"unknown value {text}")
cli.app = app
process.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    shown = r"of\n2026-01-01T00:00:00Z ERROR forged\u001b[2J\u009b\u202e"
    assert done.returncode == 70
    assert f"unknown key {shown}\n" in done.stderr
    assert f"UserWarning: unknown module {shown}\n" in done.stderr
    assert f"InternalError: ValueError: unknown value {shown}\n" in done.stderr
    assert "    Traceback (most recent call last):\n" in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("2026-01-01")] == []
    assert not {"\x1b", "\x9b", "\u202e"} & set(done.stderr)
