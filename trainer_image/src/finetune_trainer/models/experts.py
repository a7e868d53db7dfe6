"""The experts of a mixture: stacks of weights that are parameters of one module, in 4 bits under QLoRA, and with an
adapter if the job asks for one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from peft import LoraConfig, LoraModel, PeftModel
from peft.tuners.lora.layer import ParamWrapper, _LoraFactorsProxy
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch.nn.utils.parametrize import ParametrizationList
from transformers import PreTrainedModel
from typing_extensions import override

from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.factors import WRAPPED, no_experts_error
from finetune_trainer.models.architectures import text_modules
from finetune_trainer.models.files.tensor_files import TensorFiles
from finetune_trainer.models.memory.shape import EXPERTS, STACK, names_experts

PARAMETRIZATIONS = "parametrizations"
"""Where torch keeps the modules that compute a parameter, by the parameter's name."""


def has_experts(directory: Path) -> bool:
    """Return whether the model's files name experts."""
    with TensorFiles.of_folder(directory) as files:
        return names_experts(files.headers)


def plain_stacks(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Yield the full name, the module and the parameter's name of each stack that is not in 4 bits."""
    for path, module in text_modules(model):
        if EXPERTS in path.split("."):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == STACK and parameter.is_floating_point():
                    yield f"{path.replace(WRAPPED, '')}.{name}", module, name


def expert_parameters(model: PreTrainedModel) -> list[str]:
    """Return the experts' parameters as an adapter's config names them, the same in every layer.

    Raises InvalidConfig if the model has none.
    """
    names = {".".join(full.split(".")[-2:]) for full, _, _ in plain_stacks(model)}
    if not names:
        raise no_experts_error(type(model).__name__)
    return sorted(names)


def require_every_stack(model: PeftModel) -> None:
    """Raise if the adapter is not on every stack of the text decoder, or also on parameters elsewhere."""
    base = model.get_base_model()
    stacks = sum(1 for _ in plain_stacks(base))
    found = sum(isinstance(module, ParamWrapper) for module in base.modules())
    if found != stacks:
        raise InvalidConfig(
            f"the experts of {type(base).__name__} cannot have an adapter, which PEFT puts on {found} parameters "
            f"instead of {stacks}; remove tuning.lora.targetExperts"
        )


def quantise_experts(model: PeftModel, double_quant: bool, device: torch.device) -> None:
    """Convert every stack to NF4, one at a time: the device never holds more than one of them in 16 bits.

    A stack is dequantised whole in each forward pass of its layer, and the update of its adapter is added to it.
    """
    base = model.get_base_model()
    for _, module, name in list(plain_stacks(base)):
        parameter = getattr(module, name)
        parameter.data = parameter.data.to(device).contiguous()
        replace_parameter_4bit(module, name, compress_statistics=double_quant, quant_type="nf4")
    for module in base.modules():
        if isinstance(module, ParamWrapper):
            module.__class__ = QuantisedParamWrapper
            model.base_model.__class__ = QuantisedLoraModel


class QuantisedParamWrapper(ParamWrapper):  # type: ignore[misc]  # the library has no types
    """PEFT's adapter on a parameter that is in 4 bits.

    PEFT registers the adapter's update as a further parametrisation in each forward pass. Over one of bitsandbytes it
    does not find it to remove it again; and it reads the parameter first, whose value torch then keeps for the whole
    pass, so that the inner one of two nested adapters has no effect and no gradient.
    """

    @property
    def _steps(self) -> ParametrizationList:
        steps: ParametrizationList = self.get_base_layer().parametrizations[self.parameter_name]
        return steps

    @override
    def get_param(self) -> torch.Tensor:
        """Return an empty tensor with device and number format of the parameter, which is not dequantised for them."""
        dequantise = self._steps[0]
        assert isinstance(dequantise, Bnb4bitParametrization)  # noqa: S101 - for the types
        return self._steps.original.new_empty(0, dtype=dequantise.quant_state.dtype)

    @override
    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        """Add the update of each active adapter after the dequantisation, for the time of one forward pass."""
        steps = self._steps
        for adapter in active_adapters:
            if adapter in self.lora_A:
                steps.append(_LoraFactorsProxy(*self.get_delta_factors(adapter)))
        try:
            yield
        finally:
            del steps[1:]


class QuantisedLoraModel(LoraModel):  # type: ignore[misc]  # the library has no types
    """PEFT's adapters on a model whose experts are in 4 bits."""

    @override
    def _inject_parameters(
        self, peft_config: LoraConfig, model: torch.nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """Add a further adapter where there is one already, for example a reference: PEFT would not find the parameters
        again, which have other names in 4 bits."""
        wrappers = {name: one for name, one in model.named_modules() if isinstance(one, QuantisedParamWrapper)}
        for wrapper in wrappers.values():
            wrapper.update_layer(adapter_name, peft_config.r, lora_alpha=peft_config.lora_alpha, config=peft_config)
        return [f"{name}.{wrapper.parameter_name}" for name, wrapper in wrappers.items()]


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
        path.rpartition(".")[0].replace(WRAPPED, "").replace(steps, ".")
        for path, module in text_modules(model)
        if isinstance(module, Bnb4bitParametrization)
    ]
