"""The model that a job trains, and the judge that rewards its answers."""

import logging
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.spec import FusedKernels, Merge, Method, Mode
from finetune_api.status import Resolved
from finetune_trainer.distributed.world import World
from finetune_trainer.models.adapters.attach import refuse_tied_merge, require_named_targets, require_plain_head
from finetune_trainer.models.adapters.factors import ADAPTER
from finetune_trainer.models.adapters.saved import continue_adapter
from finetune_trainer.models.attention import choose_attention
from finetune_trainer.models.files.tensor_files import read_local_shape
from finetune_trainer.models.fused_kernels import fuse_kernels
from finetune_trainer.models.loading import (
    DTYPES,
    can_checkpoint,
    describe_layers,
    load_for_training,
    load_plain,
    load_sharded,
    model_errors,
    unquantised_layers,
)
from finetune_trainer.models.memory.shape import ModelShape, with_teacher
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.rewards.computed import ComputedRewards, Judge, Scorer
from finetune_trainer.rewards.scorer import load_reward_model
from finetune_trainer.training.checkpoint_files import REFERENCE
from finetune_trainer.training.methods import traits_of
from finetune_trainer.training.methods.parts import LoopContext, Teacher

logger = logging.getLogger(__name__)


def load_model(
    inputs: Inputs, settings: Resolved, device: torch.device, world: World
) -> tuple[PreTrainedModel | PeftModel, Resolved]:
    """Load the model to train; return it and the settings as they apply to it: checkpointing, attention, adapted
    modules. The adapter is fresh if the base is measured first."""
    spec = inputs.run.config.spec
    writes_text = traits_of(spec.objective).writes_text
    model = load_for_training(inputs.model, settings, device, writes_text=writes_text, world=world)
    if settings.gradient_checkpointing and not can_checkpoint(settings, model):
        logger.warning("the architecture does not support gradient checkpointing: activations are kept")
        settings = settings.model_copy(update={"gradient_checkpointing": False})
    if spec.hyperparameters.fused_kernels is FusedKernels.AUTO:
        is_fused = device.type == "cuda" and fuse_kernels(model, device)
        settings = settings.model_copy(update={"fused_kernels": is_fused})
    has_noise = settings.neftune_noise_alpha is not None  # whose size depends on the length of a row
    is_flattened = traits_of(spec.objective).is_flattened and not has_noise
    attention = choose_attention(model, settings, device, is_flattened=is_flattened)
    settings = settings.model_copy(update={"attention": attention})
    if inputs.initial_adapter and spec.mode is Mode.TRAIN:
        continue_adapter(model, inputs.initial_weights)
    if settings.method == Method.FULL:
        return model, settings
    if writes_text:
        require_plain_head(model)
    if (lora := spec.tuning.lora) and not inputs.initial_adapter:
        require_named_targets(model, lora.target_modules or (), lora.exclude_modules or ())
    if spec.output.merge is not Merge.NONE:
        refuse_tied_merge(model)
    targets = model.peft_config[ADAPTER]
    changes: dict[str, Any] = {"target_modules": sorted(targets.target_modules)}
    if settings.target_experts:
        changes["target_parameters"] = sorted(targets.target_parameters)
    if settings.method == Method.QLORA and (left := unquantised_layers(model)):
        reason = str(settings.method_reason).partition(";")[0]
        changes["method_reason"] = f"{reason}; {describe_layers(model, left)} are not in 4 bits"
    return model, settings.model_copy(update=changes)


def build_judge(inputs: Inputs, settings: Resolved, device: torch.device, loop: LoopContext) -> Judge | None:
    """Return the judge that rewards a policy's answers, with the reward model if the job has one."""
    rlhf = inputs.run.config.spec.rlhf
    if rlhf is None:
        return None
    scorer: Scorer = ComputedRewards(rlhf.rewards or [], loop.pace, loop.on_own_work)
    if inputs.reward:
        scorer = load_reward_model(inputs.reward, DTYPES[str(settings.precision)], device, loop.on_own_work)
    return Judge(scorer, inputs.labeler.stop_id())


def load_teacher(inputs: Inputs, settings: Resolved, device: torch.device, world: World) -> Teacher | None:
    """Return the teacher in the number format of the computation, if the job has one: this process's shard of it, if it
    is shared out."""
    if inputs.teacher is None:
        return None
    folder, dtype = inputs.teacher.folder, DTYPES[str(settings.precision)]
    if settings.shard_teacher and world.size > 1:
        # FP32 as the format of the computation: nothing is cast, and no gradient is reduced.
        model = load_sharded(folder, dtype, torch.float32, world)
    else:
        model = load_plain(folder, dtype, device)
    answers = inputs.run.workspace / REFERENCE
    return Teacher(model.requires_grad_(False).eval(), inputs.labeler.stop_id(), answers)


def read_shape(inputs: Inputs) -> ModelShape | None:
    """Return the sizes of the loaded model, with those of its teacher; None if a configuration does not name them."""
    with model_errors(inputs.model):
        shape = read_local_shape(inputs.model)
    if inputs.teacher:
        with model_errors(inputs.teacher.folder):
            shape = with_teacher(shape, read_local_shape(inputs.teacher.folder))
    return shape
