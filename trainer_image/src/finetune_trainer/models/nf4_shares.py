"""A base in NF4 that is shared out: each weight is quantised on the device as soon as it is read, and cut to the share
of this process, so that no process ever holds the whole base."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.functional import QuantState, quantize_4bit
from bitsandbytes.nn import Linear4bit
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit_prequantized
from peft import PeftModel
from torch.nn.utils.parametrize import ParametrizationList
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from typing_extensions import override

from finetune_trainer.distributed.sharding import own_rows, shard_base
from finetune_trainer.distributed.world import World
from finetune_trainer.models.experts import plain_stacks

QUANTISER = "bitsandbytes_4bit"
"""The library's name of the quantiser."""


@contextmanager
def keep_shares(world: World) -> Iterator[None]:
    """Let models that are loaded in NF4 have this process's shares in the place of weights."""

    class Quantiser(_SharesQuantiser):
        _world = world

    before = AUTO_QUANTIZER_MAPPING[QUANTISER]
    AUTO_QUANTIZER_MAPPING[QUANTISER] = Quantiser
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING[QUANTISER] = before


def shard_quantised(model: PeftModel, world: World) -> None:
    """Shard the frozen base that was loaded by `keep_shares`, with an adapter on it, which stays whole."""
    base = model.get_base_model()
    for full, module, name in list(plain_stacks(base)):
        share, state = base.hf_quantizer.shares_of_stacks.pop(full)
        setattr(module, name, torch.nn.Parameter(share, requires_grad=False))
        replace_parameter_4bit_prequantized(module, name, state.as_dict(packed=True), base.device)
    shard_base(base, world.size, list(_packed_weights(base)))
    if base.device.type == "cuda":
        torch.cuda.empty_cache()  # of whole weights: NCCL allocates by itself, and finds what PyTorch does not hold


class _SharesQuantiser(Bnb4BitHfQuantizer):  # type: ignore[misc]  # the library has no types
    """The library's quantiser, which also quantises the experts' stacks and keeps a share of each weight.

    A stack's share is kept here: until the adapter is attached, PEFT needs to see a stack, and gets one without memory.
    """

    _world: World

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shares_of_stacks: dict[str, tuple[torch.Tensor, QuantState]] = {}
        self._stacks: frozenset[str] = frozenset()

    @property
    @override
    def quantized_element_size(self) -> float:
        """Bytes of each weight that stay in this process: the library reserves memory for all before it loads them."""
        return float(super().quantized_element_size) / self._world.size

    @override
    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, **kwargs)
        self._stacks = frozenset(full for full, _, _ in plain_stacks(model))

    @override
    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Return whether the weight is one of a linear layer or a stack of experts."""
        return param_name in self._stacks or super().param_needs_quantization(model, param_name, **kwargs)

    @override
    def get_quantize_ops(self) -> Bnb4bitQuantize:
        """Return the operation for one weight."""
        return _QuantiseShare(self)

    def share_linear(self, weight: torch.Tensor) -> None:
        """Cut the packed weight of a linear layer to this process's share."""
        weight.data = own_rows(weight.data, self._world)

    def share_stack(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Quantise the stack and keep this process's share of it; return a tensor of its shape."""
        packed, state = quantize_4bit(
            whole.contiguous(),
            compress_statistics=self.quantization_config.bnb_4bit_use_double_quant,
            quant_type=self.quantization_config.bnb_4bit_quant_type,
        )
        self.shares_of_stacks[name] = own_rows(packed, self._world), state
        return torch.nn.Parameter(whole.new_empty(1).expand(whole.shape), requires_grad=False)

    def is_stack(self, name: str) -> bool:
        """Return whether the weight is a stack of experts of the text decoder."""
        return name in self._stacks


class _QuantiseShare(Bnb4bitQuantize):  # type: ignore[misc]  # the library has no types
    """Quantise one weight that was read."""

    @override
    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Return the share of a linear layer's weight, or the stand-in of a stack."""
        found: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            whole = value[0] if isinstance(value, list) else value
            if self.hf_quantizer.is_stack(name):
                found[name] = self.hf_quantizer.share_stack(name, whole)
            else:
                found |= super().convert({name: whole}, *args, **kwargs)
                self.hf_quantizer.share_linear(found[name])
        return found


def _packed_weights(model: PreTrainedModel) -> Iterator[tuple[torch.nn.Module, str, torch.Size]]:
    """Yield module, name and the whole's shape of each weight of which this process holds a share: one row for each
    byte, which has two values."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            yield module, "weight", _packed_shape(module.quant_state)
        elif isinstance(module, ParametrizationList) and isinstance(module[0], Bnb4bitParametrization):
            yield module, "original", _packed_shape(module[0].quant_state)


def _packed_shape(state: QuantState) -> torch.Size:
    return torch.Size([(torch.Size(state.shape).numel() + 1) // 2, 1])
