"""Modules that are trained in full next to an adapter, as PEFT wraps them: tied ones as one tensor, kept in FP32."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.factors import ADAPTER, PREFIX
from finetune_trainer.models.adapters.whole_names import FIELD, find_whole_modules
from finetune_trainer.models.architectures import text_prefix

INSIDE = (".modules_to_save", ".original_module")
"""PEFT's names for the trained and the frozen copy of a module."""


def choose_whole_modules(model: PreTrainedModel, names: Sequence[str], adapted: Collection[str]) -> dict[str, Any]:
    """Return the arguments of PEFT's configuration; raises InvalidConfig for names that do not fit the model.

    PEFT ties only modules of usual names; both are given to it, so that it ties them again when the adapter is loaded.
    """
    if not names:
        return {}
    prefix, own = text_prefix(model), dict(model.named_modules())
    head = model.get_output_embeddings()
    modules = [name for name, module in own.items() if next(module.parameters(recurse=False), None) is not None]
    found = find_whole_modules(names, modules, lambda one: one.startswith(prefix) or own[one] is head, adapted)
    for name in found:
        _require_kind(name, own[name])
    pair = [name for name in modules if own[name] in (model.get_input_embeddings(), head)]
    if not _are_tied(model) or not {*pair} & {*found}:
        return {"modules_to_save": list(names)}
    if head.bias is not None or not isinstance(head, torch.nn.Linear):
        _refuse("the output head is tied to the embeddings and has a bias, which PEFT would lose: remove both")
    others = [name for name in found if name not in pair]
    return {"modules_to_save": [*others, *pair], "ensure_weight_tying": True}


def keep_whole_modules(model: PeftModel) -> None:
    """Keep the trained copies in FP32, as the factors are; their inputs and outputs stay in the base's format."""
    copies = [wrapper.modules_to_save[ADAPTER] for wrapper in _wrappers(model)]
    first = [next(module.parameters()) for module in copies]
    dtypes = [one.dtype for one in first]
    if model.peft_config[ADAPTER].ensure_weight_tying and len({*map(id, first)}) == len(first):
        _refuse("input and output embeddings are one tensor, and PEFT does not tie them in this model: remove them")
    for module, dtype in zip(copies, dtypes, strict=True):
        for parameter in module.parameters():
            parameter.data = parameter.data.float()
        if dtype != torch.float32:
            module.register_forward_pre_hook(_take_fp32)
            module.register_forward_hook(_returning(dtype))


def share_whole_modules(model: PeftModel, copy: str) -> None:
    """Give a further adapter, for example a reference, the values of the first one's modules; TRL copies tied ones
    once."""
    shared: dict[int, torch.nn.Parameter] = {}
    for wrapper in _wrappers(model):
        if copy not in wrapper.modules_to_save:
            continue
        target = wrapper.modules_to_save[copy]
        for name, parameter in wrapper.modules_to_save[ADAPTER].named_parameters():
            own = shared.setdefault(id(parameter), target.get_parameter(name))
            own.data.copy_(parameter.data)
            setattr(target, name, own)


def published_names(model: PeftModel) -> list[str] | None:
    """Return the names for a published configuration: PEFT takes the tied ones out of its own."""
    config = model.peft_config[ADAPTER]
    return sorted({*(config.modules_to_save or ()), *tied_names(model)}) or None


def tied_names(model: PeftModel) -> list[str]:
    """Return the modules that share the weight of the embeddings: a file holds it once for each of them."""
    return sorted(getattr(model.peft_config[ADAPTER], "modules_to_tie", None) or ())


def require_tied(model: PeftModel, saved: dict[str, torch.Tensor]) -> None:
    """Refuse an adapter that trained tied embeddings as two tensors."""
    base = model.get_base_model()
    tied = tied_names(model)
    names = [name for name, module in base.named_modules() if module is base.get_input_embeddings()]
    pair = [saved[f"{PREFIX}{name}.weight"] for name in [*names, *tied] if tied]
    if not all(torch.equal(pair[0], one) for one in pair):
        raise InvalidConfig(
            "the adapter of tuning.initialAdapter trained input and output embeddings as two tensors, and in this "
            "model they are one: merge it, and train the merged model"
        )


def is_inside(name: str) -> bool:
    """Return whether a module is one of the copies that PEFT makes of a module that is trained in full."""
    return any(part in f".{name}" for part in INSIDE)


def _wrappers(model: PeftModel) -> Iterator[ModulesToSaveWrapper]:
    yield from (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper))


def _are_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _require_kind(name: str, module: torch.nn.Module) -> None:
    if not all(one.is_floating_point() for one in module.parameters(recurse=False)):
        _refuse(f"{name} is in 4 bits under QLoRA: set tuning.method to LoRA, or remove it")
    is_layer = isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D))
    if not is_layer and any(one.dim() > 1 for one in module.parameters(recurse=False)):
        _refuse(f"{name} is a {type(module).__name__}, and only embeddings, linear layers and norms are trained in "
                "full: remove it")  # fmt: skip


def _take_fp32(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.float() if torch.is_tensor(one) and one.is_floating_point() else one for one in inputs)


def _returning(dtype: torch.dtype) -> Any:
    def cast(_: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.to(dtype)

    return cast


def _refuse(why: str) -> NoReturn:
    raise InvalidConfig(f"{FIELD}: {why}")
