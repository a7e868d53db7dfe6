"""Names of modules for an adapter, against the names in a model's files."""

from dataclasses import replace

import pytest
from model_shapes import LLAMA_8B, shape_of

from finetune_api.tuning import Lora
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.target_names import require_adapted, require_targets

LLAMA = shape_of(LLAMA_8B)


def lora(**names: list[str]) -> Lora:
    return Lora(**names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names",
    [
        {"target_modules": ["q_proj", "layers.0.mlp.down_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"exclude_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.3.self_attn.o_proj"]},
        {},
    ],
)
def test_names_of_layers_are_accepted(names: dict[str, list[str]]) -> None:
    require_targets(lora(**names), LLAMA)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"target_modules": ["q_proj", "qkv_proj"]}, "targetModules names qkv_proj, .* it has down_proj, gate_proj, k"),
        ({"target_modules": ["q_proj", "input_layernorm"]}, "targetModules names input_layernorm"),
        ({"exclude_modules": ["qkv_proj"]}, "excludeModules names qkv_proj"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["k_proj"]}, "excludeModules names k_proj"),
    ],
)
def test_other_names_are_refused(names: dict[str, list[str]], problem: str) -> None:
    with pytest.raises(InvalidConfig, match=problem.replace(".* ", r".*\(")):
        require_targets(lora(**names), LLAMA)


def test_files_that_may_name_the_layers_differently_are_left_to_the_trainer() -> None:
    require_targets(lora(target_modules=["q_proj", "qkv_proj"]), replace(LLAMA, model_type="unknown"))
    with pytest.raises(InvalidConfig, match=r"names qkv_proj, .*of those named, the model has q_proj\)"):
        require_adapted(["q_proj", "qkv_proj"], ["model.layers.0.self_attn.q_proj"])
