"""`finetune-trainer merge`: a real adapter of PEFT, merged into the tiny model and compared in the gate's process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import make_tiny_model
from transformers import AutoModelForCausalLM
from waiting import wait_until

from finetune_api.handoff import ExitCode
from finetune_api.spec import Precision
from finetune_trainer.commands.merge import MergeOptions, merge_adapter
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.gate_rules import LARGEST_MEAN_KL
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.protocol import sha256_file

TOKENS = torch.tensor([[1, *range(40, 72), 2]])
ROWS = [{"instruction": f"Is {number} even?", "output": "yes" if number % 2 == 0 else "no"} for number in range(6)]


def make_adapter(base: Path, folder: Path, *, scale: float = 0.05, **settings: Any) -> Path:
    """Save an adapter that looks trained, as PEFT saves it."""
    torch.manual_seed(3)
    asked = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**asked))
    for name, tensor in model.named_parameters():
        if tensor.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(tensor, std=scale)
    model.peft_config["default"].base_model_name_or_path = "acme/tiny"
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("peft") / "own")


def merge(base: Path, adapter: Path, output: Path, **options: Any) -> None:
    merge_adapter(str(base), str(adapter), str(output), MergeOptions(**options), StopFlag())


def refusal(base: Path, adapter: Path, output: Path, **options: Any) -> TrainerError:
    """Return the error, after which nothing is left of the attempt."""
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(TrainerError) as caught:
        merge(base, adapter, output, **options)
    assert sorted(output.parent.rglob("*")) == before
    return caught.value


def test_the_merged_model_ends_answers_as_the_adapter_does(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    own = shutil.copytree(adapter, tmp_path / "own")
    (own / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    merge(tiny_model, own, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text()) == {"eos_token_id": [0, 2]}


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model.eval()(input_ids=TOKENS).logits[0].float().log_softmax(-1))


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"use_dora": True}, marks=pytest.mark.nightly), {"rank_pattern": {"q_proj": 4}}],
    ids=["plain", "DoRA, which the library merges", "ranks of their own"],
)
def test_the_merged_model_has_the_log_probabilities_of_base_and_adapter(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]
) -> None:
    own = make_adapter(tiny_model, tmp_path / "own", **settings)
    merge(tiny_model, own, tmp_path / "merged")
    source = logprobs(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), own))
    merged = logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    base = logprobs(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert float((source.exp() * (source - merged)).sum(-1).mean()) < LARGEST_MEAN_KL
    assert float((source - merged).abs().max()) < 1e-3
    assert float((source - base).abs().max()) > 0.01  # the adapter changes something
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (tiny_model / name).read_bytes()
    shown = capsys.readouterr().out
    assert "tokens of built-in texts: mean KL divergence" in shown
    assert "the adapter names hf://acme/tiny" in shown
    assert f"finetune-trainer chat {tmp_path / 'merged'} --base {tiny_model}" in shown


def test_the_number_format_and_the_compared_rows_are_the_users(
    tiny_model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "merged").mkdir()  # an empty folder may be there
    merge(tiny_model, adapter, tmp_path / "merged", precision=Precision.BF16, rows=str(rows))
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert f"tokens of {rows}: mean KL" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "rows.jsonl"]


def test_a_result_is_compared_on_its_own_held_out_rows_and_its_base_is_proven_by_digest(
    tiny_model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result"
    shutil.copytree(adapter, result / "adapter")
    (result / "dataset").mkdir()
    turns = [{"role": "user", "content": "Is 3 even?"}, {"role": "assistant", "content": "no"}]
    row = {"messages": turns, "_source": {"file": "rows.jsonl", "line": 1}}
    (result / "dataset" / "validation.jsonl").write_text(json.dumps(row) + "\n")
    files = {"model.safetensors": sha256_file(tiny_model / "model.safetensors")}
    (result / "lineage.json").write_text(json.dumps({"baseModel": {"files": files}}))
    merge(tiny_model, result, tmp_path / "merged")
    shown = capsys.readouterr().out
    assert "tokens of the result's dataset/validation.jsonl: mean KL" in shown
    assert "its weights have the SHA-256 in the adapter's lineage" in shown
    other = make_tiny_model(tmp_path / "other", seed=8)  # the same layers, other weights
    error = refusal(other, result, tmp_path / "out" / "merged")
    assert error.code is ExitCode.INVALID_CONFIG
    assert "was trained on another base" in error.message
    assert "name the base that it was trained on" in error.message
    shards = {f"model-0000{number}-of-00002.safetensors": "a" * 64 for number in (1, 2)}
    base = {"uri": "hf://acme/right", "revision": "b" * 40, "files": shards}
    (result / "lineage.json").write_text(json.dumps({"baseModel": base}))
    error = refusal(other, result, tmp_path / "out" / "merged")
    assert error.code is ExitCode.INVALID_CONFIG
    assert "which has no model-00001-of-00002.safetensors" in error.message
    assert f"name the base that it was trained on, hf://acme/right@{'b' * 40}" in error.message


def test_an_adapter_of_another_architecture_is_refused_with_the_layer_that_differs(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    other = make_adapter(tiny_model, tmp_path / "own")
    tensors = load_file(other / "adapter_model.safetensors")
    tensors = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}
    save_file(tensors, other / "adapter_model.safetensors")
    error = refusal(tiny_model, other, tmp_path / "merged")
    assert error.code is ExitCode.INVALID_CONFIG
    assert "which has no layer model.layers.7." in error.message
    assert f"name the base that it was trained on instead of {tiny_model}" in error.message


def test_files_in_the_output_are_never_touched(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    error = refusal(tiny_model, adapter, tmp_path / "merged")
    assert (error.code, "is not empty" in error.message) == (ExitCode.OUTPUT_CONFLICT, True)
    assert (tmp_path / "merged" / "mine.txt").read_text() == "mine"


def test_a_pickle_a_full_model_and_an_unusable_file_of_rows_are_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    pickled = shutil.copytree(adapter, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    error = refusal(tiny_model, pickled, tmp_path / "merged")
    assert (error.code, "pickle" in error.message) == (ExitCode.MODEL_UNAVAILABLE, True)
    error = refusal(tiny_model, tiny_model, tmp_path / "merged")
    assert (error.code, "has a full model and no adapter" in error.message) == (ExitCode.INVALID_CONFIG, True)
    (tmp_path / "rows.jsonl").write_text('{"nothing": 1}\n')
    error = refusal(tiny_model, adapter, tmp_path / "merged", rows=str(tmp_path / "rows.jsonl"))
    assert (error.code, "none of the 1 rows can be used" in error.message) == (ExitCode.DATASET_UNUSABLE, True)


def test_a_number_format_that_is_too_narrow_writes_nothing_and_names_a_wider_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    large = make_adapter(tiny_model, tmp_path / "own", scale=400.0)
    error = refusal(tiny_model, large, tmp_path / "merged", precision=Precision.FP16)
    assert error.code is ExitCode.GATE_NOT_MET
    assert error.message.startswith("no model is written: tensor ")
    assert error.message.endswith("--precision BF16 or FP32")


def test_tied_embeddings_that_were_trained_as_one_tensor_are_merged_and_as_two_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    own = make_adapter(tiny_model, tmp_path / "own", modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    merge(tiny_model, own, tmp_path / "merged")
    trained = load_file(own / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(merged["model.embed_tokens.weight"], trained)
    assert "lm_head.weight" not in merged
    two = make_adapter(tiny_model, tmp_path / "two", modules_to_save=["embed_tokens"])
    error = refusal(tiny_model, two, tmp_path / "other")
    assert (error.code, "are one tensor" in error.message) == (ExitCode.MODEL_UNAVAILABLE, True)


def test_an_adapter_on_tied_embeddings_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    own = make_adapter(tiny_model, tmp_path / "own", target_modules=["embed_tokens"])
    error = refusal(tiny_model, own, tmp_path / "merged")
    assert (error.code, "are one tensor" in error.message) == (ExitCode.MODEL_UNAVAILABLE, True)


def test_an_adapter_on_embeddings_and_head_with_which_peft_saved_the_bases_own_is_merged(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False}
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    own = make_adapter(base, tmp_path / "own", target_modules=["q_proj", "embed_tokens", "lm_head"])
    saved = load_file(own / "adapter_model.safetensors")
    for name in ("lm_head", "model.embed_tokens"):
        saved[f"base_model.model.{name}.base_layer.weight"] = tensors[f"{name}.weight"]
    save_file(saved, own / "adapter_model.safetensors")  # as PEFT does unless it is told otherwise
    merge(base, own, tmp_path / "merged")
    source = logprobs(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), own))
    merged = logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((source - merged).abs().max()) < 1e-3
    saved["base_model.model.model.norm.base_layer.weight"] = tensors["model.norm.weight"]
    save_file(saved, own / "adapter_model.safetensors")
    assert "model.norm.base_layer.weight" in refusal(base, own, tmp_path / "other").message


def test_the_adapter_is_merged_into_the_weights_that_the_library_loads_and_not_into_shards_of_an_older_upload(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    older = load_file(make_tiny_model(tmp_path / "older", seed=8) / "model.safetensors")
    save_file(older, base / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(older, "model-00001-of-00001.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    merge(base, adapter, tmp_path / "merged", validate=False)
    merge(tiny_model, adapter, tmp_path / "expected", validate=False)
    name = "model.safetensors"
    assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_the_merged_model_has_the_settings_of_the_bases_processors(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    names = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
    for name in names:
        (base / name).write_text(json.dumps({"image_seq_length": 256, "of": name}))
    merge(base, adapter, tmp_path / "merged", validate=False)
    assert [(tmp_path / "merged" / name).read_bytes() for name in names] == [
        (base / name).read_bytes() for name in names
    ]


def test_the_validation_can_be_turned_off_and_the_end_reports_it(
    tiny_model: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(tiny_model, adapter, tmp_path / "merged", validate=False)
    assert "compared: not at all (--no-validate)" in capsys.readouterr().out
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.nightly
def test_sigterm_ends_the_command_with_75_and_leaves_nothing(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune_trainer", "merge", str(tiny_model), str(adapter), "merged"]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    wait_until(lambda: list(tmp_path.glob(".merge-*")) or process.poll() is not None, "a folder", pause=0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == ExitCode.PREEMPTED
    assert list(tmp_path.iterdir()) == []
