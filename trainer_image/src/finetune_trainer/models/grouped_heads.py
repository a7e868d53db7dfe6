"""Attention with fewer heads of keys and values than of queries: how SDPA gets them on a GPU."""

import torch
from transformers.integrations import sdpa_attention

OLDEST_CAPABILITY = (8, 0)
"""Compute capability from which a GPU has the flash kernels."""
_plain = sdpa_attention.use_gqa_in_sdpa


def keep_fused() -> None:
    """Let transformers repeat keys and values for each query head where no fused kernel takes grouped ones: SDPA would
    fall back, without a word, to one that holds a score for every pair of tokens, which the estimate does not count."""
    sdpa_attention.use_gqa_in_sdpa = may_stay_grouped


def may_stay_grouped(mask: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether SDPA gets keys and values as they are, in transformers' place."""
    is_grouped = bool(_plain(mask, key, value))
    if not is_grouped or key.device.type != "cuda":
        return is_grouped
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else key.dtype
    return takes_grouped(torch.cuda.get_device_capability(key.device), dtype)


def takes_grouped(capability: tuple[int, int], dtype: torch.dtype) -> bool:
    """Return whether a GPU has a fused kernel for grouped heads: of CUDA's, only the flash kernels are one."""
    return capability >= OLDEST_CAPABILITY and dtype != torch.float32
