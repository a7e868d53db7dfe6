"""Workarounds for what transformers, accelerate, TRL and bitsandbytes do otherwise."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import convert_outputs_to_fp32
from transformers import TrainingArguments

from finetune_trainer.models.loading import trained_tensors
from finetune_trainer.peft_base import find_base

REPLICATED = "_replicated_grad_hook_registered"
"""The library's mark on a parameter whose gradients it averages."""


def load_pages(optimiser: Any, saved: dict[str, Any]) -> None:
    """Load the state of a paged optimiser into pages, which the library makes as in the first step. Its own way moves
    all of the state to the GPU, which may not hold it, and leaves it there."""
    optimiser.load_state_dict(saved, move_to_device=False)
    loaded = dict(optimiser.state)
    optimiser.state.clear()
    optimiser.check_overrides()  # which weights have a state of 32 bits
    for number, group in enumerate(optimiser.param_groups):
        for at, parameter in enumerate(group["params"]):
            if values := loaded.pop(parameter, None):
                optimiser.init_state(group, parameter, number, at)
                made = optimiser.state[parameter]
                for name, value in values.items():
                    made[name] = made[name].copy_(value) if isinstance(value, torch.Tensor) else value


def drop_overrides() -> None:
    """Empty bitsandbytes' list of the embeddings whose optimiser state has 32 bits: it would keep them, and their GPU
    memory, as long as the process runs, and another training's weights in the same places would have 32 bits too."""
    if optimisers := sys.modules.get("bitsandbytes.optim"):
        optimisers.GlobalOptimManager.get_instance().initialize()


def drop_hooks(model: torch.nn.Module) -> None:
    """Remove the hooks by which the library averages the gradients of an adapter on a sharded base: they refer to the
    trainer, in a way that Python's garbage collector does not see, so that the model's memory would never be free."""
    for parameter in model.parameters():
        if getattr(parameter, REPLICATED, False):
            parameter._post_accumulate_grad_hooks.clear()
            delattr(parameter, REPLICATED)


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Leave further GPUs that this process sees alone: the library would replicate the model on them, which TRL
    refuses. Several GPUs have a process each."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def cast_forward(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Compute in the number format of the training from now on, with outputs in FP32. accelerate does so from the first
    step on, but the baseline, the reference and the checks come before it, and must have the same rounding."""
    if accelerator.native_amp:
        cast: Callable[..., Any] = accelerator.autocast()(model.forward)
        model.forward = convert_outputs_to_fp32(cast)


def switch_off_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off in functions too. TRL switches off modules of it alone, and some models, such as OPT and
    StarCoder 2, call the function with a number that one of their modules has."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)


def keep_input_hook(model: torch.nn.Module) -> None:
    """Add the hook by which gradients reach the first checkpointed layer only if there is none. TRL switches
    checkpointing off and on again around each sampling, and transformers adds another hook each time."""
    base: Any = find_base(model)
    add_hook = base.enable_input_require_grads

    def add_first_hook() -> None:
        if not getattr(base, "_require_grads_hooks", None):
            add_hook()

    base.enable_input_require_grads = add_first_hook


def leave_out_router_logits(model: torch.nn.Module) -> None:
    """Return the routers' logits of a mixture only where a loss asks for them. TRL sets them for every pass of an SFT
    model, and transformers' loss of them fails for the answers of a batch, whose mask is longer than their tokens."""
    config: Any = model.config
    text = config.get_text_config()
    if hasattr(text, "output_router_logits"):
        text.output_router_logits = False


@contextmanager
def without_router_loss(trainer: Any) -> Iterator[None]:
    """Leave the loss that balances the experts of a mixture out: TRL adds it to a held-out loss too."""
    is_added = getattr(trainer, "aux_loss_enabled", False)
    trainer.aux_loss_enabled = False
    try:
        yield
    finally:
        trainer.aux_loss_enabled = is_added


@contextmanager
def local_metrics(accelerator: Any) -> Iterator[None]:
    """Make TRL's metrics those of this process's batch: TRL gathers as if all processes had the same batches."""
    accelerator.gather = accelerator.gather_for_metrics = lambda figure, **_: figure
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


@contextmanager
def without_hash(trainer: type) -> Iterator[None]:
    """Leave out TRL's digest of a model that is its own reference: it fails for shards, copies every weight from the
    GPU, and names a cache that is not used here."""
    modules: list[Any] = [sys.modules[kind.__module__] for kind in trainer.__mro__]
    (library,) = (module for module in modules if hasattr(module, "hash_module"))
    own, library.hash_module = library.hash_module, lambda _: ""
    try:
        yield
    finally:
        library.hash_module = own


@contextmanager
def keep_in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Restore a quantised model's trained weights in FP32 after the block."""
    if not getattr(model, "is_loaded_in_4bit", False):
        yield
        return
    before = {name: parameter.detach().clone() for name, parameter in trained_tensors(model).items()}
    yield
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = before[name].float()
