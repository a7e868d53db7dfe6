"""Fused Triton kernels, from liger-kernel, for RMSNorm, rotary positions and the gated MLP."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.peft_base import find_base

logger = logging.getLogger(__name__)

EXACT_TYPES = frozenset(
    {
        "exaone4", "gemma", "gemma2", "gemma3_text", "gpt_oss", "granite", "hunyuan_v1_dense", "llama", "ministral",
        "mistral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "smollm3",
    }
)  # fmt: skip
"""Model types whose outputs and gradients a test compares with the plain model's, under Triton's interpreter."""
ROTARY = "apply_rotary_pos_emb"


def fuse_kernels(model: PreTrainedModel | PeftModel, device: torch.device) -> bool:
    """Put the fused kernels into one model, in place; return False, and change nothing, for other types of model.

    The library also replaces classes and functions of the model's module. They are put back, so that a model loaded
    later, on a CPU perhaps, is plain.
    """
    base = find_base(model)
    if base.config.model_type not in EXACT_TYPES:
        logger.warning("hyperparameters.fusedKernels: there are no exact ones for models of type %s, none is used",
                       base.config.model_type)  # fmt: skip
        return False
    # Not at the top: the library loads every kernel that it has.
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance  # noqa: PLC0415

    names = _modelling(base)
    plain = dict(names)
    _apply_liger_kernel_to_instance(
        base, rope=True, rms_norm=True, swiglu=True, geglu=True, cross_entropy=False, fused_linear_cross_entropy=False
    )
    fused = names[ROTARY]
    names.update(plain)
    names[ROTARY] = _by_device(fused, plain[ROTARY], device.type)
    return True


def _modelling(model: PreTrainedModel) -> dict[str, Any]:
    """Return the namespace of the module that defines the model; a sharded model's own class is defined elsewhere."""
    module = next(one.__module__ for one in type(model).__mro__ if one.__module__.startswith("transformers.models."))
    return vars(sys.modules[module])


def _by_device(fused: Callable[..., Any], plain: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """Return the function that attention layers call, all of the process: fused on one kind of device."""

    def apply(q: torch.Tensor, *others: Any, **options: Any) -> Any:
        return (fused if q.device.type == kind else plain)(q, *others, **options)

    return apply
