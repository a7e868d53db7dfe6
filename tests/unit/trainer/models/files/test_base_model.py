import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.files.base_model import ModelFacts, check_model, is_model_file


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
    (model_folder / "model.safetensors").rename(model_folder / "model-00001.safetensors")
    weight_map = {"a": "model-00001.safetensors", "c": "model-00002.safetensors"}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model-00002.safetensors" in refusal(world)


def test_shards_of_an_older_upload_are_not_counted_next_to_the_one_file_that_is_loaded(
    world: Any, model_folder: Any
) -> None:
    save_file({"c": np.zeros((10, 10), dtype=np.float32)}, model_folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"c": "model-00001-of-00001.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check(world).parameters == 22


def test_an_empty_prefix_is_a_missing_model(world: Any, model_folder: Any) -> None:
    for path in model_folder.iterdir():
        path.unlink()
    assert "no object under this prefix" in refusal(world)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(world: Any, model_folder: Any, name: str) -> None:
    (model_folder / name).unlink()
    assert f"there is no {name}" in refusal(world)


OPENED: list[str] = []
"""Every file that Python opens while a test asks; a hook cannot be taken off again."""
ASKED: list[Path] = []


def note_open(event: str, arguments: tuple[Any, ...]) -> None:
    if ASKED and event == "open" and isinstance(arguments[0], str | Path):
        OPENED.append(str(arguments[0]))


sys.addaudithook(note_open)


@pytest.fixture
def opened(model_folder: Path) -> Iterator[list[str]]:
    """The files of the model's folder that were opened, by name."""
    OPENED.clear()
    ASKED.append(model_folder)
    yield OPENED
    ASKED.clear()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def names_opened(opened: list[str], folder: Path) -> set[str]:
    return {Path(path).name for path in opened if Path(path).is_relative_to(folder)}


def test_the_trap_of_the_tests_below_springs_when_it_is_loaded(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "trap.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    opened.clear()
    with (tmp_path / "trap.bin").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "sprung").exists()
    assert names_opened(opened, tmp_path) >= {"trap.bin"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "weights.ckpt"])
def test_pickle_weights_are_refused_without_being_opened(
    world: Any, model_folder: Path, tmp_path: Path, opened: list[str], name: str
) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    opened.clear()
    sentence = refusal(world)
    assert "the weights exist only as pickle files, which can run code when loaded" in sentence
    assert "save_pretrained" in sentence
    assert name not in names_opened(opened, model_folder)
    assert not (tmp_path / "sprung").exists()
    assert not list(world.workspace.rglob(name))


def test_a_pickle_next_to_safetensors_is_ignored(
    world: Any, model_folder: Path, tmp_path: Path, opened: list[str]
) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    opened.clear()
    assert check(world).parameters == 22
    assert names_opened(opened, model_folder) >= {"config.json", "model.safetensors"}
    assert "pytorch_model.bin" not in names_opened(opened, model_folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "other.safetensors", "deep/model.safetensors"])
def test_an_index_may_name_only_weights_that_are_loaded(
    world: Any, model_folder: Path, opened: list[str], shard: str
) -> None:
    (model_folder / "deep").mkdir()
    (model_folder / "model.safetensors").rename(model_folder / shard)
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    opened.clear()
    assert f"names weights that are not model*.safetensors: {shard}" in refusal(world)
    assert Path(shard).name not in names_opened(opened, model_folder)


def test_a_folder_without_weights_is_refused(world: Any, model_folder: Any) -> None:
    (model_folder / "model.safetensors").unlink()
    assert "no weights" in refusal(world)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_needs_code_of_its_own_is_refused_without_opening_the_code(
    world: Any, model_folder: Path, opened: list[str], name: str
) -> None:
    content = json.loads((model_folder / name).read_text()) | {"auto_map": {"AutoModel": "modeling.Evil"}}
    (model_folder / name).write_text(json.dumps(content))
    (model_folder / "modeling.py").write_text("raise AssertionError")
    opened.clear()
    assert f"{name} requires remote code (auto_map), which is never run" in refusal(world)
    assert names_opened(opened, model_folder).isdisjoint({"modeling.py", "model.safetensors"})
    assert not list(world.workspace.rglob("*.py"))


def test_a_model_that_is_only_there_as_gguf_is_refused_with_the_reason(world: Any, model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "model-Q4_K_M.gguf")
    sentence = refusal(world)
    assert "exist only as GGUF, which is quantised for inference: use the original safetensors" in sentence


def test_the_uri_of_a_gguf_file_is_refused_with_the_same_reason(world: Any) -> None:
    with pytest.raises(TrainerError, match="exist only as GGUF") as caught:
        check_model("s3://bucket/model/model.gguf", world.storage, world.workspace / "tokenizer")
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE


def test_safetensors_next_to_a_gguf_are_used(world: Any, model_folder: Path) -> None:
    (model_folder / "model.gguf").write_bytes(b"GGUF")
    assert check(world).parameters == 22


def test_the_exit_code_of_a_refused_model_is_66() -> None:
    assert ExitCode.MODEL_UNAVAILABLE.value == 66


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


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_a_file_that_is_nested_without_end_is_refused(world: Any, model_folder: Path, name: str) -> None:
    (model_folder / name).write_text(f'{{"a": {NESTED}}}', encoding="utf-8")
    assert f"{name} is not a JSON object" in refusal(world)


@pytest.mark.parametrize(
    "header",
    [
        f'{{"w": {NESTED}}}',
        '{"w": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}',
        '{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [1, 1, 1, 1, 1, 1, 1, 1, 1], "data_offsets": [0, 4]}}',
        '{"w": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}',
        f'{{"w": {{"dtype": "F32", "shape": [{"9" * 5000}], "data_offsets": [0, 4]}}}}',
    ],
    ids=["nested", "infinite", "not a number", "infinite end", "negative", "huge", "dimensions", "fraction", "digits"],
)
def test_a_header_that_no_writer_makes_is_refused(world: Any, model_folder: Path, header: str) -> None:
    data = header.encode()
    (model_folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + b"\0" * 4)
    assert "the header of model.safetensors cannot be read: it is not a safetensors file" in refusal(world)


SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "head_dim",
    "architectures",
    "model_type",
)
ODD = (None, -1, 0, True, 1.5, float("inf"), float("nan"), 10**400, "many", [], [[]], {}, {"a": {}})


@pytest.mark.parametrize("name", SIZES)
def test_an_odd_value_in_the_configuration_does_not_end_the_check(world: Any, model_folder: Path, name: str) -> None:
    usual = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    for value in ODD:
        (model_folder / "config.json").write_text(json.dumps(usual | {name: value}), encoding="utf-8")
        assert check(world).parameters == 22, value


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
