"""The tensors of a LoRA adapter: their names, and those on the experts of a mixture; without torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.adapters.patterns import find_value
from finetune_trainer.models.memory.shape import EXPERTS

PREFIX = "base_model.model."
ADAPTER = "default"
"""PEFT's name for a model's first adapter."""
WRAPPED = ".base_layer"
"""PEFT's name for what an adapter wraps. A second parameter of one module is wrapped inside the first one's adapter."""
FIRST = ("A.weight", "embedding_A")
ZERO_AT_START = ("B.weight", "embedding_A")
"""The factors that PEFT starts at zero, so that a fresh adapter changes nothing; for an embedding it is the first."""
_FACTOR = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<kind>A\.weight|B\.weight|embedding_A|embedding_B)")
_MAGNITUDE = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_magnitude_vector(\.weight)?")
_OF_EXPERTS = re.compile(rf"(.+\.)?{EXPERTS}({re.escape(WRAPPED)})*")


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the two matrices of a low-rank update, of the module with this name."""

    module: str
    kind: str

    @property
    def is_first(self) -> bool:
        """Whether it is the factor that is applied to the input."""
        return self.kind in FIRST

    @property
    def is_zero_at_start(self) -> bool:
        """Whether a fresh adapter has zeros in it."""
        return self.kind in ZERO_AT_START

    @property
    def is_of_experts(self) -> bool:
        """Whether it holds a factor for each expert of a mixture, one after the other."""
        return is_of_experts(self.module)

    def has_rank(self, size: Sequence[int], rank: object) -> bool:
        """Return whether a tensor of that size has the rank; on experts it has a multiple: the rank of each expert."""
        if len(size) != 2 or not isinstance(rank, int) or rank < 1:
            return False
        side = size[0 if self.is_first else 1]
        return side % rank == 0 if self.is_of_experts else side == rank


def find_rank(config: Mapping[str, Any], factor: Factor) -> object:
    """Return the rank that an adapter's config gives the module of a factor; raises InvalidConfig."""
    patterns = config.get("rank_pattern")
    return find_value(patterns if isinstance(patterns, dict) else {}, factor.module, config.get("r"))


def parse_factor(name: str) -> Factor | None:
    """Return the factor that a tensor of an adapter's file holds; None for any other tensor."""
    found = _FACTOR.fullmatch(name)
    return Factor(found["module"], found["kind"]) if found else None


def parse_magnitude(name: str) -> str | None:
    """Return the module whose magnitudes (DoRA) a tensor of an adapter's file holds; None for any other tensor."""
    found = _MAGNITUDE.fullmatch(name)
    return found["module"] if found else None


def no_experts_error(model: str) -> TrainerError:
    """Return the error of a model without experts that an adapter could be put on."""
    return InvalidConfig(f"the model {model} has no experts; remove tuning.lora.targetExperts")


def is_of_experts(module: str) -> bool:
    """Return whether the module with this name holds the experts of a mixture, or an adapter around them."""
    return _OF_EXPERTS.fullmatch(module) is not None


def experts_module(module: str) -> str:
    """Return the name of the module of experts under its adapters."""
    return module.replace(WRAPPED, "")


def are_of_experts(parameters: Iterable[object]) -> bool:
    """Return whether `target_parameters` of an adapter's config names parameters of experts alone."""
    return all(isinstance(name, str) and name.split(".")[-2:-1] == [EXPERTS] for name in parameters)
