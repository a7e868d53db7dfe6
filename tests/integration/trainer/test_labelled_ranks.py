"""Several processes, each on a GPU of its own, which is named CUDA and computes on the CPU; see labelled_cuda.py."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_cuda import environment
from preloaded import preloaded_python
from published_result import find_result_faults
from rank_jobs import Job, checkpoint_step, figures, make_job, slowly, weights
from training_bench import HYPERPARAMETERS

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("aws_environment"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler"),
]
WITHOUT_TRITON = """
import sys

if kernels := sys.modules.get("trl.kernels.chunked_logprob"):
    kernels._TRITON_AVAILABLE = False
"""


@dataclass
class Gpus:
    """A machine with two GPUs: the trainer's Python on it, and the environment of its processes."""

    python: str
    environment: dict[str, str]

    def slow(self, folder: Path) -> dict[str, str]:
        """Return the environment of processes whose steps take long."""
        first = slowly(folder)["PYTHONPATH"].partition(os.pathsep)[0]
        return self.environment | {"PYTHONPATH": os.pathsep.join([first, self.environment["PYTHONPATH"]])}


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpus]:
    folder = tmp_path_factory.mktemp("gpus")
    (folder / "sitecustomize.py").write_text(WITHOUT_TRITON)
    # As in the image.
    own = environment(folder, 2) | {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "OMP_NUM_THREADS": "1"}
    with preloaded_python(tmp_path_factory.mktemp("preloaded"), own) as python:
        yield Gpus(python, own)


def with_dropout(server: Any, bucket: str, root: Path, python: str) -> Job:
    tuning = {"method": "LoRA", "lora": {"dropout": 0.3}}
    hyper = HYPERPARAMETERS | {"packing": "Never", "maxSteps": 8}
    return make_job(server, bucket, root, "LoRA", python, tuning=tuning, hyperparameters=hyper)


ONE_GPU = {"LABELLED_CUDA_DEVICES": "1"}
PLACES: dict[str, tuple[dict[str, int], dict[str, str]]] = {
    "one-pod": ({"gpus": 2}, {}),
    "two-pods": ({"nodes": 2}, ONE_GPU),
}


@pytest.mark.parametrize(("first", "then"), [("one-pod", "two-pods"), ("two-pods", "one-pod")])
def test_processes_that_resume_on_gpus_of_other_numbers_end_as_if_they_had_not_been_stopped(
    s3_server: Any, tmp_path: Path, gpus: Gpus, first: str, then: str
) -> None:
    """They have dropout, whose numbers each GPU draws."""
    place, variables = PLACES[first]
    whole = with_dropout(s3_server, f"gpus-whole-{first}", tmp_path, gpus.python)
    attempt = whole.start("whole", **place, environment=gpus.environment | variables)
    assert set(attempt.codes()) == {0}, attempt.errors()

    job = with_dropout(s3_server, f"gpus-{first}", tmp_path, gpus.python)
    attempt = job.start("stopped", **place, environment=gpus.slow(tmp_path) | variables)
    attempt.wait_for_step(2)
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert set(attempt.codes()) == {75}, attempt.errors()
    step = attempt.report().last_step
    place, variables = PLACES[then]
    attempt = job.start("last", **place, environment=gpus.environment | variables)
    assert set(attempt.codes()) == {0}, attempt.errors()
    assert attempt.report().resumed_from_step == step
    assert find_result_faults(job.config.output_key(), job.storage) == []
    assert [line.get("loss") for line in figures(job)] == [line.get("loss") for line in figures(whole)]
    found, expected = weights(job), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


REWARDED = {"numGenerations": 8, "maxCompletionLength": 6, "rewards": [{"type": "Regex", "pattern": "[a-e]"}]}
TAUGHT = {"teacher": {"uri": "s3://TEACHER"}, "maxCompletionLength": 6}
JOBS: dict[str, dict[str, Any]] = {
    "Instruction, QLoRA": {"tuning": {"method": "QLoRA", "lora": {"shardBase": True}}},
    "Instruction, Full": {},
    "DPO, LoRA": {"tuning": {"method": "LoRA", "lora": {"dropout": 0, "shardBase": True}}},
    "DPO, Full": {},
    "KTO, QLoRA": {},
    "KTO, Full": {},
    "RewardModel, LoRA": {},
    "RewardModel, Full": {},
    "RLHF, LoRA": {"rlhf": REWARDED},
    "RLHF, Full": {"rlhf": REWARDED | {"beta": 0.1}},
    "Distillation, QLoRA": {"distillation": TAUGHT | {"shardTeacher": True}},
    "Distillation, Full": {"distillation": TAUGHT},
}
"""What a job has in addition to its objective and method."""


@pytest.mark.parametrize("precision", ["BF16", "FP16"])
@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_stopped_on_two_gpus_and_ends_on_one_or_the_other_way_round(
    s3_server: Any, tmp_path: Path, gpus: Gpus, name: str, precision: str
) -> None:
    """In BF16 it starts on two, in FP16 on one."""
    objective, method = name.split(", ")
    bucket = f"gpus-{objective}-{method}-{precision}".lower()
    hyper = HYPERPARAMETERS | {"packing": "Never", "maxSteps": 5, "precision": precision}
    own = {"evaluation": {"steps": 5, "maxNewTokens": 4}, "resources": {"gpusPerNode": 2}, "hyperparameters": hyper}
    blocks = json.loads(json.dumps(own | JOBS[name]).replace("TEACHER", f"{bucket}/teacher"))
    job = make_job(s3_server, bucket, tmp_path, method, gpus.python, **blocks | {"objective": objective})
    (tmp_path / "contexts").mkdir()
    noted = {"LABELLED_CUDA_CONTEXTS": str(tmp_path / "contexts")}
    first, then = (2, 1) if precision == "BF16" else (1, 2)
    attempt = job.start("stopped", gpus=first, environment=gpus.slow(tmp_path) | noted)
    attempt.wait_for_step(2)
    attempt.processes[0].send_signal(signal.SIGTERM)
    assert attempt.codes() == [75], attempt.errors()
    step = attempt.report().last_step
    assert step == checkpoint_step(job)

    attempt = job.start("last", gpus=then, environment=gpus.environment | noted)
    assert attempt.codes() == [0], attempt.errors()
    last = attempt.report()
    assert last.resumed_from_step == step
    assert last.resolved
    assert last.resolved.precision == precision
    assert [line["step"] for line in figures(job) if line["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert find_result_faults(job.config.output_key(), job.storage) == []
    assert "not measured" not in attempt.errors()
    alone, both = {"process-none-device-0"}, {"process-0-device-0", "process-1-device-1"}
    assert {one.name for one in (tmp_path / "contexts").iterdir()} == alone | both
