"""Which errors count as GPU memory that is exhausted, and what takes less."""

import pytest

from finetune_api.status import Resolved
from finetune_trainer.errors import is_out_of_memory
from finetune_trainer.training.out_of_memory import save_memory


class OutOfMemoryError(RuntimeError):
    """Like PyTorch's: a RuntimeError."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.50 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("NCCL error in: x.cpp:3, unhandled cuda error. Last error: Cuda failure 2 'out of memory'"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["allocator", "cuBLAS", "cuDNN", "NCCL", "Triton"],
)
def test_a_failed_allocation_of_every_library_is_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("The size of tensor a (4) must match the size of tensor b (5)"),
        MemoryError(),
        ValueError("the column is called out of memory"),
    ],
    ids=["host memory", "illegal access", "shapes", "Python", "another class"],
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_the_cause_of_an_error_counts() -> None:
    error = ValueError("the step failed")
    error.__cause__ = RuntimeError("CUDA error: out of memory")
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    ("settings", "lower"),
    [
        (Resolved(), "lower hyperparameters.maxLength, set"),
        (
            Resolved(max_completion_length=9, num_generations=2),
            "lower hyperparameters.maxLength or rlhf.maxCompletionLength, set",
        ),
        (
            Resolved(max_completion_length=9, shard_teacher=True),
            "lower hyperparameters.maxLength, distillation.maxCompletionLength or "
            "hyperparameters.gradientAccumulationSteps, set",
        ),
    ],
    ids=["Chat", "RLHF", "Distillation, shared out"],
)
def test_what_takes_less_memory_is_named_by_its_fields(settings: Resolved, lower: str) -> None:
    assert save_memory(settings).startswith(lower)


def test_processes_that_share_out_a_full_model_sample_all_answers_of_a_step_at_once() -> None:
    settings = Resolved(method="Full", max_completion_length=9, num_generations=2)
    assert "gradientAccumulationSteps" in save_memory(settings, ranks=2)
    assert "gradientAccumulationSteps" not in save_memory(settings)
