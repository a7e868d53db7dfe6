"""Which architectures can be trained, by a table that `make architectures` measures; nothing is imported or loaded."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.objectives import SAMPLED
from finetune_api.spec import Method
from finetune_trainer.errors import InvalidConfig

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("architectures.json")
ADVICE = "use a model whose architecture docs/architectures.md lists as trained"
OURS = "our check"
REWARD_MODEL = "RewardModel"
READS_PADDING = frozenset(
    {
        *("BartForCausalLM", "BigBirdPegasusForCausalLM", "BlenderbotForCausalLM", "BlenderbotSmallForCausalLM"),
        *("DeepseekV4ForCausalLM", "MBartForCausalLM", "MarianForCausalLM", "MvpForCausalLM", "PLBartForCausalLM"),
        *("PegasusForCausalLM", "RecurrentGemmaForCausalLM", "ReformerModelWithLMHead"),
        *("RwkvForCausalLM", "TrOCRForCausalLM", "WhisperForCausalLM", "xLSTMForCausalLM"),
    }
)
"""Architectures whose answer to a prompt depends on the padding before it."""
YES = "yes"


@dataclass(frozen=True)
class Architecture:
    """One class of transformers as it was tried; a reason is None for what succeeded."""

    name: str
    is_tried: bool
    refused: str | None = None
    lora: str | None = None
    qlora: str | None = None
    experts: str | None = None
    scores: str | None = None


@cache
def read_table() -> dict[str, Any]:
    """Return the table: the version of transformers, its architectures, and the automatic class of each model type."""
    content: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return content


def require_trainable(config: Mapping[str, Any], objective: str, *, field: str = "spec.model") -> None:
    """Refuse a model that cannot be trained, by the `config.json` of its folder; raises InvalidConfig.

    `field` is the one that names the model.
    """
    found = find_architecture(config, field)
    if found.refused:
        _refuse(config, f"it cannot be trained ({found.refused})", field=field)
    if objective == REWARD_MODEL and found.scores:
        _refuse(config, f"it has no reward model ({found.scores})")
    if objective in SAMPLED and found.name in READS_PADDING:
        why = "its answers depend on the padding that aligns prompts of different lengths"
        _refuse(config, f"it cannot be trained with objective {objective} ({why})", field=field)
    if not found.is_tried:
        logger.warning("%s was not tried with transformers %s: it may fail in training", found.name, _version())


def require_method(config: Mapping[str, Any], method: str | None) -> None:
    """Refuse a method that fails with the architecture, where another one trains it; raises InvalidConfig."""
    found = find_architecture(config)
    if method in {Method.LORA, Method.QLORA} and found.lora:
        _refuse(config, f"no adapter can be put on it ({found.lora})", "use tuning.method Full, or")
    if method == Method.QLORA and found.qlora:
        _refuse(config, f"it cannot be trained with tuning.method QLoRA ({found.qlora})", "use tuning.method LoRA, or")


def require_adapter_on_experts(config: Mapping[str, Any]) -> None:
    """Refuse an adapter on experts that fails with the architecture; raises InvalidConfig."""
    found = find_architecture(config)
    if found.experts:
        _refuse(
            config, f"no adapter can be put on its experts ({found.experts})", "remove tuning.lora.targetExperts, or"
        )


def find_architecture(config: Mapping[str, Any], field: str = "spec.model") -> Architecture:
    """Return the architecture that training loads: the first one of `architectures` that transformers names for text,
    else the automatic class of the model type; raises InvalidConfig if there is none."""
    table, names = read_table(), _names(config)
    for name in names:
        if name in table["architectures"]:
            return _read(name, table["architectures"][name])
        if name in table["others"]:
            return Architecture(name, is_tried=False, refused=table["others"][name])
    automatic = table["automatic"].get(config.get("model_type"))
    if automatic is None:
        _refuse(config, f"transformers {table['transformers']} of this image has no such language model", field=field)
    return _read(automatic, table["architectures"][automatic])


def _read(name: str, entry: Mapping[str, Any]) -> Architecture:
    if entry["result"] == "refused":
        by = "" if entry["by"] == OURS else f"{entry['by']}: "
        return Architecture(name, is_tried=True, refused=f"{by}{entry['reason']}")
    experts = None if entry.get("experts") == YES else entry.get("experts")
    reasons = {"lora": entry.get("lora"), "qlora": entry.get("qlora"), "scores": entry.get("rewardModel")}
    return Architecture(name, is_tried=entry["result"] == "trained", experts=experts, **reasons)


def _names(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _version() -> str:
    return str(read_table()["transformers"])


def _refuse(config: Mapping[str, Any], why: str, advice: str = "", *, field: str = "spec.model") -> NoReturn:
    names = ", ".join(_names(config)) or "no architecture"
    named = f"config.json of {field} names {names} (model type {config.get('model_type') or 'none'})"
    remedy = f"{advice} {ADVICE}".strip()
    raise InvalidConfig(f"{named}: {why}. {remedy[0].upper()}{remedy[1:]}")
