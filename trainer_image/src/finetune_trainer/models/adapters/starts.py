"""Adapters that start from the base's own weights, PiSSA and OLoRA: trained and published without changing the base.

PEFT subtracts the first values from the base. Here each adapter subtracts their product from its own instead, before it
is added to the base's output, so that the base with the adapter switched off is still the base and the training starts
exactly at it, in every number format. A server gets the difference between the last and the first values: a plain
adapter of twice the rank.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from finetune_api.handoff import ADAPTER_WEIGHTS, ExitCode
from finetune_api.tuning import InitLoraWeights
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.adapters.factors import ADAPTER, PREFIX
from finetune_trainer.models.files.base_model import ADAPTER_CONFIG

ITERATIONS = 16
"""Of the randomised singular value decomposition, as in PEFT's `pissa_niter_16`."""
FIRST = "first_values"
"""Attribute of a layer with its first values, A and B."""
Pair = tuple[torch.Tensor, torch.Tensor]


def start_from_weights(model: PeftModel, how: str) -> None:
    """Set the first values of the adapter, on whose account no output changes."""
    choose = CHOICES[how]
    for name, layer in lora_layers(model):
        if not layer.lora_A:
            raise unfit(how, f"{name} is an embedding")
        base, rank = layer.get_base_layer(), layer.r[ADAPTER]
        weight = base.weight.detach().float().cpu()
        weight = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
        if rank > min(weight.shape):
            raise unfit(how, f"{name} has only {min(weight.shape)} singular values, and the rank is {rank}")
        a, b = choose(weight, rank, layer.scaling[ADAPTER])
        device = layer.lora_A[ADAPTER].weight.device
        first = (a.contiguous().to(device), b.contiguous().to(device))
        layer.lora_A[ADAPTER].weight.data = first[0].clone()
        layer.lora_B[ADAPTER].weight.data = first[1].clone()
        setattr(layer, FIRST, first)
        _subtract_first(layer, *first)


def _subtract_first(layer: Any, a: torch.Tensor, b: torch.Tensor) -> None:
    """Subtract `b a x` from the adapter's own `B A x`, of the same inputs, thus after dropout.

    A hook of the layer would come after the sum with the base's output, which PEFT rounds to the base's number format,
    and the first values alone are about as large as that output.
    """
    low_rank: list[torch.Tensor] = []

    def keep(_module: Any, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        low_rank[:] = [linear(inputs[0], a)]

    def subtract(_module: Any, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output - linear(low_rank.pop(), b)

    layer.lora_A[ADAPTER].register_forward_hook(keep)
    layer.lora_B[ADAPTER].register_forward_hook(subtract)


def lora_layers(model: PeftModel) -> list[tuple[str, Any]]:
    """Return the layers with an adapter, by the names of their modules in the base."""
    return [(name, layer) for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)]


def publish_difference(model: PeftModel, directory: Path, *, must_change: bool) -> None:
    """Rewrite a saved adapter as the difference from its first values; one without any stays as it is.

    `B A - B0 A0` is the product of `[B, -B0]` and `[A; A0]`. Both have the factor that makes up for twice the rank.
    """
    layers = [(name, layer) for name, layer in lora_layers(model) if hasattr(layer, FIRST)]
    if not layers:
        return
    path = directory / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    factor = math.sqrt(2) if config["use_rslora"] else 2.0
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    is_changed = False
    for name, layer in layers:
        a, b = (one.cpu() for one in getattr(layer, FIRST))
        names = [f"{PREFIX}{name}.lora_{kind}.weight" for kind in "AB"]
        is_changed = is_changed or not torch.equal(tensors[names[0]], a) or not torch.equal(tensors[names[1]], b)
        tensors[names[0]] = torch.cat([tensors[names[0]], a])
        tensors[names[1]] = factor * torch.cat([tensors[names[1]], -b], dim=1)
    if must_change and not is_changed:
        raise TrainerError(ExitCode.INTERNAL_ERROR, "the saved adapter changes nothing: it has its first values")
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config["r"] *= 2
    config["rank_pattern"] = {pattern: 2 * rank for pattern, rank in (config.get("rank_pattern") or {}).items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _largest_singular(weight: torch.Tensor, rank: int, scaling: float) -> Pair:
    """Return the factors of the best approximation of a weight by a product of that rank (PiSSA)."""
    left, values, right = torch.svd_lowrank(weight, rank, niter=ITERATIONS)
    roots = (values / scaling).sqrt()
    return roots[:, None] * right.T, left * roots


def _orthonormal(weight: torch.Tensor, rank: int, scaling: float) -> Pair:
    """Return the first columns of Q and rows of R of a weight's QR decomposition (OLoRA), and compute no others."""
    basis, _ = torch.linalg.qr(weight[:, :rank])
    return basis.T @ weight, basis


CHOICES: dict[str, Callable[[torch.Tensor, int, float], Pair]] = {
    InitLoraWeights.PISSA: _largest_singular,
    InitLoraWeights.OLORA: _orthonormal,
}


def unfit(how: str, why: str) -> TrainerError:
    """Return the error of first values that the model does not have."""
    return InvalidConfig(
        f"tuning.lora.initLoraWeights {how} is not possible: {why}: change targetModules or the rank, or set it to "
        "Default"
    )
