"""Name the settings that take less GPU memory."""

from finetune_api.spec import Method
from finetune_api.status import Resolved


def save_memory(settings: Resolved, ranks: int = 1) -> str:
    """Return the settings that take less memory than these, which even the smallest micro-batch exhausts."""
    lower = ["hyperparameters.maxLength"]
    if settings.max_completion_length:
        block = "rlhf" if settings.num_generations else "distillation"
        lower.append(f"{block}.maxCompletionLength")
        is_sharded = settings.method == Method.FULL and ranks > 1
        if is_sharded or settings.shard_base or settings.shard_teacher:  # answers of a step are sampled all at once
            lower.append("hyperparameters.gradientAccumulationSteps")
    *others, last = lower
    named = f"{', '.join(others)} or {last}" if others else last
    return f"lower {named}, set tuning.method QLoRA or gradientCheckpointing true, or use a larger GPU"
