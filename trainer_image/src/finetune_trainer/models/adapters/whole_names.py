"""Names of modules that are trained in full next to an adapter, against the modules that a model has; without torch."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.factors import PREFIX
from finetune_trainer.models.memory.shape import (
    EMBEDDINGS,
    EXPERTS,
    HEAD,
    UNADAPTED_LAYERS,
    ModelShape,
    Tensors,
    ends_in,
    is_of_text,
)

FIELD = "tuning.lora.modulesToSave"
MOST_LISTED = 8


def require_whole_modules(
    names: Sequence[str], shape: ModelShape, adapted: Iterable[str], *, in_4_bits: bool, writes_text: bool
) -> None:
    """Refuse names that do not fit the modules in the model's files; raises InvalidConfig."""
    modules = list(dict.fromkeys(map(module_of, shape.tensors)))
    if not writes_text:
        modules = [module for module in modules if HEAD not in module.split(".")]
    elif shape.tied:  # the files have it once
        modules.append(HEAD)
    quantised = [module for module in shape.linear if is_of_text(module)] if in_4_bits else []
    find_whole_modules(_as_in_files(names, modules), modules, is_of_text, set(map(module_of, adapted)), quantised)


def find_whole_modules(
    names: Sequence[str],
    modules: Collection[str],
    is_text: Callable[[str], bool],
    adapted: Collection[str],
    quantised: Collection[str] = (),
) -> list[str]:
    """Return the modules that the names end; raises InvalidConfig for a name that PEFT would apply to none or others.

    `modules` are those with weights of their own, by their full names.
    """
    found: dict[str, None] = {}
    for name in names:
        own = [module for module in modules if ends_in(module, [name])]
        if not own:
            _refuse_unknown(name, modules, is_text)
        _refuse_others(name, own, modules, is_text)
        if both := [module for module in own if module in adapted]:
            _refuse(name, f"which also gets an adapter ({both[0]}): add it to tuning.lora.excludeModules, or remove it")
        if packed := [module for module in own if module in quantised]:
            _refuse(name, f"which is in 4 bits under QLoRA ({packed[0]}): set tuning.method to LoRA, or remove it")
        found |= dict.fromkeys(own)
    return list(found)


def whole_tensors(names: Sequence[str] | None, shape: ModelShape) -> Tensors:
    """Return the tensors of the model's files that are trained in full; a tied head is the embeddings."""
    asked = _as_in_files(names or (), set(map(module_of, shape.tensors)))
    found = {tensor: size for tensor, size in shape.tensors.items() if ends_in(module_of(tensor), asked)}
    if shape.tied and ends_in(HEAD, asked):
        found |= {tensor: size for tensor, size in shape.tensors.items() if _is_embedding(tensor, size, shape)}
    return found


def embeddings_of(tensors: Tensors, shape: ModelShape) -> list[tuple[int, ...]]:
    """Return the shapes of the input embeddings among the tensors."""
    return [size for name, size in tensors.items() if HEAD not in name.split(".") and _is_embedding(name, size, shape)]


def trains_head(names: Sequence[str] | None, shape: ModelShape) -> bool:
    """Return whether the output head is among the modules, itself or as the embeddings that it is tied to."""
    return any(
        HEAD in tensor.split(".") or (shape.tied and _is_embedding(tensor, size, shape))
        for tensor, size in whole_tensors(names, shape).items()
    )


def saved_modules(config: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Return the modules that an adapter's file holds in full, by its configuration; PEFT names only one of tied
    ones."""
    names = [str(name) for name in config.get("modules_to_save") or []]
    names += sorted(EMBEDDINGS) if config.get("ensure_weight_tying") else []
    whole = [module_of(tensor).removeprefix(PREFIX) for tensor in tensors if ".lora_" not in tensor]
    return list(dict.fromkeys(module for module in whole if ends_in(module, names)))


def refuse_adapter_on_head(name: str) -> NoReturn:
    """Refuse an adapter on the output head: TRL computes the loss from the head's own weights."""
    raise InvalidConfig(
        f"an adapter on the output head ({name}) is never trained, because the loss is computed from the head's own "
        "weights: remove it from tuning.lora.targetModules, or train the head in full with tuning.lora.modulesToSave; "
        "merge a tuning.initialAdapter that has one into its base, and train the merged model"
    )


def agree(names: Sequence[str], modules: Sequence[str], *, is_tied: bool) -> bool:
    """Return whether the names end these modules and no others; of tied ones, one name is enough."""
    is_named = [ends_in(module, names) for module in modules]
    are_known = all(any(ends_in(module, [name]) for module in modules) for name in names)
    return are_known and (any(is_named) if is_tied else all(is_named))


def is_of_module(tensor: str, modules: Collection[str]) -> bool:
    """Return whether a tensor of an adapter's file is of one of these modules, trained in full."""
    return ".lora_" not in tensor and module_of(tensor).removeprefix(PREFIX) in modules


def module_of(tensor: str) -> str:
    """Return the module of a tensor."""
    return tensor.removesuffix(".weight").removesuffix(".bias")


def _refuse_unknown(name: str, modules: Collection[str], is_text: Callable[[str], bool]) -> NoReturn:
    inner = [module for module in modules if f".{name}." in f".{module}."]
    if inner:
        _refuse(name, f"which holds other modules: name those with weights, for example {inner[0]}")
    single = [module for module in modules if is_text(module) and not any(part.isdigit() for part in module.split("."))]
    _refuse(name, f"which the model does not have: name {', '.join(single[:MOST_LISTED])}, or a module of a layer")


def _refuse_others(name: str, own: list[str], modules: Collection[str], is_text: Callable[[str], bool]) -> None:
    """Refuse modules that are never trained, and a name by which PEFT, which compares ends of text, takes others."""
    if towers := [module for module in own if not is_text(module)]:
        _refuse(
            name,
            f"which is also in a part for images or sound ({towers[0]}), and training leaves these unchanged: write "
            "more of the name, or remove it",
        )
    if chosen := [one for one in own if EXPERTS in one.split(".") or UNADAPTED_LAYERS & {one.rpartition(".")[2]}]:
        _refuse(name, f"which is a router or experts ({chosen[0]}), and these are not trained in full: remove it")
    if others := [module for module in modules if module.endswith(name) and module not in own]:
        longer = ".".join(own[0].split(".")[-name.count(".") - 2 :])
        _refuse(name, f"by which PEFT would also train {others[0]}: write more of the name, for example {longer}")


def _as_in_files(names: Sequence[str], modules: Collection[str]) -> list[str]:
    """Return the names, without a prefix that the files omit."""
    return [next((one for one in modules if name.endswith(f".{one}")), name) for name in names]


def _is_embedding(tensor: str, size: tuple[int, ...], shape: ModelShape) -> bool:
    return size == (shape.vocabulary, shape.hidden) and is_of_text(tensor)


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidConfig(f"{FIELD} names {name}, {why}")
