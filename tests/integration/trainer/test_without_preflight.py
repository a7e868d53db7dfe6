"""A job without a preflight pod: its trainer makes the same checks at the start of every run."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from published_result import find_result_faults
from tiny_model import make_tiny_model
from trainer_pod import ROWS, SLOW, Pod, make_config

from finetune_api.handoff import Artifact, ExitCode, Outcome
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3


@pytest.fixture
def storage(s3_server: Any, bucket: str, tmp_path: Path, aws_environment: None) -> S3Store:
    """The store, with a model and rows."""
    store = S3Store(connect_s3(s3_server.spec()))
    make_tiny_model(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        store.upload(path, f"s3://{bucket}/model/{path.name}")
    store.put(f"s3://{bucket}/rows.jsonl", ROWS.encode())
    return store


@pytest.fixture
def pod(s3_server: Any, bucket: str, storage: S3Store, tmp_path: Path, trainer_python: str) -> Pod:
    config = make_config(s3_server, bucket, preflight={"enabled": False}, hyperparameters=SLOW)
    return Pod(config.model_copy(update={"attempt": 1}), tmp_path, trainer_python)


def finish(pod: Pod, code: int) -> Any:
    """Run the trainer's pod to its end; its report."""
    process = pod.start("train")
    assert process.wait(600) == code, (pod.directory / "stderr").read_text()
    return pod.report()


@pytest.mark.nightly
def test_a_stopped_run_checks_again_and_resumes_and_a_later_job_adopts_the_result(pod: Pod, storage: S3Store) -> None:
    prefix = pod.config.output_key()
    process = pod.start("train")
    pod.wait_for_step(process, random.randint(2, 40))
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 75, (pod.directory / "stderr").read_text()
    stopped = pod.report()
    assert stopped.checkpoint

    published = finish(pod, 0)
    assert (published.outcome, published.last_step) == (Outcome.PUBLISHED, 60)
    assert published.resumed_from_step == stopped.last_step
    assert published.dataset.accepted_rows == len(ROWS.splitlines())
    summary = storage.sha256(f"{prefix}/{Artifact.DATASET_SUMMARY}")
    assert published.lineage.preflight_sha256 == summary
    assert find_result_faults(prefix, storage) == []
    assert b"The job had **no preflight**" in (storage.read(f"{prefix}/{Artifact.REPORT}") or b"")

    pod.config = pod.config.model_copy(update={"uid": "uid-2"})
    adopted = finish(pod, 0)
    assert (adopted.outcome, adopted.job_uid) == (Outcome.ADOPTED, "uid-2")
    assert adopted.artifacts == published.artifacts


def test_rows_that_changed_between_two_runs_are_not_trained_on(pod: Pod, storage: S3Store, bucket: str) -> None:
    process = pod.start("train")
    pod.wait_for_step(process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 75, (pod.directory / "stderr").read_text()
    storage.put(f"s3://{bucket}/rows.jsonl", ROWS.replace("even", "odd").encode())
    report = finish(pod, ExitCode.OUTPUT_CONFLICT)
    assert "its rows differ" in report.message
    assert storage.read(f"{pod.config.output_key()}/{Artifact.MANIFEST}") is None


@pytest.mark.nightly
def test_rows_that_cannot_be_used_end_the_run_before_it_trains(pod: Pod, storage: S3Store, bucket: str) -> None:
    rows = "".join(json.dumps({"unknown": number}) + "\n" for number in range(9))
    storage.put(f"s3://{bucket}/rows.jsonl", rows.encode())
    report = finish(pod, ExitCode.DATASET_UNUSABLE)
    assert (report.outcome, report.last_step) == (Outcome.FAILED, None)
    assert report.dataset.rejected_rows == 9
    assert storage.read(f"{pod.config.output_key()}/{Artifact.OWNER}") is None
