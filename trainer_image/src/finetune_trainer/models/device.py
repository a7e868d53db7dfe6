"""The device that trains: whether the requested GPUs can compute, and what is chosen by the device."""

import logging
import os
import re
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_api.handoff import ExitCode, JobConfig
from finetune_api.spec import Mode, Precision
from finetune_api.status import Resolved
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.memory.optimisers import default_optimiser, needs_gpu

logger = logging.getLogger(__name__)

DRIVER_FILE = Path("/proc/driver/nvidia/version")
OLDEST_DRIVERS = {"12": 525, "13": 580}
"""Oldest Linux driver branch by the major version of CUDA (table 3 of the CUDA Toolkit's release notes)."""


@dataclass(frozen=True)
class GpuFacts:
    """What is known of a pod whose GPUs PyTorch cannot use."""

    wheel_cuda: str | None
    """CUDA version that PyTorch is built for."""
    driver: str | None
    """Version of the kernel driver."""
    devices: tuple[str, ...]
    """Device files of GPUs."""
    visible: str | None
    """CUDA_VISIBLE_DEVICES, if it is set."""


def require_gpus(config: JobConfig) -> None:
    """Raise a TrainerError with exit code 72 unless every requested GPU can compute with this image's PyTorch."""
    requested = config.spec.resources.gpus_per_node
    if not requested:
        return
    if config.simulated_gpus and not torch.cuda.is_available():
        logger.warning("no GPU is available: training on the CPU, although resources.gpusPerNode is %d", requested)
        return
    if not torch.cuda.is_available():
        raise _unusable(requested, explain_missing_gpus(_read_facts()))
    present = torch.cuda.device_count()
    if present < requested and not config.simulated_gpus:
        found = f"the pod has {present} GPUs"
        raise _unusable(requested, f"{found}: check resources.gpuResourceName and CUDA_VISIBLE_DEVICES")
    kernels = torch.cuda.get_arch_list()
    for index in range(min(requested, present)):
        capability = torch.cuda.get_device_capability(index)
        if not has_kernels(capability, kernels):
            raise _unusable(requested, explain_missing_kernels(torch.cuda.get_device_name(index), capability, kernels))


def explain_missing_gpus(facts: GpuFacts) -> str:
    """Return why PyTorch has no GPU, and the fix."""
    if facts.wheel_cuda is None:
        return "this image's PyTorch is built without CUDA: use the trainer image of the operator's version"
    oldest = OLDEST_DRIVERS.get(facts.wheel_cuda.partition(".")[0])
    if facts.driver and oldest and int(facts.driver.partition(".")[0]) < oldest:
        return (
            f"the node's driver {facts.driver} is too old for CUDA {facts.wheel_cuda}: update it to {oldest} or later"
        )
    if not facts.devices:
        return (
            "the pod has no GPU device file (/dev/nvidia0): check that the node's container runtime is NVIDIA's "
            "(scheduling.runtimeClassName) and that resources.gpuResourceName is of its device plugin"
        )
    visible = "" if facts.visible is None else f", CUDA_VISIBLE_DEVICES {facts.visible!r}"
    return (
        f"driver {facts.driver or 'unknown'}, PyTorch's CUDA {facts.wheel_cuda}, devices {', '.join(facts.devices)}"
        f"{visible}: run nvidia-smi on the node, and check the driver and its GPUs"
    )


def explain_missing_kernels(name: str, capability: tuple[int, int], kernels: Iterable[str]) -> str:
    """Return that a GPU is older or newer than what PyTorch was compiled for, and the fix."""
    return (
        f"{name} has compute capability {capability[0]}.{capability[1]}, and this image's PyTorch has kernels for "
        f"{', '.join(kernels)}: choose other GPUs by scheduling.nodeSelector"
    )


def has_kernels(capability: tuple[int, int], kernels: Iterable[str]) -> bool:
    """Return whether compiled kernels (`sm_90`) or PTX (`compute_90`) run on a GPU of that compute capability.

    A kernel runs on later minor versions of its major version, PTX on every later version (CUDA's programming guide).
    """
    for kernel in kernels:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)(a?)f?", kernel)
        if not found or (found[4] and (int(found[2]), int(found[3])) != capability):
            continue
        built = int(found[2]), int(found[3])
        if built <= capability and (found[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def _read_facts() -> GpuFacts:
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    version = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    devices = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
    return GpuFacts(torch.version.cuda, version and version[1], tuple(devices), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _unusable(requested: int, cause: str) -> TrainerError:
    return TrainerError(ExitCode.GPU_UNUSABLE, f"resources.gpusPerNode is {requested}, but {cause}")


def find_device(world: World = ALONE) -> torch.device:
    """Return the GPU (with several, the process's own), else the CPU."""
    if world.size > 1 and torch.cuda.is_available():
        return torch.device("cuda", world.local_rank)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_device(device: torch.device) -> tuple[str, int | None]:
    """Return the device's name and, for a GPU, its memory in bytes."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads != 1 else ''}", None
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.total_memory


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated GPU memory; without a GPU, of the process's resident memory."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated(device)


def complete_settings(resolved: Resolved, device: torch.device) -> Resolved:
    """Return the settings with those that depend on the device: number format and optimiser."""
    if resolved.mode == Mode.EVALUATE:
        return resolved.model_copy(update={"precision": _precision(resolved.precision, device)})
    optim = resolved.optim or default_optimiser(resolved.method, has_gpu=device.type == "cuda").value
    if device.type == "cpu" and needs_gpu(optim):
        raise InvalidConfig(f"optim {optim} needs a GPU: set adamw_torch_fused, or request a GPU")
    return resolved.model_copy(update={"precision": _precision(resolved.precision, device), "optim": optim})


def set_tf32(precision: str | None, device: torch.device) -> None:
    """Let the GPU compute what stays in FP32 in TF32, or no longer; a job that sets precision FP32 gets FP32.

    transformers switches it on and never off, and a process may train again with another number format.
    """
    if device.type == "cuda":
        is_used = choose_tf32(precision, torch.cuda.get_device_capability(device))
        torch.backends.fp32_precision = "tf32" if is_used else "ieee"  # type: ignore[attr-defined]  # set by torch


def choose_tf32(precision: str | None, capability: tuple[int, int]) -> bool:
    """Return whether TF32 is used, by the job's number format and the GPU's compute capability."""
    return capability >= (8, 0) and precision != Precision.FP32


def reset_peak(device: torch.device) -> None:
    """Measure the peak of GPU memory from now on: that of an earlier training, or of a micro-batch that did not fit,
    is not this one's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _precision(asked: str | None, device: torch.device) -> str:
    """Return the number format: FP32 on a CPU, because only some have BF16 and results must not depend on the node."""
    if device.type == "cpu":
        if asked == Precision.FP16:
            raise InvalidConfig("precision FP16 needs a GPU: set Auto, BF16 or FP32")
        return Precision.FP32 if asked in (None, Precision.AUTO) else str(asked)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if asked in (None, Precision.AUTO):
        return Precision.BF16 if has_bf16 else Precision.FP16
    if asked == Precision.BF16 and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise InvalidConfig(f"{name} has no BF16: set precision to Auto, FP16 or FP32")
    return str(asked)
