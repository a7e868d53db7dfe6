"""How the pod of a release ends."""

import json
from pathlib import Path

import pytest
from released_results import publish_result, release_config
from typer.testing import CliRunner

from finetune_api.handoff import ExitCode
from finetune_trainer import cli
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.pipeline import release
from finetune_trainer.serving.vllm import ServerAwayError, ServerLostError
from finetune_trainer.sigterm import StopFlag

TARGET = {"vllm": {"url": "http://server", "adapterName": "bot", "volume": {"claimName": "a", "path": "/a"}}}


@pytest.mark.parametrize(
    ("error", "code"),
    [(ServerAwayError, ExitCode.PREEMPTED), (ServerLostError, ExitCode.STORAGE_UNAVAILABLE)],
)
def test_only_a_server_that_was_lost_counts_against_the_backoff_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[ServerLostError], code: ExitCode
) -> None:
    def lose(*_: object) -> None:
        raise error("http://server: Connection refused")

    monkeypatch.setattr(release, "release", lose)
    config, log = tmp_path / "config.json", tmp_path / "log"
    result = release_config(publish_result(tmp_path / "result", "s3://bucket/result"), TARGET)
    config.write_text(result.model_dump_json(by_alias=True, exclude_none=True))
    log.touch()
    arguments = ["release", "--config", str(config), "--termination-log", str(log)]
    ended = CliRunner().invoke(cli.app, arguments, obj=RunState(StopFlag()))
    assert ended.exit_code == code, ended.output
    written = json.loads(log.read_text())
    assert written["outcome"] == "Failed"
    assert written["message"] == "http://server: Connection refused; what answered before keeps the name"
