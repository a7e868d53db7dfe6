"""What a run that SIGTERM ended leaves in storage for the next one."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from finetune_api.handoff import ENV_POD_NAME, ENV_POD_UID, JobConfig
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.errors import StorageUnavailable
from finetune_trainer.publishing.claim import check_claim
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.training import interrupted_runs

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


class Folder(LocalStore):
    """The output in a folder; nothing else is there."""

    def __init__(self, root: Path) -> None:
        super().__init__({"s3://bucket/out": root / "out"})


def make_config(uid: str = "uid-1") -> JobConfig:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/model"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
            "output": {"uri": "s3://bucket/out"},
        }
    )
    return JobConfig(namespace="team", name="job", uid=uid, config_sha256="c" * 64, spec=spec, attempt=1)


def stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: JobConfig, name: str, step: int = 1) -> None:
    monkeypatch.setenv(ENV_POD_NAME, name)
    monkeypatch.setenv(ENV_POD_UID, f"{name}-uid")
    interrupted_runs.record(config, Folder(tmp_path), BEGAN, step, None)


def test_runs_are_reported_oldest_first_without_those_of_an_earlier_job_of_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, earlier = make_config(), make_config("uid-0")
    stop(tmp_path, monkeypatch, earlier, "old")
    for name, step in [("z", 4), ("a", 9)]:
        stop(tmp_path, monkeypatch, config, name, step)
    runs = interrupted_runs.read(config, Folder(tmp_path))
    assert {(run.pod_uid, run.last_step) for run in runs} == {("z-uid", 4), ("a-uid", 9)}
    assert {run.start_time for run in runs} == {BEGAN}
    assert runs == sorted(runs, key=lambda run: run.end_time)


def test_nothing_is_left_once_the_job_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uid in ("uid-0", "uid-1"):
        stop(tmp_path, monkeypatch, make_config(uid), "pod")
    interrupted_runs.remove(make_config(), Folder(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_is_broken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    stop(tmp_path, monkeypatch, config, "pod")
    Folder(tmp_path).put(f"{config.output_key()}/checkpoints/stopped-runs/uid-1/other.json", b'{"attempt": 1')
    assert [run.pod_name for run in interrupted_runs.read(config, Folder(tmp_path))] == ["pod"]


def test_a_process_outside_a_pod_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_POD_NAME, raising=False)
    interrupted_runs.record(make_config(), Folder(tmp_path), BEGAN, 1, None)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_away_does_not_keep_a_stopped_run_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(Folder):
        def put(self, uri: str, data: bytes) -> None:
            raise StorageUnavailable("no answer")

    monkeypatch.setenv(ENV_POD_NAME, "pod")
    monkeypatch.setenv(ENV_POD_UID, "uid")
    interrupted_runs.record(make_config(), Away(tmp_path), BEGAN, 1, None)
    assert "no answer" in caplog.text


def test_a_run_that_was_stopped_before_its_claim_does_not_keep_the_next_one_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    stop(tmp_path, monkeypatch, config, "one-1")
    assert check_claim(config, Folder(tmp_path)) is False
