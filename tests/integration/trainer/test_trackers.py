"""Runs in a real MLflow server and real W&B files, over several attempts of one job."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked_job import job, lines, reporter
from trackers import Mlflow, refusing_server, silent_server
from waiting import wait_until

from finetune_api.tracking import MlflowTracking, WandbTracking
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.monitoring.tracking.follower import Follower, RunEnd
from finetune_trainer.monitoring.tracking.mlflow import MlflowRun
from finetune_trainer.monitoring.tracking.wandb import WandbRun


def follow(run: Any, path: Path, ending: RunEnd, known: dict[str, str] | None = None) -> Reporter:
    """One attempt, from its start to its end."""
    told = reporter()
    follower = Follower(run, path, told)
    follower.start()
    follower.remember(known or {})
    follower.ask_to_end(ending)
    assert follower.wait(600)
    return told


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mlflow(server: Mlflow, tmp_path: Path) -> Callable[[str], MlflowRun]:
    def make(uid: str) -> MlflowRun:
        return MlflowRun(job(uid), MlflowTracking(endpoint=server.uri, experiment=uid, run_name="mine"), tmp_path)

    return make


@pytest.mark.nightly
def test_mlflow_has_figures_settings_and_where_it_all_is(
    server: Mlflow, mlflow: Callable[[str], MlflowRun], tmp_path: Path
) -> None:
    (tmp_path / "m").write_text(lines(range(1, 4)))
    told = follow(mlflow("one"), tmp_path / "m", RunEnd.FINISHED, {"manifest_sha256": "f" * 64})
    assert told.snapshot().progress.note is None
    (run,) = server.runs("one")
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "mine")
    assert server.history(run, "train/loss") == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert {one["key"]: one["value"] for one in run["data"]["params"]}["learningRate"] == "0.0001"
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    assert tags["finetune.job_uid"] == "one"
    assert tags["finetune.manifest_sha256"] == "f" * 64
    assert tags["finetune.base_model"] == "s3://bucket/model"


@pytest.mark.nightly
def test_a_later_attempt_resumes_the_run_and_sends_no_step_twice(
    server: Mlflow, mlflow: Callable[[str], MlflowRun], tmp_path: Path
) -> None:
    (tmp_path / "m").write_text(lines(range(1, 4)))
    follow(mlflow("two"), tmp_path / "m", RunEnd.STOPPED)
    assert [run["info"]["status"] for run in server.runs("two")] == ["SCHEDULED"]
    (tmp_path / "m").write_text(lines(range(1, 6)))
    follow(mlflow("two"), tmp_path / "m", RunEnd.FAILED)
    (run,) = server.runs("two")
    assert run["info"]["status"] == "FAILED"
    assert [step for step, _ in server.history(run, "train/loss")] == [1, 2, 3, 4, 5]


@pytest.mark.nightly
def test_what_was_trained_while_mlflow_was_down_is_sent_when_it_is_back(
    server: Mlflow, mlflow: Callable[[str], MlflowRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.monitoring.tracking.follower.PAUSE", 0.1)
    told, path = reporter(), tmp_path / "m"
    path.write_text(lines(range(1, 3)))
    follower = Follower(mlflow("three"), path, told)
    follower.start()
    wait_until(lambda: bool(server.runs("three")) and len(server.history(server.runs("three")[0], "train/loss")) == 2)
    server.stop()
    with path.open("a") as file:
        file.write(lines(range(3, 6)))
    wait_until(lambda: "is unreachable" in (told.snapshot().progress.note or ""))
    server.start()
    wait_until(lambda: told.snapshot().progress.note == "MLflow is reachable again")
    follower.ask_to_end(RunEnd.FINISHED)
    assert follower.wait(600)
    (run,) = server.runs("three")
    assert [step for step, _ in server.history(run, "train/loss")] == [1, 2, 3, 4, 5]


def test_the_authority_of_mlflow_is_that_of_its_own_secret(
    certificates: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.monitoring.tracking.follower.PAUSE", 0.1)
    authority, certificate, key = certificates
    (tmp_path / "m").write_text(lines(range(1, 2)))
    secrets, authorities = tmp_path / "credentials", tmp_path / "authority"
    secrets.mkdir()
    authorities.mkdir()
    (secrets / "ca.crt").write_bytes(authority.read_bytes())  # of another Secret
    with refusing_server(403, tls=(certificate, key)) as (uri, asked):
        run = MlflowRun(job("four"), MlflowTracking(endpoint=uri, experiment="e"), secrets, authorities)
        told = reporter()
        follower = Follower(run, tmp_path / "m", told)
        follower.start()
        wait_until(lambda: "is unreachable (ConnectError)" in (told.snapshot().progress.note or ""))
        assert asked == []
        (authorities / "ca.crt").write_bytes(authority.read_bytes())
        wait_until(lambda: bool(asked))
        follower.ask_to_end(RunEnd.STOPPED)
        assert follower.wait(600)


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a file of less than one block: after seven bytes each has checksum, length, type and content."""
    assert data[:4] == b":W&B"
    at = 7
    while at + 7 <= min(len(data), 32768):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        yield data[at + 7 : at + 7 + length]
        at += 7 + length


