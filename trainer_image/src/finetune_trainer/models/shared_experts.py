"""Stacks of experts that processes share out in 16 bits: FSDP gives each whole experts, as `torch.chunk` does.

A process that gets none cannot load them, and the others hold more than the memory estimate has. QLoRA shares the
numbers of a stack out, whichever expert they are of.
"""

from finetune_api.status import Resolved
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.memory.shape import ModelShape


def refuse_few_experts(settings: Resolved, shape: ModelShape | None, ranks: int) -> None:
    """Refuse to share out a model or a teacher of whose experts a process would get none."""
    if shape is None:
        return
    is_full = settings.method == "Full"
    if is_full or (settings.method == "LoRA" and settings.shard_base):
        _refuse(shape, ranks, "tuning.method QLoRA" if is_full else "tuning.method QLoRA, or no tuning.lora.shardBase")
    if settings.shard_teacher and shape.teacher:
        _refuse(shape.teacher, ranks, "a teacher with more experts, or no distillation.shardTeacher")


def _refuse(shape: ModelShape, ranks: int, other: str) -> None:
    if problem := find_few_experts(shape, ranks):
        divisors = (size for size in range(ranks - 1, 0, -1) if ranks % size == 0)
        fewer = next(size for size in divisors if not find_few_experts(shape, size))
        gpus = f"{fewer} GPUs together" if fewer > 1 else "one GPU"
        raise InvalidConfig(f"{problem}: set resources.numNodes and resources.gpusPerNode to {gpus}, or use {other}")


def find_few_experts(shape: ModelShape, ranks: int) -> str:
    """Return why so many processes cannot share the experts out; empty if they can."""
    for stacks in shape.stacks.values():
        for experts, _, _ in stacks:
            if -(-experts // ranks) * (ranks - 1) >= experts:
                return f"{ranks} GPUs cannot share out the {experts} experts of a layer, because some would get none"
    return ""
