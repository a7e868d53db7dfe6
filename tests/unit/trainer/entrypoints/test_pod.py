"""The configuration that a pod reads is the one that the operator wrote."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ENV_CONFIG_SHA256, ExitCode
from finetune_trainer.entrypoints.pod import read_config
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import TrainerError
from finetune_trainer.sigterm import StopFlag


@pytest.fixture
def written(tmp_path: Path, job_config: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mounted file, and its digest in the pod's environment."""
    path = tmp_path / "config.json"
    path.write_text(job_config().model_dump_json(by_alias=True), encoding="utf-8")
    monkeypatch.setenv(ENV_CONFIG_SHA256, hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_operators_configuration_is_read(written: Path) -> None:
    assert read_config(written, RunState(StopFlag())).name


def test_a_configuration_of_another_client_is_refused_with_both_digests(written: Path) -> None:
    expected = hashlib.sha256(written.read_bytes()).hexdigest()
    written.write_text(written.read_text(encoding="utf-8").replace("s3://bucket", "s3://other"), encoding="utf-8")
    with pytest.raises(TrainerError) as refused:
        read_config(written, RunState(StopFlag()))
    assert refused.value.code is ExitCode.INVALID_CONFIG
    assert hashlib.sha256(written.read_bytes()).hexdigest() in refused.value.message
    assert expected in refused.value.message


def test_an_older_operator_gives_no_digest(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_CONFIG_SHA256)
    assert read_config(written, RunState(StopFlag())).name
