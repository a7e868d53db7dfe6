"""Names of modules that get an adapter, against the modules that a model has; without torch.

PEFT ignores a name that matches no module as long as another one does.
"""

from collections.abc import Collection, Iterable
from typing import NoReturn

from finetune_api.tuning import Lora
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.patterns import require_matches
from finetune_trainer.models.memory.activations import adapted_layers
from finetune_trainer.models.memory.shape import ModelShape, ends_in
from finetune_trainer.tokenization.packing import EXACT_MODELS


def require_targets(lora: Lora, shape: ModelShape) -> None:
    """Refuse names and patterns that no layer in the model's files has, if these are certain to be those of the loaded
    model."""
    if shape.model_type not in EXACT_MODELS or shape.experts:
        return
    layers = {_last(layer) for layer in shape.adapted([_last(name) for name in lora.target_modules or ()])}
    for name in lora.target_modules or ():
        if _last(name) not in layers:
            _refuse(name, f"(it has {', '.join(sorted(set(map(_last, shape.adapted(None)))))})")
    adapted = {_last(layer) for layer in shape.adapted(lora.target_modules)}
    for name in lora.exclude_modules or ():
        if _last(name) not in adapted:
            refuse_excluded(name)
    require_matches(lora, [name.removesuffix(".weight") for name in adapted_layers(shape, lora)])


def require_adapted(named: Iterable[str], adapted: Collection[str]) -> None:
    """Refuse a name that none of the modules with an adapter has."""
    for name in named:
        if not any(ends_in(module, [name]) for module in adapted):
            _refuse(name, f"(of those named, the model has {', '.join(sorted(set(map(_last, adapted))))})")


def _refuse(name: str, others: str) -> NoReturn:
    raise InvalidConfig(
        f"tuning.lora.targetModules names {name}, which is no linear layer of the model {others}: correct or remove it"
    )


def refuse_excluded(name: str) -> NoReturn:
    """Refuse a name of `excludeModules`."""
    raise InvalidConfig(
        f"tuning.lora.excludeModules names {name}, which excludes no module with an adapter: correct or remove it"
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
