"""Names of modules that are trained in full, against the modules of models that are not here."""

import pytest
from model_shapes import LLAMA_8B, shape_of

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.whole_names import agree, require_whole_modules, whole_tensors
from finetune_trainer.models.memory.shape import ModelShape, Tensors, read_shape

TOWER: Tensors = {
    "vision_tower.layers.0.fc.weight": (8, 8),
    "vision_tower.norm.weight": (8,),
    "model.layers.0.mlp.gate.weight": (4, 8),
    "model.layers.0.mlp.experts.0.w1.weight": (8, 8),
    "model.norm.weight": (8,),
}


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape_of(LLAMA_8B)


def shape_with(more: Tensors, *, tied: bool = False) -> ModelShape:
    head: Tensors = {} if tied else {"lm_head.weight": (100, 8)}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 100}
    found = read_shape({"model_type": "llama"} | sizes, {"model.embed_tokens.weight": (100, 8), **head, **more})
    assert found
    return found


def refusal(names: list[str], shape: ModelShape, *, in_4_bits: bool = False, writes_text: bool = True) -> str:
    with pytest.raises(TrainerError) as caught:
        require_whole_modules(names, shape, shape.adapted(["q_proj"]), in_4_bits=in_4_bits, writes_text=writes_text)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert caught.value.message.startswith("tuning.lora.modulesToSave names ")
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("embeddings", "does not have: name model.embed_tokens, model.norm, lm_head, or a module of a layer"),
        ("mlp", "holds other modules: name those with weights, for example model.layers.0.mlp.gate_proj"),
        ("norm", "by which PEFT would also train model.layers.0.input_layernorm: write more of the name, for example "
                 "model.norm"),
        ("layers.3.self_attn.q_proj", "also gets an adapter (model.layers.3.self_attn.q_proj): add it to tuning.lora."),
    ],
)  # fmt: skip
def test_a_name_that_does_not_fit_is_refused_with_what_exists(llama: ModelShape, name: str, why: str) -> None:
    assert why in refusal([name], llama)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("norm", "in a part for images or sound (vision_tower.norm)"),
        ("vision_tower.norm", "in a part for images or sound"),
        ("gate", "a router or experts (model.layers.0.mlp.gate)"),
        ("w1", "a router or experts (model.layers.0.mlp.experts.0.w1)"),
    ],
)
def test_towers_routers_and_experts_are_not_trained_in_full(name: str, why: str) -> None:
    assert why in refusal([name], shape_with(TOWER))


def test_a_layer_in_4_bits_and_the_head_of_a_model_that_writes_no_text_are_refused(llama: ModelShape) -> None:
    assert "in 4 bits under QLoRA" in refusal(["layers.3.mlp.down_proj"], llama, in_4_bits=True)
    assert "does not have" in refusal(["lm_head"], llama, writes_text=False)
    names = ["embed_tokens", "lm_head", "model.norm", "layers.3.mlp.down_proj"]
    require_whole_modules(names, llama, [], in_4_bits=False, writes_text=True)


def test_embeddings_of_other_names_get_no_adapter_by_default() -> None:
    found = read_shape(
        {"model_type": "bloom", "hidden_size": 8, "n_layer": 1, "n_head": 1, "vocab_size": 100},
        {"word_embeddings.weight": (100, 8), "h.0.self_attention.dense.weight": (8, 8)},
    )
    assert found
    names = ["transformer.word_embeddings"]
    require_whole_modules(names, found, found.adapted(None), in_4_bits=True, writes_text=True)
    assert list(whole_tensors(names, found)) == ["word_embeddings.weight"]


def test_a_tied_head_is_the_embeddings() -> None:
    tied = shape_with({}, tied=True)
    require_whole_modules(["lm_head"], tied, [], in_4_bits=True, writes_text=True)
    for names in (["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]):
        assert whole_tensors(names, tied) == {"model.embed_tokens.weight": (100, 8)}
    assert len(whole_tensors(["lm_head", "embed_tokens"], shape_with({}))) == 2
    assert whole_tensors(["transformer.model.embed_tokens"], tied), "the files omit a prefix"


@pytest.mark.parametrize(
    ("names", "modules", "is_tied", "expected"),
    [
        (["embed_tokens"], ["model.embed_tokens"], False, True),
        (["embed_tokens"], ["lm_head", "model.embed_tokens"], True, True),
        (["embed_tokens"], ["lm_head", "model.embed_tokens"], False, False),
        (["embed_tokens", "norm"], ["lm_head", "model.embed_tokens"], True, False),
        (["embed_tokens"], [], False, False),
    ],
)
def test_a_job_and_an_adapter_agree_on_the_modules(
    names: list[str], modules: list[str], is_tied: bool, expected: bool
) -> None:
    assert agree(names, modules, is_tied=is_tied) is expected
