"""Trackers that are away, slow or wrong: none fails what it is told of, or holds it up."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from trackers import refusing_server, silent_server
from waiting import wait_until

from finetune_api.blocks import SecretRef
from finetune_api.handoff import Outcome, Report
from finetune_api.status import Artifacts
from finetune_api.tracking import MlflowTracking, WandbTracking
from finetune_trainer.errors import Stopped, StorageUnavailable
from finetune_trainer.monitoring.tracking import DrainTimeout, Trackers, track
from finetune_trainer.monitoring.tracking.follower import Follower, Point, RunEnd, TrackerFault
from finetune_trainer.monitoring.tracking.mlflow import MlflowRun
from finetune_trainer.monitoring.tracking.wandb import read_access

LINES = [
    {"kind": "train", "step": 1, "loss": 2.5, "seconds": 0.5},
    {"kind": "train", "step": 2, "loss": 2.0, "seconds": 0.5},
    {"kind": "eval", "step": 2, "loss": 2.25, "tokens": 90},
]


class Recorder:
    """A tracker that takes everything, but for as many tries as are to fail."""

    name = "Recorder"

    def __init__(self, faults: int = 0) -> None:
        self.faults = faults
        self.opened = 0
        self.points: list[Point] = []
        self.closed: tuple[RunEnd, dict[str, str]] | None = None

    def open(self) -> None:
        self.opened += 1
        if self.faults:
            self.faults -= 1
            raise TrackerFault("it is away")

    def settings(self, resolved: Any) -> None:
        pass

    def send(self, points: Any) -> None:
        self.points += points

    def close(self, ending: RunEnd, known: Any) -> None:
        self.closed = (ending, dict(known))

    def abandon(self) -> None:
        pass


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.monitoring.tracking.follower.PAUSE", 0.01)


def end(follower: Follower, ending: RunEnd = RunEnd.FINISHED) -> None:
    follower.ask_to_end(ending)
    assert follower.wait(20)


def test_figures_are_sent_by_kind_and_step_and_then_the_end(world: Any, metrics: Path) -> None:
    run = Recorder()
    follower = Follower(run, metrics, world.reporter)
    follower.start()
    follower.remember({"manifest_sha256": "a"})
    end(follower)
    assert run.points[0] == Point(1, {"train/loss": 2.5, "train/seconds": 0.5})
    assert run.points[2] == Point(2, {"eval/loss": 2.25, "eval/tokens": 90.0})
    assert run.closed == (RunEnd.FINISHED, {"manifest_sha256": "a"})


def test_half_a_line_waits_for_its_other_half(world: Any, metrics: Path) -> None:
    run = Recorder()
    metrics.write_text('{"kind": "train", "step": 1, ')
    follower = Follower(run, metrics, world.reporter)
    follower.start()
    with metrics.open("a") as file:
        file.write('"loss": 1.5}\n')
    end(follower)
    assert run.points == [Point(1, {"train/loss": 1.5})]


def test_a_file_that_is_restarted_is_sent_again(world: Any, metrics: Path) -> None:
    run = Recorder()
    follower = Follower(run, metrics, world.reporter)
    follower.start()
    wait_until(lambda: len(run.points) == 3)
    metrics.write_text('{"kind": "train", "step": 1, "loss": 9.0}\n')
    wait_until(lambda: len(run.points) == 4)
    end(follower)
    assert run.points[3].values == {"train/loss": 9.0}


def test_what_a_tracker_missed_is_sent_later_with_one_warning(
    world: Any, metrics: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = Recorder(faults=3)
    follower = Follower(run, metrics, world.reporter)
    follower.start()
    wait_until(lambda: len(run.points) == 3)
    end(follower)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert b"finetune_trainer_tracker_failures_total 3.0" in world.reporter._prometheus.exposition()
    assert world.reporter.snapshot().progress.note == "Recorder is reachable again"


def mlflow(world: Any, uri: str, secrets: Path) -> MlflowRun:
    return MlflowRun(world.config, MlflowTracking(endpoint=uri, experiment="e"), secrets)


def test_a_server_that_never_answers_holds_up_an_end_no_longer_than_asked(
    world: Any, metrics: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with silent_server() as uri:
        follower = Follower(mlflow(world, uri, tmp_path), metrics, world.reporter)
        follower.start()
        follower.ask_to_end(RunEnd.STOPPED)
        assert not follower.wait(1.0)  # it would go on for its own time limit, which is ten seconds
        follower.abandon()
    assert "the last values were not sent in time" in caplog.text
    assert world.reporter.snapshot().progress.note == "MLflow is incomplete: the last values were not sent in time"


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (500, "returned 500 for experiments/get-by-name"),
        (401, "check tracking.mlflow.credentialsSecretRef"),
        (403, "check tracking.mlflow.credentialsSecretRef"),
        (200, "is not an MLflow tracking server"),
    ],
)
def test_a_refusal_is_reported_with_what_to_check(
    world: Any, metrics: Path, tmp_path: Path, status: int, told: str
) -> None:
    with refusing_server(status) as (uri, _):
        follower = Follower(mlflow(world, uri, tmp_path), metrics, world.reporter)
        follower.start()
        end(follower)
    assert told in (world.reporter.snapshot().progress.note or "")


@pytest.mark.parametrize(
    ("named", "is_mounted", "server"),
    [
        (None, True, "https://api.wandb.ai"),
        (None, False, "https://own.example"),
        ("https://job.example", True, "https://job.example"),
        ("https://job.example", False, "https://job.example"),
    ],
)
def test_a_key_of_wandb_goes_to_the_jobs_server_or_to_that_of_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, is_mounted: bool, server: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "of-the-environment")
    monkeypatch.setenv("WANDB_BASE_URL", "https://own.example")
    if is_mounted:
        (tmp_path / "WANDB_API_KEY").write_text("of-the-secret\n")
    key = "of-the-secret" if is_mounted else "of-the-environment"
    asked = WandbTracking(project="p", endpoint=named, credentials_secret_ref=SecretRef(name="w"))
    assert read_access(asked, tmp_path) == {"WANDB_API_KEY": key, "WANDB_BASE_URL": server}


def test_a_password_is_in_no_log_and_no_note(
    world: Any, metrics: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "MLFLOW_TRACKING_USERNAME").write_text("anna")
    (tmp_path / "MLFLOW_TRACKING_PASSWORD").write_text("hunter2\n")
    with refusing_server(401) as (uri, _):
        follower = Follower(mlflow(world, uri, tmp_path), metrics, world.reporter)
        follower.start()
        end(follower)
    assert "hunter2" not in caplog.text + world.reporter.snapshot().model_dump_json()


@pytest.mark.process
def test_a_stopped_run_leaves_its_trackers_within_seconds(world: Any, metrics: Path) -> None:
    with silent_server() as uri:
        asked = {"mlflow": {"endpoint": uri, "experiment": "e"}, "wandb": {"project": "p", "mode": "Offline"}}
        world.with_config({"tracking": asked})
        places = {"result": metrics.parent, "workspace": world.workspace}
        started: list[float] = []

        def stop() -> None:
            started.append(time.monotonic())
            raise Stopped

        with pytest.raises(Stopped), track(world.config, **places, reporter=world.reporter, stop=world.stop):
            stop()
        assert time.monotonic() - started[0] < DrainTimeout.ENDED


@pytest.mark.parametrize(("is_stopped", "ending"), [(True, RunEnd.STOPPED), (False, RunEnd.FAILED)])
def test_a_store_that_is_away_after_sigterm_is_a_stop_for_trackers_too(
    world: Any, metrics: Path, monkeypatch: pytest.MonkeyPatch, is_stopped: bool, ending: RunEnd
) -> None:
    ended: list[RunEnd] = []
    monkeypatch.setattr(Trackers, "end", lambda _, found: ended.append(found))
    places = {"result": metrics.parent, "workspace": metrics.parent}
    if is_stopped:
        world.stop.set()
    with pytest.raises(StorageUnavailable), track(world.config, **places, reporter=world.reporter, stop=world.stop):
        raise StorageUnavailable("the checkpoint of step 7 cannot be saved")
    assert ended == [ending]


def test_only_the_first_of_several_processes_reports(world: Any, metrics: Path) -> None:
    with refusing_server(500) as (uri, requests):
        world.with_config({"tracking": {"mlflow": {"endpoint": uri, "experiment": "e"}, "tensorboard": True}})
        places = {"result": metrics.parent, "workspace": world.workspace}
        with track(world.config, **places, reporter=world.reporter, stop=world.stop, is_first=False) as trackers:
            trackers.write_files()
    assert requests == []
    assert not (metrics.parent / "tensorboard").exists()


@pytest.mark.parametrize(
    ("outcome", "ending"), [(Outcome.PUBLISHED, RunEnd.FINISHED), (Outcome.GATE_NOT_MET, RunEnd.FAILED)]
)
def test_a_result_that_meets_no_gate_is_a_failed_run_with_its_manifest(
    world: Any, metrics: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, ending: RunEnd
) -> None:
    run = Recorder()
    monkeypatch.setattr("finetune_trainer.monitoring.tracking.MlflowRun", lambda *_: run)
    world.with_config({"tracking": {"mlflow": {"endpoint": "http://mlflow:5000", "experiment": "e"}}})
    places = {"result": metrics.parent, "workspace": world.workspace}
    artifacts = Artifacts(manifest_uri="s3://b/manifest.json", manifest_sha256="ab" * 32)
    report = Report(
        outcome=outcome, reason=outcome.value, message="m", job_uid="u", config_sha256="c", artifacts=artifacts
    )
    with track(world.config, **places, reporter=world.reporter, stop=world.stop) as trackers:
        trackers.record_result(report)
    assert run.closed is not None
    assert (run.closed[0], run.closed[1]["manifest_sha256"]) == (ending, "ab" * 32)
