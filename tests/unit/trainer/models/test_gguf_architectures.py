"""Preflight refuses GGUF files of a model that llama.cpp cannot convert."""

from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.gguf_architectures import require_convertible


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        {"model_type": "qwen3"},
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},
    ],
)
def test_what_llama_cpp_knows_is_accepted(config: dict[str, Any]) -> None:
    require_convertible(config)


def test_another_architecture_is_refused_by_name_with_the_version() -> None:
    with pytest.raises(TrainerError, match=r"llama-cpp-python \d.*cannot convert BioGptForCausalLM") as refused:
        require_convertible({"architectures": ["BioGptForCausalLM"], "model_type": "biogpt"})
    assert refused.value.code is ExitCode.INVALID_CONFIG
    assert refused.value.message.endswith("remove output.gguf")
