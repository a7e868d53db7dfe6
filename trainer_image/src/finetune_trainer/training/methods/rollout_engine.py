"""vLLM as the engine of rollouts: in this process, with a copy of the model that gets the weights after each step."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from finetune_api.status import Resolved
from finetune_trainer.errors import InvalidConfig, one_line

OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def engine_arguments(settings: Resolved, longest_prompt: int, stop_ids: Collection[int]) -> dict[str, Any]:
    """Return TRL's settings of the engine; none without one."""
    if settings.rollouts_gpu_memory_fraction is None:
        return {}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": settings.rollouts_gpu_memory_fraction,
        "vllm_max_model_length": longest_prompt + (settings.max_completion_length or 0),
        # vLLM takes the ends of a text from the model's files, which do not have the chat template's.
        "generation_kwargs": {"stop_token_ids": sorted(stop_ids), "ignore_eos": True},
    }


def require_linear_adapter(model: PreTrainedModel | PeftModel, settings: Resolved) -> None:
    """Refuse an adapter that the engine would get only a part of: whole modules, experts, embeddings, output head."""
    if settings.rollouts_gpu_memory_fraction is None or not isinstance(model, PeftModel):
        return
    ends = [one.weight for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None]
    for name, layer in model.get_base_model().named_modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else None
        is_linear = isinstance(base, torch.nn.Linear) and not any(base.weight is one for one in ends)
        if isinstance(layer, AuxiliaryTrainingWrapper) or (base is not None and not is_linear):
            raise InvalidConfig(
                f"rlhf.rollouts.engine VLLM gets adapters on linear layers inside the model only, and {name} is "
                "trained: change tuning.lora or tuning.initialAdapter, or set engine Transformers"
            )


@contextmanager
def starting_engine(settings: Resolved) -> Iterator[None]:
    """Report an engine that does not start; remove the layout of ranks that TRL sets for it, which a later process of
    this run would take for its own."""
    if settings.rollouts_gpu_memory_fraction is None:
        yield
        return
    before = {name: os.environ.get(name) for name in OF_RANKS}
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise InvalidConfig(
            f"rlhf.rollouts.engine VLLM: vLLM does not start with this model on this device: "
            f"{one_line(str(error), 500)}: change rlhf.rollouts.gpuMemoryFraction, or set engine Transformers"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def attach_engine(trainer: Any, on_work: Callable[[], None]) -> None:
    """Call `on_work` for each token that the engine samples, and give it an adapter without rounding the base."""
    generation = trainer.vllm_generation
    engine = generation.llm.llm_engine
    step = engine.step

    def work() -> Any:
        on_work()
        return step()

    engine.step = work
    if isinstance(trainer.model, PeftModel):
        generation._iter_named_params = lambda: merged_tensors(trainer.model)


def merged_tensors(model: PeftModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights with the active adapter merged, one by one, under the base's names.

    TRL merges in place and subtracts again, which changes weights of 16 bits a little at each step.
    """
    base = model.get_base_model()
    layers = {name: one for name, one in base.named_modules() if isinstance(one, BaseTunerLayer)}
    for name, tensor in base.named_parameters():
        owner, is_adapted, rest = name.partition(".base_layer.")
        if is_adapted and rest == "weight":
            yield f"{owner}.weight", _merged(layers[owner], tensor)
        elif is_adapted or not any(name.startswith(f"{layer}.") for layer in layers):
            yield name.replace(".base_layer.", "."), tensor.data


def _merged(layer: BaseTunerLayer, weight: torch.nn.Parameter) -> torch.Tensor:
    """Return the weight with the adapter; the layer keeps its own."""
    kept = weight.data
    layer.merge(safe_merge=True)  # computes in a copy
    merged, weight.data = weight.data, kept
    layer.merged_adapters.clear()
    return merged
