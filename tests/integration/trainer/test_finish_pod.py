"""Two processes train and end; a pod of its own merges and publishes, also if it is killed on the way."""

import signal
from pathlib import Path
from typing import Any

import pytest
from published_result import find_result_faults
from tiny_model import make_tiny_model
from trainer_pod import ROWS, Pod, checked, make_config
from waiting import wait_until

from finetune_api.handoff import Artifact, ExitCode, Outcome
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def pod(s3_server: Any, bucket: str, tmp_path: Path, aws_environment: None, trainer_python: str) -> Pod:
    storage = S3Store(connect_s3(s3_server.spec()))
    make_tiny_model(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        storage.upload(path, f"s3://{bucket}/model/{path.name}")
    storage.put(f"s3://{bucket}/rows.jsonl", ROWS.encode())
    config = make_config(
        s3_server,
        bucket,
        hyperparameters={"maxSteps": 2, "maxLength": 64, "gradientAccumulationSteps": 1},
        output={"uri": f"s3://{bucket}/out", "merge": "FP32"},
        resources={"gpusPerNode": 2},
    )
    return checked(config, tmp_path, trainer_python)


def run(pod: Pod, command: str) -> int:
    return pod.start(command).wait(900)


def is_merging(pod: Pod) -> bool:
    """Whether the pod that was started last merges; the one before may still serve its progress."""
    seen = pod.progress()
    return seen is not None and seen.pod_uid == f"pod-{pod.started}-uid" and seen.progress.stage == "Merging"


def errors(pod: Pod) -> str:
    return (pod.directory / "stderr").read_text()


@pytest.mark.nightly
def test_a_merge_that_is_killed_is_repeated_and_nothing_is_trained_again(pod: Pod, s3_server: Any) -> None:
    storage, prefix = S3Store(connect_s3(s3_server.spec())), pod.config.output_key()
    pod.config = pod.config.model_copy(update={"separate_merge": True})
    assert run(pod, "train") == 0, errors(pod)
    trained = pod.report()
    assert (trained.outcome, trained.last_step) == (Outcome.TRAINED, 2)
    assert trained.checkpoint
    assert storage.read(f"{prefix}/{Artifact.MANIFEST}") is None

    process = pod.start("finish")
    wait_until(lambda: is_merging(pod), "it merges")
    seen = pod.progress()
    assert seen
    assert (seen.progress.step, seen.progress.percent) == (2, 100)
    process.kill()
    process.wait()

    process = pod.start("finish")
    wait_until(lambda: is_merging(pod), "it merges")
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == ExitCode.PREEMPTED, errors(pod)
    assert (pod.report().outcome, pod.report().last_step) == (Outcome.PREEMPTED, 2)

    # The trainer's report can be lost: the next one finds what was stored, before it loads anything.
    assert run(pod, "train") == 0, errors(pod)
    again = pod.report()
    assert (again.outcome, again.checkpoint) == (Outcome.TRAINED, trained.checkpoint)

    assert run(pod, "finish") == 0, errors(pod)
    published = pod.report()
    assert (published.outcome, published.last_step) == (Outcome.PUBLISHED, 2)
    assert published.evaluation
    assert published.evaluation.merge_gate == "Passed"
    assert find_result_faults(prefix, storage) == []
    assert storage.list(f"{prefix}/{Artifact.CHECKPOINTS}") == []

    assert run(pod, "finish") == 0, errors(pod)
    assert pod.report().artifacts == published.artifacts
