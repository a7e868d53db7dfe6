"""Whether the requested GPUs can compute, decided before anything is downloaded."""

import re
from pathlib import Path

import pytest
import torch
from trainer_bench import make_trainer
from training_bench import make_spec
from transformers import TrainingArguments

from finetune_api.handoff import ExitCode, JobConfig, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import device
from finetune_trainer.models.device import (
    GpuFacts,
    choose_tf32,
    explain_missing_gpus,
    explain_missing_kernels,
    has_kernels,
    set_tf32,
)

WHEEL = torch._C._cuda_getArchFlags().split()
"""The kernels of the pinned PyTorch, which it names without a GPU too."""

DOCUMENT = Path(__file__).parents[3] / "docs" / "gpu-drivers.md"

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.mark.parametrize(
    ("capability", "kernels", "supported"),
    [
        ((8, 0), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((7, 0), WHEEL, False),
        ((6, 1), WHEEL, False),
        ((10, 3), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, False),
        ((13, 0), ["sm_120", "compute_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((8, 0), ["sm_86", "gfx90a"], False),
    ],
)
def test_kernels_run_on_later_minor_versions_and_ptx_on_every_later_version(
    capability: tuple[int, int], kernels: list[str], supported: bool
) -> None:
    assert has_kernels(capability, kernels) is supported


def test_the_documented_cards_are_those_of_the_pinned_wheel() -> None:
    table = re.findall(r"^\| [^|]+ \| (\d+)\.(\d) \| ([^|]+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(table) > 8
    for major, minor, precision in table:
        assert has_kernels((int(major), int(minor)), WHEEL) is (precision != "none"), (major, minor)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (GpuFacts(None, None, (), None), ["built without CUDA"]),
        (GpuFacts("13.0", "550.54.15", ("/dev/nvidia0",), None), ["550.54.15 is too old", "CUDA 13.0", "580 or later"]),
        (GpuFacts("13.0", None, (), None), ["no GPU device file", "scheduling.runtimeClassName", "gpuResourceName"]),
        (
            GpuFacts("13.0", "580.65.06", ("/dev/nvidia3",), ""),
            ["driver 580.65.06", "CUDA 13.0", "devices /dev/nvidia3", "CUDA_VISIBLE_DEVICES ''", "nvidia-smi"],
        ),
    ],
    ids=["no CUDA in the image", "old driver", "no device", "driver and device"],
)
def test_a_missing_gpu_is_explained_with_what_was_found_and_the_fix(facts: GpuFacts, words: list[str]) -> None:
    message = explain_missing_gpus(facts)
    assert [word for word in words if word not in message] == []


def test_a_card_without_kernels_is_named_with_those_that_the_image_has() -> None:
    message = explain_missing_kernels("Tesla V100", (7, 0), WHEEL)
    assert message.startswith("Tesla V100 has compute capability 7.0, and this image's PyTorch has kernels for sm_75,")


@needs_no_gpu
def test_a_job_with_gpus_does_not_train_on_the_cpu() -> None:
    with pytest.raises(TrainerError, match=r"resources\.gpusPerNode is 1, but the pod has no GPU") as caught:
        device.require_gpus(_config())
    assert caught.value.code is ExitCode.GPU_UNUSABLE


@needs_no_gpu
def test_only_simulated_gpus_may_be_missing() -> None:
    device.require_gpus(_config(simulated_gpus=True))


def test_a_job_without_gpus_needs_none() -> None:
    device.require_gpus(_config(resources={"gpusPerNode": 0}))


def _config(*, simulated_gpus: bool = False, **blocks: object) -> JobConfig:
    spec = FineTuneJobSpec.model_validate(make_spec(**blocks))
    return JobConfig(
        namespace="team",
        name="job",
        uid="u-1",
        config_sha256=config_sha256(spec),
        spec=spec,
        simulated_gpus=simulated_gpus,
    )


@pytest.mark.parametrize(
    ("precision", "capability", "is_used"),
    [
        ("BF16", (8, 0), True),
        ("FP16", (9, 0), True),
        ("BF16", (12, 0), True),
        ("FP16", (7, 5), False),
        ("FP32", (9, 0), False),
    ],
)
def test_what_stays_in_fp32_is_computed_in_tf32_where_the_gpu_has_it_unless_the_job_requests_fp32(
    precision: str, capability: tuple[int, int], is_used: bool
) -> None:
    assert choose_tf32(precision, capability) is is_used


def test_a_job_in_fp32_after_one_in_bf16_in_the_same_process_is_not_computed_in_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends, "fp32_precision", torch.backends.fp32_precision)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    found = []
    for precision in ("BF16", "FP32", "BF16"):
        set_tf32(precision, torch.device("cuda"))
        found.append(torch.backends.fp32_precision)
    assert found == ["tf32", "ieee", "tf32"]


@pytest.mark.parametrize("objective", ["Instruction", "DPO", "KTO", "RewardModel", "RLHF", "Distillation"])
def test_a_process_that_sees_two_gpus_trains_on_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    complete = TrainingArguments.__post_init__

    def see_two(arguments: TrainingArguments) -> None:
        complete(arguments)
        _ = arguments.device
        arguments._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", see_two)
    assert make_trainer(objective, tiny_model, tmp_path).args.n_gpu == 1
