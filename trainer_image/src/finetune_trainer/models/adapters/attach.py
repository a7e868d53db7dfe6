"""The adapter on a model: which modules get it, and which may not."""

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.status import Resolved
from finetune_api.tuning import InitLoraWeights
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.patterns import require_expressions, require_matches, require_one_value
from finetune_trainer.models.adapters.starts import lora_layers
from finetune_trainer.models.adapters.target_names import refuse_excluded, require_adapted
from finetune_trainer.models.adapters.whole_modules import choose_whole_modules, keep_whole_modules
from finetune_trainer.models.adapters.whole_names import refuse_adapter_on_head
from finetune_trainer.models.architectures import text_modules, text_prefix
from finetune_trainer.models.experts import expert_parameters, expert_targets, require_every_stack
from finetune_trainer.models.memory.shape import UNADAPTED_LAYERS, ends_in

FIRST_VALUES: dict[str, bool | str] = {InitLoraWeights.GAUSSIAN: "gaussian"}
"""PEFT's names of the first values of an adapter."""
MAMBA_TYPES = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
MAMBA_OUTPUT = frozenset({"out_proj"})
"""PEFT refuses it in the types above, whose kernels read its weight without the adapter."""


def attach_adapter(model: PreTrainedModel, settings: Resolved) -> PeftModel:
    """Put a fresh LoRA adapter on the model, and copies of the modules that are trained in full, its weights in FP32;
    untrained, it changes nothing.

    The names of experts' parameters are those of PEFT's documentation, so that plain PEFT loads what is published.
    """
    require_expressions(settings)
    prefix = text_prefix(model)
    parameters = expert_parameters(model) if settings.target_experts else None
    targets = _choose_targets(model, settings.target_modules)
    excluded = settings.exclude_modules or []
    adapted_names = {
        name for name, _ in model.named_modules() if ends_in(name, targets) and not ends_in(name, excluded)
    }
    whole = choose_whole_modules(model, settings.modules_to_save or [], adapted_names)
    config = LoraConfig(
        r=settings.lora_rank or 16,
        lora_alpha=settings.lora_alpha or 32,
        rank_pattern=dict(settings.rank_pattern or {}),
        alpha_pattern=dict(settings.alpha_pattern or {}),
        lora_dropout=settings.lora_dropout or 0.0,
        use_rslora=bool(settings.use_rslora),
        target_modules=[name for name in targets if name not in excluded],
        target_parameters=parameters,
        exclude_modules=_excluded(model, prefix, excluded),
        **whole,
        use_dora=bool(settings.use_dora),
        init_lora_weights=FIRST_VALUES.get(str(settings.init_lora_weights), True),
        bias="none",
        task_type="SEQ_CLS" if scores_text(model) else "CAUSAL_LM",
    )
    torch.manual_seed(settings.seed or 0)
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, AttributeError) as error:  # the latter of embeddings that PEFT does not find to tie
        raise InvalidConfig(f"tuning.lora does not fit the model: {error}") from error
    keep_whole_modules(adapted)
    _require_excluded(adapted, targets, excluded)
    modules = [name for name, _ in lora_layers(adapted)]
    require_matches(settings, modules)
    require_one_value(settings, modules)
    if parameters:
        require_every_stack(adapted)
    return adapted


def _excluded(model: PreTrainedModel, prefix: str, named: Sequence[str]) -> str | None:
    """Return the pattern of modules without an adapter: those outside the text decoder, and those that the job names
    by the end of their name."""
    towers = [f"(?!{re.escape(prefix)}|{_head_name(model)}$).*"] if prefix else []
    ends = [rf"(.*\.)?({'|'.join(map(re.escape, named))})"] if named else []
    return "|".join(f"({one})" for one in [*towers, *ends]) or None


def _require_excluded(adapted: PeftModel, targets: Sequence[str], excluded: Sequence[str]) -> None:
    """Refuse a name that excludes nothing: it is misspelt, or has no adapter anyway."""
    names = [name for name, _ in adapted.get_base_model().named_modules() if ends_in(name, targets)]
    for one in excluded:
        if not any(ends_in(name, [one]) for name in names):
            refuse_excluded(one)


def require_named_targets(model: PeftModel, named: Sequence[str], excluded: Sequence[str]) -> None:
    """Refuse a module that the job names and the model does not have, which PEFT ignores next to others."""
    adapted = {name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)}
    require_adapted([name for name in named if name not in excluded], adapted)


def _choose_targets(model: PreTrainedModel, named: list[str] | None) -> list[str]:
    """Return the names of the modules to adapt: of all linear layers without those that PEFT applies to experts."""
    names = named or linear_targets(model)
    of_experts = expert_targets(model, names)
    if named and of_experts:
        raise InvalidConfig(
            f"tuning.lora.targetModules names {', '.join(of_experts)}, which PEFT applies to the experts or the router "
            f"of a {model.config.model_type}: remove these names, and set tuning.lora.targetExperts for an adapter on "
            "the experts"
        )
    return [name for name in names if name not in of_experts]


def scores_text(model: PreTrainedModel) -> bool:
    """Return whether the model has a score instead of the language head."""
    return type(model).__name__.endswith("ForSequenceClassification")


def require_plain_head(model: PeftModel) -> None:
    """Refuse an adapter on the output head of a model that writes text."""
    head = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        refuse_adapter_on_head(next(name for name, module in model.get_base_model().named_modules() if module is head))


def refuse_tied_merge(model: PeftModel) -> None:
    """Refuse a merge into one of two tied weights: it would change the other too, and with it the answers."""
    base = model.get_base_model()
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    if base.config.tie_word_embeddings and any(isinstance(module, BaseTunerLayer) for module in embeddings):
        raise InvalidConfig(
            "this model's input and output embeddings are one tensor, and an adapter on them cannot be merged: "
            "remove them from tuning.lora.targetModules, or set output.merge None"
        )


def linear_targets(model: PreTrainedModel) -> list[str]:
    """Return the names of the text decoder's linear layers that get an adapter: all except the output head and expert
    routers.

    GPT-2 and its relatives implement a linear layer as Conv1D.
    """
    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in text_modules(model)
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }
    unmatched = MAMBA_OUTPUT if model.config.model_type in MAMBA_TYPES else frozenset()
    # The last name of a layer in a list is a number, which would match each block of the model as well.
    return sorted(name for name in names - UNADAPTED_LAYERS - unmatched if not name.isdigit())


def _head_name(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next((re.escape(name) for name, module in model.named_modules() if module is head), "lm_head")
