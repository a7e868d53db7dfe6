"""The count of attempts that measure in all processes together: a trained result is worth more than its verdict."""

import io
from pathlib import Path

import pytest

from finetune_api.handoff import JobConfig
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.distributed.rank_layout import MEASURING
from finetune_trainer.errors import StorageDenied
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.training import joint_measuring


@pytest.fixture
def run(tmp_path: Path) -> RunContext:
    return make_run(tmp_path)


def make_run(root: Path, backoff_limit: int = 3) -> RunContext:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/model"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
            "output": {"uri": "s3://bucket/out"},
            "backoffLimit": backoff_limit,
        }
    )
    config = JobConfig(namespace="team", name="job", uid="uid-1", config_sha256="c" * 64, spec=spec, attempt=1)
    storage = LocalStore({"s3://bucket/out": root / "out"})
    return RunContext(config, storage, root, Reporter("uid-1", out=io.StringIO()), StopFlag())


@pytest.mark.parametrize(("backoff_limit", "attempts"), [(0, 0), (1, 1), (2, 2), (9, 2)])
def test_it_is_begun_so_often_that_another_attempt_is_left(tmp_path: Path, backoff_limit: int, attempts: int) -> None:
    run = make_run(tmp_path, backoff_limit)
    found = [joint_measuring.begin(run) for _ in range(attempts + 1)]
    assert found[:-1] == [""] * attempts
    assert f"{attempts} attempts ended while all processes measured" in found[-1]
    assert f"with backoffLimit {backoff_limit}" in found[-1]


def test_after_a_measurement_nothing_is_left(run: RunContext) -> None:
    assert joint_measuring.begin(run) == ""
    assert (run.workspace / MEASURING).exists()
    joint_measuring.end(run)
    assert not (run.workspace / MEASURING).exists()
    assert list(run.storage.list("s3://bucket/out")) == []


def test_an_interruption_takes_back_its_own_attempt_and_no_earlier_one(run: RunContext) -> None:
    joint_measuring.begin(run)
    joint_measuring.forget(run.config, run.storage)
    assert list(run.storage.list("s3://bucket/out")) == []
    joint_measuring.begin(run)  # is lost
    joint_measuring.begin(run)
    joint_measuring.forget(run.config, run.storage)
    assert [joint_measuring.begin(run) == "" for _ in range(2)] == [True, False]


def test_what_was_given_up_stays_so_after_an_interruption(run: RunContext) -> None:
    joint_measuring.begin(run)
    joint_measuring.give_up(run)
    joint_measuring.forget(run.config, run.storage)
    assert "an earlier attempt could not measure" in joint_measuring.begin(run)


def test_a_store_that_removes_nothing_costs_a_warning(
    run: RunContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object, uri: str) -> None:
        raise StorageDenied(f"{uri} is denied")

    joint_measuring.begin(run)
    monkeypatch.setattr(LocalStore, "remove", refuse)
    joint_measuring.end(run)
    joint_measuring.forget(run.config, run.storage)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "cannot remove s3",
        "cannot record that the measurement was interrupted",
    ]
