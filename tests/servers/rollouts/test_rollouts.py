"""A real vLLM on the CPU samples the answers that a job's model is trained on, in the trainer's process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_bench import THINGS, teach
from s3_servers import S3Server
from tiny_model import make_tiny_model
from trainer_pod import Pod, make_config

from finetune_api.handoff import ExitCode, JobConfig, Report

pytestmark = pytest.mark.timeout(2700)

BUCKET = "rollouts"
HEADS = 2
"""vLLM computes no narrower heads on a CPU."""
ROWS = [{"prompt": f"What is the colour of {THINGS[at % len(THINGS)]}? Question {at}."} for at in range(40)]
HYPERPARAMETERS = {
    "maxSteps": 16,
    "learningRate": 6e-3,
    "lrSchedulerType": "constant",
    "warmupSteps": 0,
    "perDeviceTrainBatchSize": 32,
    "gradientAccumulationSteps": 1,
    "maxLength": 64,
}
STEPS = 4
"""Steps whose mean reward is compared."""


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Rows, and a model that answers them with one of four colours."""
    s3 = s3_server.client()
    s3.create_bucket(Bucket=BUCKET)
    folder = tmp_path_factory.mktemp("models")
    for path in teach(make_tiny_model(folder / "random", heads=HEADS), folder / "taught", steps=60).iterdir():
        s3.upload_file(str(path), BUCKET, f"model/{path.name}")
    s3.put_object(Bucket=BUCKET, Key="rows.jsonl", Body="".join(json.dumps(row) + "\n" for row in ROWS).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
        yield s3


def job(s3_server: S3Server, name: str, **blocks: Any) -> JobConfig:
    defaults: dict[str, Any] = {
        "objective": "RLHF",
        "rlhf": {
            "algorithm": name.upper(),
            "rewards": [{"type": "Regex", "pattern": r"\bred\b"}],
            "numGenerations": 4,
            "maxCompletionLength": 10,
            "rollouts": {"engine": "VLLM"},
        },
        "tuning": {"method": "LoRA"},
        "dataset": {"train": {"uri": f"s3://{BUCKET}/rows.jsonl"}, "validationSplitPercent": 20},
        "hyperparameters": HYPERPARAMETERS,
        "evaluation": {"steps": 8},
        "output": {"uri": f"s3://{BUCKET}/{name}"},
    }
    return make_config(s3_server, BUCKET, **defaults | blocks).model_copy(update={"name": name})


def run(pod: Pod, command: str, code: int = 0) -> Report:
    assert pod.start(command).wait(1200) == code, (pod.directory / "stderr").read_text()[-6000:]
    return pod.report()


def test_an_image_without_vllm_is_refused_before_training(bucket: Any, s3_server: S3Server, tmp_path: Path) -> None:
    refused = run(Pod(job(s3_server, "grpo"), tmp_path), "preflight", ExitCode.INVALID_CONFIG)
    assert "rlhf.rollouts.engine VLLM: this image has no vLLM" in (refused.message or "")


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_policy_learns_from_answers_that_vllm_samples_with_the_weights_of_each_step(
    bucket: Any, s3_server: S3Server, tmp_path: Path, python: str, algorithm: str
) -> None:
    pod = Pod(job(s3_server, algorithm), tmp_path, python)
    checked = run(pod, "preflight")
    assert checked.resolved
    assert checked.resolved.rollouts_gpu_memory_fraction == pytest.approx(0.3)
    pod.config = pod.config.model_copy(update={"resolved": checked.resolved, "dataset": checked.dataset, "attempt": 1})
    metrics = run(pod, "train").metrics
    assert metrics
    text = bucket.get_object(Bucket=BUCKET, Key=f"{algorithm}/metrics.jsonl")["Body"].read().decode()
    rewards = [line["reward"] for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
    assert sum(rewards[-STEPS:]) / STEPS > sum(rewards[:STEPS]) / STEPS + 0.2, rewards
    assert (metrics.eval_reward or 0) > (metrics.baseline_eval_reward or 0)
