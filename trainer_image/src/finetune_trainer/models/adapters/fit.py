"""Whether an adapter fits a model, by the names and sizes of its tensors; without torch."""

import re

from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.factors import experts_module, parse_factor
from finetune_trainer.models.memory.shape import ModelShape, Stack, Tensors, is_of_text


def require_fit(uri: str, tensors: Tensors, rank: int, shape: ModelShape) -> None:
    """Refuse an adapter of another model, by the names and sizes of the modules that it has factors of."""
    _check_linear(uri, tensors, shape)
    _check_whole(uri, tensors, shape)
    _check_experts(uri, tensors, rank, shape)


def _check_linear(uri: str, tensors: Tensors, shape: ModelShape) -> None:
    """Refuse an adapter with a module whose sizes differ from the model's, in either orientation.

    Some architectures name their modules differently from their files: PEFT checks modules that are not found here,
    unless none is found, or the model has the module in other layers only.
    """
    stored: dict[str, list[tuple[int, ...]]] = {}
    for name, size in shape.tensors.items():
        stored.setdefault(_tail(name.removesuffix(".weight")), []).append(size)
    layers = {_of_any_layer(module) for module in stored}
    adapted = {module: (first[-1], second[0]) for module, (first, second) in _pairs(tensors, of_experts=False).items()}
    if adapted and not layers & {_of_any_layer(_tail(module)) for module in adapted}:
        names = ", ".join(sorted({module.rpartition(".")[2] for module in adapted}))
        raise InvalidConfig(f"the adapter {uri} does not fit the model, which has none of its modules ({names})")
    for module, sizes in adapted.items():
        tail = _tail(module)
        if tail not in stored and _of_any_layer(tail) in layers:
            raise InvalidConfig(f"the adapter {uri} does not fit the model, which has no layer {module}")
        found = stored.get(tail, [sizes])
        if sorted(sizes) not in map(sorted, found):
            raise InvalidConfig(
                f"the adapter {uri} does not fit the model: {module} is {_by(found[0])} in the model and "
                f"{_by(sizes)} in the adapter"
            )


def _check_whole(uri: str, tensors: Tensors, shape: ModelShape) -> None:
    """Refuse an adapter with a module trained in full whose size differs from the model's, for example because its
    vocabulary was extended."""
    stored = {_tail(name.rpartition("model.")[2]): size for name, size in shape.tensors.items() if is_of_text(name)}
    for name, size in tensors.items():
        tail = _tail(name.rpartition("model.")[2])
        if ".lora_" not in name and stored.get(tail, size) != size:
            raise InvalidConfig(
                f"the adapter {uri} does not fit the model: {tail} is {_by(stored[tail])} in the model and {_by(size)} "
                "in the adapter"
            )


def _of_any_layer(module: str) -> str:
    return re.sub(r"\d+", "#", module)


def _check_experts(uri: str, tensors: Tensors, rank: int, shape: ModelShape) -> None:
    """Refuse an adapter on experts whose number or sizes differ from the model's, in either orientation.

    Files and modules may name the experts differently, so that the number of the layer is compared alone.
    """
    stored = {_layer(module): stacks for module, stacks in shape.stacks.items()}
    found: dict[str, list[Stack]] = {}
    for module, (first, second) in _pairs(tensors, of_experts=True).items():
        found.setdefault(experts_module(module), []).append((first[0] // rank, second[0], first[-1]))
    for module, sizes in found.items():
        wanted = stored.get(_layer(module))
        if wanted is None:
            raise InvalidConfig(f"the adapter {uri} does not fit the model, which has no experts in {module}")
        if sorted(map(sorted, wanted)) != sorted(map(sorted, sizes)):
            raise InvalidConfig(
                f"the adapter {uri} does not fit the model: {module} are {_stacks(wanted)} in the model and "
                f"{_stacks(sizes)} in the adapter"
            )


def _pairs(tensors: Tensors, *, of_experts: bool) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the sizes of both factors of each adapted module; a missing one has none."""
    sizes: dict[str, dict[bool, tuple[int, ...]]] = {}
    for name, size in tensors.items():
        factor = parse_factor(name)
        if factor and factor.is_of_experts is of_experts:
            sizes.setdefault(factor.module, {})[factor.is_first] = size
    return {module: (pair.get(True, (0, 0)), pair.get(False, (0, 0))) for module, pair in sizes.items()}


def _layer(module: str) -> str:
    return _tail(module).partition(".")[0]


def _stacks(stacks: list[Stack]) -> str:
    return " and ".join(f"{experts} of {outputs} by {inputs}" for experts, outputs, inputs in sorted(stacks))


def _tail(module: str) -> str:
    """Return the name from the layer's number on, else all of it; the prefix differs between files and modules."""
    return re.sub(r"^.*?[.]?(?=\b\d+[.])", "", module)


def _by(sizes: tuple[int, ...]) -> str:
    return " by ".join(map(str, sizes))
