"""The experts of a mixture: stacks of weights that are parameters of one module, in 4 bits under QLoRA."""

from collections.abc import Iterator
from pathlib import Path

import torch
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel

from finetune_trainer.models.architectures import text_modules
from finetune_trainer.models.shape import EXPERTS, STACK
from finetune_trainer.models.tensor_files import TensorFiles

PARAMETRIZATIONS = "parametrizations"
"""Where torch keeps the modules that compute a parameter, by the parameter's name."""


def has_experts(directory: Path) -> bool:
    """Return whether the model's files name experts."""
    with TensorFiles.of_folder(directory) as files:
        return any(EXPERTS in name.split(".") for name in files.headers)


def plain_stacks(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Yield the full name, the module and the parameter's name of each stack that is not in 4 bits."""
    for path, module in text_modules(model):
        if EXPERTS in path.split("."):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == STACK and parameter.is_floating_point():
                    yield f"{path}.{name}", module, name


def quantise_experts(model: PreTrainedModel, double_quant: bool, device: torch.device) -> None:
    """Convert every stack to NF4, one at a time: the device never holds more than one of them in 16 bits.

    A stack is dequantised whole in each forward pass of its layer.
    """
    for _, module, name in list(plain_stacks(model)):
        parameter = getattr(module, name)
        parameter.data = parameter.data.to(device).contiguous()
        replace_parameter_4bit(module, name, compress_statistics=double_quant, quant_type="nf4")


def expert_targets(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Return the names that PEFT applies to parameters of experts, also in a later load, whatever layers have them.

    In some architectures transformers has made one parameter of the layers of all experts: for these PEFT takes the
    layers' former names as the parameters', so that adapters of that time can be loaded. Raises ValueError if PEFT
    needs another name as well.
    """
    config = LoraConfig(target_modules=list(names))
    convert_peft_config_for_transformers(config, model, None)
    return sorted(set(names) - set(config.target_modules))


def quantised_stacks(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters in 4 bits, as in a model that is not quantised."""
    steps = f".{PARAMETRIZATIONS}."
    return [
        path.rpartition(".")[0].replace(steps, ".")
        for path, module in text_modules(model)
        if isinstance(module, Bnb4bitParametrization)
    ]
