"""Recognise the errors by which the libraries report that the GPU's memory is exhausted; name what takes less."""

from finetune_api.status import Resolved

# What cuBLAS, cuDNN, and CUDA (also below NCCL and Triton) write. bitsandbytes raises nothing: it ends the process.
PHRASES = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory", "cudaErrorMemoryAllocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error, or one that it was raised from, is a failed allocation on the GPU.

    A failed allocation of host memory is not: a smaller micro-batch may not help, and the kernel's limit is another.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and any(phrase in str(seen) for phrase in PHRASES):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def save_memory(settings: Resolved) -> str:
    """Return the settings that take less memory than these, which even the smallest micro-batch exhausts."""
    lower = ["hyperparameters.maxLength"]
    if settings.max_completion_length:
        block = "rlhf" if settings.num_generations else "distillation"
        lower.append(f"{block}.maxCompletionLength")
        if settings.shard_base or settings.shard_teacher:  # answers of a step are sampled all at once
            lower.append("hyperparameters.gradientAccumulationSteps")
    *others, last = lower
    named = f"{', '.join(others)} or {last}" if others else last
    return f"lower {named}, set tuning.method QLoRA or gradientCheckpointing true, or use a larger GPU"
