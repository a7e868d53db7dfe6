"""The attention kernel of a training: the model's own, or a flash kernel on rows that are joined without padding."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from finetune_api.spec import Attention
from finetune_api.status import Resolved
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.grouped_heads import OLDEST_CAPABILITY
from finetune_trainer.models.loading import DTYPES
from finetune_trainer.tokenization.packing import FLASH_MODELS

logger = logging.getLogger(__name__)

VARLEN = "finetune_varlen"
"""Name of `attend_rows` in transformers. The library makes no mask for it, because no mask has this name."""
EAGER = "Eager"
NAMES = {"sdpa": Attention.SDPA.value, "eager": EAGER}
LARGEST_HEAD = 256
CHECKED_LENGTHS = (17, 40, 7)
LARGEST_DIFFERENCE = 0.05
"""Of the largest value; 16-bit rounding is below a hundredth."""


def attend_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within the rows of a flattened batch, `[1, heads, tokens, width]`, by PyTorch's kernel for rows of
    different lengths; `cu_seq_lens_q` has the first token of each row and the number of tokens."""
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1 or attention_mask is not None:
        raise ValueError("flash attention needs a flattened batch with cumulative lengths")
    if dropout or any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("flash attention has no dropout, soft cap, sink or position bias")
    attended: torch.Tensor = varlen_attn(
        _rows(query), _rows(key), _rows(value), cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        scale=scaling, window_size=(sliding_window - 1 if sliding_window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )  # type: ignore[assignment]  # fmt: skip
    return attended.unsqueeze(0).to(query.dtype), None


AttentionInterface.register(VARLEN, attend_rows)


def _rows(states: torch.Tensor) -> torch.Tensor:
    """Return `[tokens, heads, width]` in 16 bits: norms and rotary positions may be FP32 under autocast."""
    half = states.to(torch.get_autocast_dtype(states.device.type)) if states.dtype == torch.float32 else states
    return half[0].transpose(0, 1).contiguous()


def flash_kernel() -> str:
    """Return transformers' name of the flash kernel in this image: the package's, if there is one, else PyTorch's."""
    return "flash_attention_2" if is_flash_attn_2_available() else VARLEN


@contextmanager
def use_attention(model: PreTrainedModel | PeftModel, kernel: str | None) -> Iterator[None]:
    """Attend by this kernel in the block, also in the backward pass; None changes nothing."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = kernel or before
    try:
        yield
    finally:
        config._attn_implementation = before


def choose_attention(
    model: PreTrainedModel | PeftModel, settings: Resolved, device: torch.device, *, is_flattened: bool
) -> str:
    """Return the attention to train with, by the name in `status.resolved`; raise InvalidConfig if the requested one is
    not available. `is_flattened`: the objective's rows can be joined without padding."""
    own = NAMES.get(model.config.get_text_config()._attn_implementation, EAGER)
    asked = settings.attention or Attention.AUTO
    if asked == Attention.SDPA and own != Attention.SDPA:
        raise _refuse(asked, f"{_kind(model)} has only {own}", "Auto")
    if asked == Attention.SDPA or (asked == Attention.AUTO and not is_flattened):
        return own
    missing = find_flash_fault(model, str(settings.precision), device)
    if missing and asked == Attention.FLASH:
        raise _refuse(asked, f"{missing}; available: {own}", f"Auto or {own}" if own == Attention.SDPA else "Auto")
    return own if missing else Attention.FLASH.value


def _refuse(asked: str, why: str, remedy: str) -> TrainerError:
    return InvalidConfig(f"hyperparameters.attention {asked}: {why}: set it to {remedy}")


def find_flash_fault(model: PreTrainedModel | PeftModel, precision: str, device: torch.device) -> str | None:
    """Return why the flash kernel cannot train this model on this device, or None."""
    if device.type != "cuda":
        return "it needs a GPU"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    found = explain_missing_flash(name, capability, precision) or find_unsupported_attention(model)
    if found or flash_kernel() != VARLEN:
        return found
    found = find_kernel_fault(model, DTYPES[precision], device)
    if found:
        logger.warning("the flash kernel of this image is not used on %s: %s", name, found)
    return found


def explain_missing_flash(name: str, capability: tuple[int, int], precision: str) -> str | None:
    """Return what the GPU or the number format lacks for the flash kernel, or None."""
    if capability < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return f"{name} has compute capability {capability[0]}.{capability[1]}, the kernel needs {oldest}"
    return "the kernel computes in BF16 and FP16, not in FP32" if precision == "FP32" else None


def find_unsupported_attention(model: PreTrainedModel | PeftModel) -> str | None:
    """Return what the model's attention has that the flash kernel lacks, or None."""
    config = model.config.get_text_config()
    if _kind(model) not in FLASH_MODELS:
        return f"the kernel is not known to be exact for {_kind(model)}"
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_pdrop", 0.0):
        return f"{_kind(model)} has dropout in its attention"
    return f"its heads are wider than {LARGEST_HEAD}" if _sizes(config)[2] > LARGEST_HEAD else None


def find_kernel_fault(model: PreTrainedModel | PeftModel, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compare PyTorch's flash kernel with its plain attention on random rows of the model's head sizes, values and
    gradients; return how they differ, or None."""
    heads, groups, width = _sizes(model.config.get_text_config())
    generator = torch.Generator().manual_seed(0)
    tokens = sum(CHECKED_LENGTHS)
    rows = [torch.randn(1, count, tokens, width, generator=generator) for count in (heads, groups, groups)]
    starts = torch.tensor([0, *CHECKED_LENGTHS]).cumsum(0).to(device, torch.int32)
    found = []
    try:
        for attend in (_attend_flattened, _attend_plain):
            inputs = [one.to(device, dtype).requires_grad_() for one in rows]
            attended = attend(inputs, starts)
            gradients = torch.autograd.grad(attended.float().square().sum(), inputs)
            found.append([attended.detach(), *gradients])
    except (RuntimeError, TypeError, ValueError) as error:  # another release may have other arguments
        return f"it fails: {str(error).splitlines()[0][:200]}"
    for ours, plain in zip(*found, strict=True):
        difference = float((ours.float() - plain.float()).abs().max() / plain.float().abs().max())
        if not difference <= LARGEST_DIFFERENCE:
            return f"its results differ from those of plain attention by {difference:.2g} of the largest"
    return None


def _attend_flattened(inputs: list[torch.Tensor], starts: torch.Tensor) -> torch.Tensor:
    attend = AttentionInterface()[VARLEN]
    longest = max(CHECKED_LENGTHS)
    attended: torch.Tensor = attend(torch.nn.Module(), *inputs, None, cu_seq_lens_q=starts, max_length_q=longest)[0]
    return attended


def _attend_plain(inputs: list[torch.Tensor], starts: torch.Tensor) -> torch.Tensor:
    """Attend in each row alone, in FP32."""
    parts = zip(*(torch.split(one.float(), list(CHECKED_LENGTHS), dim=2) for one in inputs), strict=True)
    attended = [scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in parts]
    return torch.cat(attended, dim=2).transpose(1, 2)


def _sizes(config: Any) -> tuple[int, int, int]:
    """Return attention heads, heads of keys and values, and the width of a head."""
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads, groups, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _kind(model: PreTrainedModel | PeftModel) -> str:
    return str(model.config.get_text_config().model_type)
