"""Which numbers of processes can share out the experts of a mixture; nothing is loaded."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from model_shapes import LLAMA_8B, shape_of

from finetune_api.handoff import ExitCode
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.memory.shape import ModelShape, with_teacher
from finetune_trainer.models.shared_experts import find_few_experts, refuse_few_experts

LLAMA = shape_of(LLAMA_8B)


def mixture(experts: int) -> ModelShape:
    """The shape of a mixture whose files have a matrix for each expert."""
    names = ("gate_proj", "up_proj", "down_proj")
    one = {f"model.layers.0.mlp.experts.{at}.{name}.weight": (8, 8) for at in range(experts) for name in names}
    return replace(LLAMA, tensors=LLAMA.tensors | one)


@pytest.mark.parametrize("experts", [4, 8, 40, 60])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 16, 48])
def test_each_process_has_experts_by_the_same_cut_as_that_of_fsdp(experts: int, ranks: int) -> None:
    cut = torch.empty(experts, device="meta").chunk(ranks)
    assert bool(find_few_experts(mixture(experts), ranks)) == (len(cut) < ranks)


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"method": "Full"}, "tuning.method QLoRA"),
        ({"method": "LoRA", "shard_base": True}, "tuning.method QLoRA, or no tuning.lora.shardBase"),
    ],
)
def test_more_processes_than_experts_are_refused_with_a_number_that_works(settings: Any, other: str) -> None:
    with pytest.raises(TrainerError) as caught:
        refuse_few_experts(Resolved(**settings), mixture(8), 16)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert caught.value.message == (
        "16 GPUs cannot share out the 8 experts of a layer, because some would get none: set resources.numNodes and "
        f"resources.gpusPerNode to 8 GPUs together, or use {other}"
    )
    with pytest.raises(TrainerError, match="to 8 GPUs together"):
        refuse_few_experts(Resolved(**settings), mixture(40), 16)
    refuse_few_experts(Resolved(**settings), mixture(8), 8)


@pytest.mark.parametrize("settings", [{"method": "QLoRA", "shard_base": True}, {"method": "LoRA"}])
def test_numbers_in_4_bits_and_a_base_that_is_not_shared_out_are_not_refused(settings: Any) -> None:
    refuse_few_experts(Resolved(**settings), mixture(8), 16)
    refuse_few_experts(Resolved(method="Full"), None, 16)


def test_a_teacher_that_is_shared_out_is_refused_by_its_own_experts() -> None:
    settings = Resolved(method="LoRA", shard_teacher=True)
    with pytest.raises(TrainerError, match=r"3 GPUs .* to one GPU, or use .* no distillation\.shardTeacher"):
        refuse_few_experts(settings, with_teacher(LLAMA, mixture(4)), 3)
    refuse_few_experts(settings, with_teacher(mixture(4), LLAMA), 3)
