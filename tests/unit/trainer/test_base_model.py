import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_api.handoff import ExitCode
from finetune_trainer.base_model import ModelFacts, check_model, is_model_file
from finetune_trainer.errors import TrainerError


def check(world: Any) -> ModelFacts:
    return check_model("s3://bucket/model", world.storage, world.workspace / "tokenizer")


def refusal(world: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        check(world)
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE
    assert "s3://bucket/model" in caught.value.message
    return caught.value.message


def test_weights_are_counted_from_the_headers_alone(world: Any) -> None:
    assert check(world).parameters == 22
    assert not (world.workspace / "tokenizer" / "model.safetensors").exists()
    assert (world.workspace / "tokenizer" / "tokenizer.json").exists()


def test_shards_are_counted_together(world: Any, model_folder: Any) -> None:
    save_file({"c": np.zeros((10, 10), dtype=np.float32)}, model_folder / "model-00002-of-00002.safetensors")
    (model_folder / "model.safetensors").rename(model_folder / "model-00001-of-00002.safetensors")
    weight_map = {name: f"model-0000{shard}-of-00002.safetensors" for name, shard in (("a", 1), ("b", 1), ("c", 2))}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert check(world).parameters == 122


def test_a_missing_shard_is_named(world: Any, model_folder: Any) -> None:
    weight_map = {"a": "model.safetensors", "c": "model-00002.safetensors"}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model-00002.safetensors" in refusal(world)


def test_an_empty_prefix_is_a_missing_model(world: Any, model_folder: Any) -> None:
    for path in model_folder.iterdir():
        path.unlink()
    assert "no object under this prefix" in refusal(world)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(world: Any, model_folder: Any, name: str) -> None:
    (model_folder / name).unlink()
    assert f"there is no {name}" in refusal(world)


def test_pickle_weights_are_refused_with_the_reason(world: Any, model_folder: Any) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    assert "pickle" in refusal(world)


def test_a_folder_without_weights_is_refused(world: Any, model_folder: Any) -> None:
    (model_folder / "model.safetensors").unlink()
    assert "no weights" in refusal(world)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_needs_remote_code_is_refused(world: Any, model_folder: Any, name: str) -> None:
    content = json.loads((model_folder / name).read_text()) | {"auto_map": {"AutoModel": "modeling.Evil"}}
    (model_folder / name).write_text(json.dumps(content))
    assert "auto_map" in refusal(world)


def test_quantised_weights_are_refused(world: Any, model_folder: Any) -> None:
    (model_folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert "already quantised" in refusal(world)


def test_weights_that_were_cut_off_are_found_by_their_size(world: Any, model_folder: Any) -> None:
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert "upload it again" in refusal(world)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 64, (20).to_bytes(8, "little") + b"[]" + b" " * 30])
def test_weights_that_are_something_else_are_refused(world: Any, model_folder: Any, content: bytes) -> None:
    (model_folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refusal(world)


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_config_that_is_not_an_object_is_refused(world: Any, model_folder: Any, content: str) -> None:
    (model_folder / "config.json").write_text(content)
    assert "config.json is not a JSON object" in refusal(world)


def test_only_what_loads_the_model_is_copied() -> None:
    keys = ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "tokenizer.model", "merges.txt"]
    keys += ["additional_chat_templates/tool_use.jinja"]
    others = [
        "additional_chat_templates/x.json",
        "other/x.jinja",
        "pytorch_model.bin",
        "modeling.py",
        "onnx/model.safetensors",
        "consolidated.safetensors",
        "README.md",
    ]
    assert [key for key in keys + others if is_model_file(key)] == keys
