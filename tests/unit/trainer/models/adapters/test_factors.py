"""The names of an adapter's tensors, and which of them hold one factor for each expert."""

import pytest

from finetune_trainer.models.adapters.factors import experts_module, is_of_experts, parse_factor

PREFIX = "base_model.model."


@pytest.mark.parametrize(
    ("name", "module", "is_first"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj", True),
        ("model.layers.0.mlp.experts.lora_B.weight", "model.layers.0.mlp.experts", False),
        ("model.layers.0.mlp.experts.base_layer.lora_A.weight", "model.layers.0.mlp.experts.base_layer", True),
        ("model.embed_tokens.lora_embedding_B", "model.embed_tokens", False),
    ],
)
def test_a_factor_has_its_module_and_its_side(name: str, module: str, is_first: bool) -> None:
    factor = parse_factor(PREFIX + name)
    assert factor
    assert (factor.module, factor.is_first) == (module, is_first)


@pytest.mark.parametrize("name", ["model.norm.weight", f"{PREFIX}score.weight", f"{PREFIX}model.q_proj.lora_C.weight"])
def test_other_tensors_are_no_factors(name: str) -> None:
    assert parse_factor(name) is None


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.0.mlp.experts", True),
        ("model.layers.0.mlp.experts.base_layer", True),
        ("model.layers.0.mlp.experts.base_layer.base_layer", True),
        ("model.layers.0.mlp.shared_experts", False),
        ("model.layers.0.mlp.experts.0.w1", False),
        ("model.layers.0.mlp.experts.router", False),
    ],
)
def test_experts_are_a_module_of_that_name_and_what_wraps_it(module: str, expected: bool) -> None:
    assert is_of_experts(module) is expected
    assert not expected or experts_module(module) == "model.layers.0.mlp.experts"
