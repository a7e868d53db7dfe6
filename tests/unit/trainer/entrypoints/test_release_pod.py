"""How the pod of a release ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from released_results import publish_result, release_config
from typer.testing import CliRunner

from finetune_api.handoff import ExitCode
from finetune_trainer import cli
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.release import release
from finetune_trainer.release.vllm_server import ServerAwayError, ServerLostError
from finetune_trainer.sigterm import StopFlag

TARGET = {"vllm": {"url": "http://server", "adapterName": "bot", "volume": {"claimName": "a", "path": "/a"}}}


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> tuple[int, dict[str, Any]]:
    """Return exit code and report of a pod whose release ends with that error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(release, "release", fail)
    config, log = tmp_path / "config.json", tmp_path / "log"
    result = release_config(publish_result(tmp_path / "result", "s3://bucket/result"), TARGET)
    config.write_text(result.model_dump_json(by_alias=True, exclude_none=True))
    log.touch()
    arguments = ["release", "--config", str(config), "--termination-log", str(log)]
    ended = CliRunner().invoke(cli.app, arguments, obj=RunState(StopFlag()))
    return ended.exit_code, json.loads(log.read_text())


@pytest.mark.parametrize(
    ("error", "code"),
    [(ServerAwayError, ExitCode.PREEMPTED), (ServerLostError, ExitCode.STORAGE_UNAVAILABLE)],
)
def test_only_a_server_that_was_lost_counts_against_the_backoff_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[ServerLostError], code: ExitCode
) -> None:
    ended, written = run(tmp_path, monkeypatch, error("http://server: Connection refused"))
    assert (ended, written["outcome"]) == (code, "Failed")
    assert written["message"] == "http://server: Connection refused; what answered before keeps the name"


def test_an_error_of_the_pods_own_files_is_reported_with_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(28, "No space left on device", "/workspace/validation.jsonl")
    code, written = run(tmp_path, monkeypatch, error)
    assert (code, written["outcome"]) == (ExitCode.STORAGE_UNAVAILABLE, "Failed")
    assert written["message"] == "/workspace/validation.jsonl of the release's pod: No space left on device"
