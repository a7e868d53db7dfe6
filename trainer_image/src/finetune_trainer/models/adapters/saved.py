"""The adapter folder as PEFT and vLLM load it, with the tokenizer next to the weights, checked after writing."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from finetune_api.handoff import ADAPTER_WEIGHTS, ExitCode
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.models.adapters.factors import ADAPTER, PREFIX
from finetune_trainer.models.adapters.starts import publish_difference
from finetune_trainer.models.adapters.whole_modules import published_names, require_tied, tied_names
from finetune_trainer.models.files.base_model import TOKENIZER_CONFIG
from finetune_trainer.models.loading import HEAD, trained_tensors
from finetune_trainer.models.tokenizer_class import name_class
from finetune_trainer.tokenization.labeler import Labeler
from finetune_trainer.tokenization.tokenizer import DEFAULT, TEMPLATE_FILE, TEMPLATE_FOLDER, templates_by_name

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
GENERATION_CONFIG = "generation_config.json"
PROCESSOR = "processor_config.json"
"""Settings of the processor of a model for images or sound."""
ZERO_AT_START = (".lora_B.", ".lora_embedding_A")
"""The factors that PEFT starts at zero, so that a fresh adapter changes nothing; for an embedding it is the first."""


def continue_adapter(model: PeftModel, directory: Path) -> None:
    """Copy the weights of an earlier adapter into the new one; every factor must have its counterpart.

    So must every module that is trained in full; the head of a reward model stays unchanged.
    """
    saved = load_file(directory / ADAPTER_WEIGHTS)
    state = get_peft_model_state_dict(model, whole_state(model), save_embedding_layers=False)
    factors = {name: tensor.shape for name, tensor in state.items() if name != f"{PREFIX}{HEAD}"}
    unmatched = sorted(saved.keys() ^ factors.keys())
    unmatched = unmatched or [name for name, shape in factors.items() if saved[name].shape != shape]
    if unmatched:
        raise InvalidConfig(
            f"the adapter of tuning.initialAdapter does not fit the model: {len(unmatched)} weights have no "
            f"counterpart of their size, for example {unmatched[0]}"
        )
    require_tied(model, saved)
    set_peft_model_state_dict(model, saved | {name: state[name] for name in state.keys() - factors.keys()})


def whole_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the tensors that this process holds whole: PEFT would gather a sharded base, in a collective."""
    return {name: tensor for name, tensor in model.state_dict().items() if not isinstance(tensor, DTensor)}


def save_adapter(
    model: PeftModel, directory: Path, base_model: str, revision: str | None = None, *, must_change: bool = True
) -> None:
    """Write config and weights; the config names the base by its URI, or by its name and commit on a hub, never by a
    path of this machine. One that changes nothing is refused, unless it may be of a step of the warm-up."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_model
        config.revision = revision
        config.target_modules = sorted(config.target_modules)  # sets, whose order differs between processes
        config.target_parameters = sorted(config.target_parameters or []) or None
    model.peft_config[ADAPTER].modules_to_save = published_names(model)
    model.save_pretrained(directory, save_embedding_layers=False, state_dict=whole_state(model))
    publish_difference(model, directory, must_change=must_change)
    verify_adapter(directory, expected=len(trained_tensors(model)) + len(tied_names(model)), must_change=must_change)


def verify_adapter(directory: Path, expected: int, *, must_change: bool = True) -> None:
    """Read the file back, and refuse one with missing or infinite tensors or without any change by the training."""
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    moved = [tensor for name, tensor in tensors.items() if any(factor in name for factor in ZERO_AT_START)]
    if len(tensors) != expected:
        raise _broken(f"has {len(tensors)} tensors instead of {expected}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise _broken("has values that are not finite")
    if must_change and not any(bool(tensor.count_nonzero()) for tensor in moved):
        raise _broken("changes nothing: every factor that starts at zero is still zero")


def save_tokenizer(model_directory: Path, directory: Path, labeler: Labeler) -> None:
    """Copy the tokenizer's files, and write the chat templates that the training used.

    Its configuration, and that of a processor next to it, is changed only if it has other templates: some readers, such
    as llama.cpp's converter and transformers' processors, prefer those to the files of templates. Or if it names a
    class that reads other tokens.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (model_directory / name).is_file():
            shutil.copyfile(model_directory / name, directory / name)
    for configuration in (directory / TOKENIZER_CONFIG, directory / PROCESSOR):
        config = json.loads(configuration.read_bytes()) if configuration.is_file() else {}
        if "chat_template" in config and templates_by_name(config["chat_template"]) != labeler.templates:
            del config["chat_template"]
            configuration.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    name_class(directory, labeler)
    for name, template in labeler.templates.items():
        path = directory / (TEMPLATE_FILE if name == DEFAULT else f"{TEMPLATE_FOLDER}/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")


def save_generation_config(model_directory: Path, directory: Path, stop_ids: Sequence[int]) -> None:
    """Write the base's generation settings with the tokens that end an answer.

    A chat template may end answers with another token than the base does, and then a server would not stop there.
    """
    path = model_directory / GENERATION_CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):  # transformers ignores such a file, too
        found = {}
    settings = (found if isinstance(found, dict) else {}) | ({"eos_token_id": list(stop_ids)} if stop_ids else {})
    (directory / GENERATION_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _broken(what: str) -> TrainerError:
    return TrainerError(ExitCode.INTERNAL_ERROR, f"the saved adapter {what}")
