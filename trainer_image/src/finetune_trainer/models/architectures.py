"""The class of a model, as its config names it, and the part of it that reads and writes text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from finetune_trainer.errors import InvalidConfig

WRITERS = (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)


def find_class(directory: Path) -> Any:
    """Return the class that config.json names, so that the model keeps its towers for images and sound.

    The automatic class for text would load the decoder alone of some models, and others not at all. It remains for
    configs whose name transformers does not have, which are those of older models.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    names = config.architectures or []
    known = {name for mapping in WRITERS for name in _listed(mapping.get(config.model_type))}
    for name in names:
        if name in known:
            return getattr(transformers, name)
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    raise InvalidConfig(
        f"a model of type {config.model_type} ({', '.join(names) or 'no architecture'}) does not write text in "
        f"transformers {transformers.__version__}: choose a causal language model"
    )


def name_loader(directory: Path) -> str:
    """Return the name of the class with which Python loads the same model: the automatic one, if it chooses that."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    name: str = find_class(directory).__name__
    is_chosen = name in _listed(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type))
    return AutoModelForCausalLM.__name__ if is_chosen else name


def text_modules(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the modules of the text decoder, and for a model without towers all modules, by their full names."""
    prefix = text_prefix(model)
    for name, module in model.named_modules():
        if name.startswith(prefix):
            yield name, module


def text_prefix(model: PreTrainedModel) -> str:
    """Return how the names of the text decoder's modules begin; empty for a model without towers."""
    if not _has_towers(model.config):
        return ""
    decoder = model.get_decoder()
    found = [name for name, module in model.named_modules() if module is decoder]
    if not found or not found[0]:
        raise InvalidConfig(
            f"the text decoder of {type(model).__name__} was not found among its other parts: choose a model of text"
        )
    return f"{found[0]}."


def _has_towers(config: PreTrainedConfig) -> bool:
    return config.get_text_config() is not config


def _listed(names: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
