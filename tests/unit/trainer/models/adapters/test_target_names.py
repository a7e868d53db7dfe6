"""Names of modules for an adapter, against the names in a model's files."""

from dataclasses import replace
from typing import Any

import pytest
from model_shapes import LLAMA_8B, shape_of

from finetune_api.tuning import Lora
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.target_names import require_adapted, require_targets

LLAMA = shape_of(LLAMA_8B)


def lora(**names: Any) -> Lora:
    return Lora(**names)


@pytest.mark.parametrize(
    "names",
    [
        {"target_modules": ["q_proj", "layers.0.mlp.down_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"exclude_modules": ["q_proj"]},
        {"rank_pattern": {"q_proj": 4, r"layers\.0\..*_proj": 8}},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.3.self_attn.o_proj"]},
        {},
    ],
)
def test_names_of_layers_are_accepted(names: dict[str, Any]) -> None:
    require_targets(lora(**names), LLAMA)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({"target_modules": ["q_proj", "qkv_proj"]}, "targetModules names qkv_proj, .* it has down_proj, gate_proj, k"),
        ({"target_modules": ["q_proj", "input_layernorm"]}, "targetModules names input_layernorm"),
        ({"exclude_modules": ["qkv_proj"]}, "excludeModules names qkv_proj"),
        ({"rank_pattern": {"q_porj": 4}}, "rankPattern names q_porj, which matches no module with an adapter"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"k_proj": 4}}, "alphaPattern names k_proj"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["k_proj"]}, "excludeModules names k_proj"),
    ],
)
def test_other_names_are_refused(names: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfig, match=problem.replace(".* ", r".*\(")):
        require_targets(lora(**names), LLAMA)


def test_files_that_may_name_the_layers_differently_are_left_to_the_trainer() -> None:
    require_targets(lora(target_modules=["q_proj", "qkv_proj"]), replace(LLAMA, model_type="unknown"))
    with pytest.raises(InvalidConfig, match=r"names qkv_proj, .*of those named, the model has q_proj\)"):
        require_adapted(["q_proj", "qkv_proj"], ["model.layers.0.self_attn.q_proj"])
