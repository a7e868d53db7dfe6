"""A model that cannot be trained is refused in preflight, by the name of its architecture."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.trainable import (
    READS_PADDING,
    find_architecture,
    read_table,
    require_adapter_on_experts,
    require_method,
    require_trainable,
)
from finetune_trainer.pipeline.preflight import preflight

VERSION = read_table()["transformers"]
LOADED = """
import sys
from finetune_trainer.models.trainable import require_trainable
require_trainable({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "Chat")
print(sorted({"torch", "transformers"} & sys.modules.keys()))
"""


def refusal(config: dict[str, Any], objective: str = "Chat") -> str:
    with pytest.raises(TrainerError) as caught:
        require_trainable(config, objective)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    return caught.value.message


def test_preflight_refuses_a_bidirectional_encoder_before_it_claims_the_output(world: Any, model_folder: Any) -> None:
    config = {"architectures": ["BertLMHeadModel"], "model_type": "bert"}
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainerError) as caught:
        preflight(world.run)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert "BertLMHeadModel (model type bert)" in caught.value.message
    assert "reads texts in both directions" in caught.value.message
    assert "Use a model whose architecture docs/architectures.md lists as trained" in caught.value.message
    assert not (world.out / "owner.json").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["MPTForCausalLM"], "model_type": "mpt"},
        {"architectures": ["RWForCausalLM"], "model_type": "falcon"},
        {"model_type": "mistral"},
        {"architectures": None, "model_type": "gpt2"},
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"},
    ],
)
def test_models_of_today_and_older_names_are_trained(config: dict[str, Any]) -> None:
    require_trainable(config, "Chat")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "encoder-decoder"),
        ({"architectures": ["BartForConditionalGeneration"], "model_type": "bart"}, "encoder-decoder"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "masked words"),
        ({"architectures": ["RobertaModel"], "model_type": "roberta"}, "in both directions"),
        ({"architectures": ["ModernBertDecoderForCausalLM"]}, "TRL's loss is not that of its logits"),
    ],
)
def test_what_cannot_learn_to_continue_a_text_is_refused_by_name(config: dict[str, Any], why: str) -> None:
    message = refusal(config)
    assert config["architectures"][0] in message
    assert why in message


@pytest.mark.parametrize(
    "config", [{"architectures": ["Brand9ForCausalLM"], "model_type": "brand9"}, {"model_type": "vit"}, {}]
)
def test_an_unknown_architecture_is_refused_with_the_version_of_transformers(config: dict[str, Any]) -> None:
    assert f"transformers {VERSION} of this image has no such language model" in refusal(config)


@pytest.mark.parametrize("objective", ["RLHF", "Distillation"])
def test_a_model_that_reads_the_padding_before_a_prompt_is_not_sampled_from(objective: str) -> None:
    config = {"architectures": ["RecurrentGemmaForCausalLM"], "model_type": "recurrent_gemma"}
    require_trainable(config, "Chat")
    assert f"it cannot be trained with objective {objective} (its answers depend on the padding" in refusal(
        config, objective
    )


def test_the_models_that_read_padding_are_known_by_these_names() -> None:
    names = {name for name, one in read_table()["architectures"].items() if one["result"] == "trained"}
    assert names >= READS_PADDING


def test_a_reward_model_needs_a_class_with_a_score() -> None:
    config = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    assert "it has no reward model" in refusal(config, "RewardModel")
    require_trainable({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "RewardModel")


def architectures_with(key: str) -> list[str]:
    return [name for name, one in read_table()["architectures"].items() if key in one]


def method_refusal(name: str, method: str) -> str:
    with pytest.raises(TrainerError) as caught:
        require_method({"architectures": [name]}, method)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    return caught.value.message


def test_a_method_that_fails_is_refused_and_the_others_are_not() -> None:
    for name in architectures_with("qlora"):
        require_trainable({"architectures": [name]}, "Chat")
        require_method({"architectures": [name]}, "Full")
        assert "Use tuning.method" in method_refusal(name, "QLoRA")
    for name in architectures_with("lora"):
        require_method({"architectures": [name]}, "Full")
        assert "Use tuning.method Full" in method_refusal(name, "LoRA")


def test_experts_that_take_no_adapter_are_refused_with_the_reason_and_others_are_not() -> None:
    table = read_table()["architectures"]
    refused = [name for name in architectures_with("experts") if table[name]["experts"] != "yes"]
    assert "JetMoeForCausalLM" in refused
    for name in refused:
        with pytest.raises(TrainerError) as caught:
            require_adapter_on_experts({"architectures": [name]})
        assert caught.value.code is ExitCode.INVALID_CONFIG
        assert name in caught.value.message
        assert caught.value.message.count("emove tuning.lora.targetExperts") == 1
    for name in ("Qwen3MoeForCausalLM", "LlamaForCausalLM"):
        require_adapter_on_experts({"architectures": [name]})


def test_layers_that_stay_in_16_bits_do_not_refuse_qlora() -> None:
    assert "FalconForCausalLM" in architectures_with("unquantised")
    require_method({"architectures": ["FalconForCausalLM"]}, "QLoRA")


def test_an_architecture_that_was_not_tried_is_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    untried = [name for name, one in read_table()["architectures"].items() if one["result"] == "not tried"]
    with caplog.at_level(logging.WARNING):
        require_trainable({"architectures": untried[:1]}, "Chat")
    assert f"{untried[0]} was not tried with transformers {VERSION}" in caplog.text


def test_the_automatic_class_of_every_model_type_is_in_the_table() -> None:
    for model_type in read_table()["automatic"]:
        assert find_architecture({"model_type": model_type}).name in read_table()["architectures"]


@pytest.mark.process
def test_the_check_imports_no_training_library() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