def test_an_offline_run_of_wandb_is_a_file_that_its_reader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)  # after a training in this process it cannot be imported
    from wandb.proto.wandb_internal_pb2 import Record

    (tmp_path / "m").write_text(lines(range(1, 4)))
    asked = WandbTracking(project="p", entity="team", mode="Offline")
    run = WandbRun(job("uid-1"), asked, tmp_path / "wandb", tmp_path)
    assert follow(run, tmp_path / "m", RunEnd.FINISHED).snapshot().progress.note is None
    run.collect(tmp_path / "published")
    (file,) = (tmp_path / "published").rglob("*.wandb")
    assert file.parent.name.startswith("offline-run-")
    losses, owners = {}, set()
    for data in records_of(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if "train/loss" in values:
            losses[record.history.step.num] = float(values["train/loss"])
        owners |= {(record.run.entity, record.run.project)} if record.HasField("run") else set()
    assert losses == {1: 9.0, 2: 8.0, 3: 7.0}
    assert owners == {("team", "p")}


def test_the_authority_of_wandb_is_that_of_its_own_secret(
    certificates: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.monitoring.tracking.follower.PAUSE", 0.1)
    authority, certificate, key = certificates
    (tmp_path / "m").write_text(lines(range(1, 2)))
    (tmp_path / "WANDB_API_KEY").write_text("k" * 40)
    authorities = tmp_path / "authority"
    authorities.mkdir()
    with refusing_server(401, tls=(certificate, key)) as (uri, asked):
        server = WandbTracking(project="p", endpoint=uri, credentials_secret_ref={"name": "w"})
        told = reporter()
        follower = Follower(
            WandbRun(job("uid-5"), server, tmp_path / "wandb", tmp_path, authorities), tmp_path / "m", told
        )
        follower.start()
        wait_until(lambda: "did not create the run" in (told.snapshot().progress.note or ""))
        assert asked == []
        (authorities / "ca.crt").write_bytes(authority.read_bytes())
        wait_until(lambda: bool(asked))
        follower.ask_to_end(RunEnd.STOPPED)
        follower.wait(2.0)
        follower.abandon()
        assert follower.wait(10)


@pytest.mark.parametrize("key", [None, "k" * 40])
def test_wandb_without_a_key_or_an_answer_fails_nothing(tmp_path: Path, key: str | None) -> None:
    (tmp_path / "m").write_text(lines(range(1, 4)))
    if key:
        (tmp_path / "WANDB_API_KEY").write_text(key)
    with silent_server() as uri:
        asked = WandbTracking(project="p", endpoint=uri, credentials_secret_ref={"name": "w"})
        run, told = WandbRun(job("uid-2"), asked, tmp_path / "wandb", tmp_path), reporter()
        follower = Follower(run, tmp_path / "m", told)
        follower.start()
        if key:
            wait_until(lambda: run._process is not None)
        follower.ask_to_end(RunEnd.STOPPED)
        follower.wait(2.0)
        follower.abandon()
        assert follower.wait(10)
    note = told.snapshot().progress.note or ""
    assert "W&B" in note
    assert (key or "WANDB_API_KEY") not in note or key is None
