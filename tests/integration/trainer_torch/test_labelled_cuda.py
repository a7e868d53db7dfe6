"""The trainer on a device that is named CUDA and computes on the CPU, with CUDA's checks of its arguments."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_cuda import environment
from labelled_jobs import OBJECTIVES, losses

SCRIPT = Path(__file__).parents[2] / "fixtures" / "labelled_jobs.py"
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler"),
]


def run(folder: Path, *names: str, devices: int = 1, capability: int = 90) -> dict[str, Any]:
    (folder / "runtime").mkdir()
    command = [sys.executable, str(SCRIPT), str(folder), *names]
    variables = environment(folder / "runtime", devices) | {
        "LABELLED_CUDA_CAPABILITY": str(capability),
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # as in the image
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_job_is_trained_on_the_device_with_the_values_of_the_cpu(tmp_path: Path) -> None:
    found = run(tmp_path, "refusals", "losses", "Instruction, LoRA")
    refused = found["refusals"]
    places = [refused.pop(name) for name in ("sum of two devices", "joined", "mask of the CPU", "values of the CPU")]
    assert all("at least two devices, cpu, cuda:0" in one for one in places), places
    assert refused.pop("memory") == "out of memory"
    assert [name for name, error in refused.items() if error == "none"] == []
    (tmp_path / "cpu").mkdir()
    assert found["losses"] == pytest.approx(losses(tmp_path / "cpu", "cpu"), rel=1e-6)
    job = found["Instruction, LoRA"]
    assert job | {"peak": 0} == {
        "outcome": "Published", "precision": "BF16", "attention": "FlashAttention", "optim": "adamw_torch_fused",
        "peak": 0,
    }  # fmt: skip
    assert job["peak"] > 1_000_000


@pytest.mark.nightly
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "Full"])
def test_every_objective_is_trained_on_the_device(tmp_path: Path, objective: str, method: str) -> None:
    name = f"{objective}, {method}"
    found = run(tmp_path, name)[name]
    assert isinstance(found, dict), found
    assert (found["outcome"], found["precision"]) == ("Published", "BF16")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["Instruction, LoRA", "DPO, LoRA", "Instruction, QLoRA", "RLHF, Full"])
def test_a_gpu_without_bf16_trains_in_fp16(tmp_path: Path, name: str) -> None:
    found = run(tmp_path, name, capability=75)[name]
    assert isinstance(found, dict), found
    assert (found["outcome"], found["precision"], found["attention"]) == ("Published", "FP16", "SDPA")


@pytest.mark.nightly
def test_a_micro_batch_that_the_allocator_refuses_is_halved(tmp_path: Path) -> None:
    first, second = run(tmp_path, "smaller_batches")["smaller_batches"]
    assert first == 4
    assert second in {4, 8, 16}


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["compared_devices", "shared_devices"])
def test_two_processes_train_on_two_devices_as_one_does(tmp_path: Path, name: str) -> None:
    found = run(tmp_path, name, devices=2)[name]
    assert isinstance(found, dict), found
    assert found
    assert {name: measured for name, measured in found.items() if measured != "met"} == {}
