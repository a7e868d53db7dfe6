"""Faults of an adapter's files, read with numpy alone and one tensor at a time."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.factors import (
    Factor,
    experts_module,
    find_rank,
    parse_factor,
    parse_magnitude,
)
from finetune_trainer.models.adapters.whole_names import is_of_module, module_of, saved_modules
from finetune_trainer.models.memory.shape import ends_in
from finetune_trainer.storage.hub.uris import SCHEME

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BF16_EXPONENT = 0x7F80
VALUES_AT_ONCE = 16 * 1024 * 1024
MOST_LISTED = 5


def find_adapter_faults(weights: Path, config: bytes, base: str) -> list[str]:
    """Compare the adapter with its own configuration, and that with the base that the lineage names."""
    try:
        asked = json.loads(config)
        tensors, data = _open(weights)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["adapter_config.json or the header of adapter_model.safetensors cannot be read"]
    if not isinstance(asked, dict) or asked.get("peft_type") != "LORA":
        return ["adapter_config.json does not describe a LoRA adapter"]
    try:
        return [*_base_faults(asked, base), *_name_faults(asked, tensors), *_value_faults(tensors, data)]
    except TrainerError as error:  # of a pattern in rank_pattern
        return [error.message]


def _base_faults(asked: Mapping[str, Any], base: str) -> Iterator[str]:
    named = str(asked.get("base_model_name_or_path") or "")
    if base and named.rstrip("/") != base.removeprefix(SCHEME).rstrip("/"):
        yield f"adapter_config.json names the base {named}, but the lineage names {base}"


def _name_faults(asked: Mapping[str, Any], tensors: Mapping[str, Any]) -> Iterator[str]:
    factors = {name: factor for name in tensors if (factor := parse_factor(name))}
    others = [name for name in tensors if name not in factors]
    magnitudes = {name: module for name in others if asked.get("use_dora") and (module := parse_magnitude(name))}
    modules = saved_modules(asked, tensors)
    whole = [name for name in others if name not in magnitudes and is_of_module(name, modules)]
    unknown = [name for name in others if name not in magnitudes and name not in whole]
    yield from _count(unknown, "tensors are not factors of an adapter")
    yield from _rank_faults(asked, tensors, factors)
    if not factors:
        yield "no tensor is a factor of an adapter"
    counts = Counter(factor.module for factor in factors.values())
    single = [module for module, count in counts.items() if count != 2]
    yield from _count(single, "modules lack one of their two factors")
    if asked.get("use_dora"):
        unpaired = sorted(set(magnitudes.values()) ^ counts.keys())
        yield from _count(unpaired, "modules lack either factors or their magnitudes")
    experts = dict.fromkeys(factor.module for factor in factors.values() if factor.is_of_experts)
    linear = [module for module in counts if module not in experts]
    yield from _target_faults(asked.get("target_modules"), linear, [module_of(name) for name in whole])
    yield from _expert_faults(asked.get("target_parameters"), [*experts])


def _count(names: Sequence[str], fault: str) -> Iterator[str]:
    """Yield the fault with the number of names that have it, and the first of them; nothing if none has."""
    if names:
        yield f"{len(names)} {fault}: {', '.join(names[:MOST_LISTED])}"


def _rank_faults(asked: Mapping[str, Any], tensors: Mapping[str, Any], factors: Mapping[str, Factor]) -> Iterator[str]:
    """Yield factors of another rank than the config's, and experts whose two factors have different numbers of them."""
    wrong: list[str] = []
    sides: dict[str, set[int]] = {}
    for name, factor in factors.items():
        size = tensors[name]["shape"]
        if not factor.has_rank(size, find_rank(asked, factor)):
            wrong.append(f"{name} {size}")
        elif factor.is_of_experts:
            sides.setdefault(factor.module, set()).add(size[0 if factor.is_first else 1])
    wrong += [f"{module} ({min(found)} and {max(found)})" for module, found in sides.items() if len(found) > 1]
    yield from _count(wrong, f"tensors do not have the rank {_ranks(asked)} of the config")


def _ranks(asked: Mapping[str, Any]) -> str:
    """Return the rank of the config, and those of its patterns."""
    patterns = asked.get("rank_pattern")
    own = patterns.values() if isinstance(patterns, dict) else ()
    return " or ".join(dict.fromkeys(str(rank) for rank in (asked.get("r"), *own)))


def _expert_faults(targets: Any, adapted: list[str]) -> Iterator[str]:
    """Yield modules of experts that have more or fewer pairs of factors than the config targets parameters."""
    parameters = [str(name) for name in targets] if isinstance(targets, list) else []
    counts = Counter(map(experts_module, adapted))
    other = [f"{module} ({count})" for module, count in counts.items() if count != len(parameters)]
    yield from _count(
        other, f"modules of experts do not have a pair of factors for each of {len(parameters)} target_parameters"
    )
    if parameters and not counts:
        yield f"target_parameters without a tensor: {', '.join(parameters)}"


def _target_faults(targets: Any, modules: list[str], whole: list[str]) -> Iterator[str]:
    """Yield modules that the config does not target, and targets that have neither a factor nor, like the head of a
    reward model, a whole saved module. A pattern must match in full, as in PEFT."""
    if isinstance(targets, str):
        others = [one for one in modules if not re.fullmatch(targets, one)] if targets != "all-linear" else []
        missing: list[str] = []
    else:
        ends = [str(one) for one in targets or []]
        others = [one for one in modules if not ends_in(one, ends)]
        found = [*modules, *whole]
        missing = [end for end in ends if not any(ends_in(one, [end]) for one in found)]
    yield from _count(others, "modules are not in target_modules")
    if missing:
        yield f"target_modules without a tensor: {', '.join(missing[:MOST_LISTED])}"


def _value_faults(tensors: Mapping[str, Any], data: np.memmap[Any, Any]) -> Iterator[str]:
    infinite, moved, starts = [], False, False
    for name, tensor in tensors.items():
        factor = parse_factor(name)
        is_start = factor is not None and factor.is_zero_at_start
        starts = starts or is_start
        for values in _values(tensor, data):
            if tensor["dtype"] == "BF16":
                is_finite = bool(((values & BF16_EXPONENT) != BF16_EXPONENT).all())
                is_zero = not (values & 0x7FFF).any()
            else:
                is_finite, is_zero = bool(np.isfinite(values).all()), not values.any()
            moved = moved or (is_start and not is_zero)
            if not is_finite:
                infinite.append(name)
                break
    yield from _count(infinite, "tensors have values that are not finite")
    if starts and not moved:
        yield "it changes nothing: every factor that starts at zero is still zero"


def _open(path: Path) -> tuple[dict[str, Any], "np.memmap[Any, Any]"]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, path.stat().st_size)))
    header.pop("__metadata__", None)
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    for tensor in header.values():
        begin, end = tensor["data_offsets"]
        if not 0 <= begin <= end <= len(data) or (end - begin) % np.dtype(DTYPES[tensor["dtype"]]).itemsize:
            raise ValueError("a tensor is outside the file")
    return header, data


def _values(tensor: Mapping[str, Any], data: "np.memmap[Any, Any]") -> Iterator[Any]:
    """Yield the values of one tensor, a part at a time."""
    begin, end = tensor["data_offsets"]
    values = data[begin:end].view(DTYPES[tensor["dtype"]])
    for at in range(0, len(values), VALUES_AT_ONCE):
        yield values[at : at + VALUES_AT_ONCE]
