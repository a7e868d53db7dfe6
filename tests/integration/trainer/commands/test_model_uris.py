"""A model of a hub, where a command takes a folder or a URI."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub import Hub
from tiny_model import make_tiny_model


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    make_tiny_model(tmp_path / "hub" / "models" / "acme" / "tiny")
    with Hub(tmp_path / "hub").serving() as hub:
        yield hub


def trainer(hub: Hub, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    place = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments],
        cwd=folder,
        env=os.environ | place | {"NO_PROXY": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_estimate_reads_only_the_headers_of_a_model_on_a_hub(hub: Hub, tmp_path: Path) -> None:
    done = trainer(hub, tmp_path, "estimate", "hf://acme/tiny", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["parameters"]) == ("hf://acme/tiny", 106_816)
    assert not (tmp_path / "cache").exists()
    missing = trainer(hub, tmp_path, "estimate", "hf://acme/none")
    assert missing.returncode == 66, missing.stderr


@pytest.mark.nightly
def test_a_base_on_a_hub_is_fetched_and_kept(hub: Hub, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    source = tmp_path / "hub" / "models" / "acme" / "tiny"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(source), LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = "acme/tiny"
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    for _ in range(2):
        done = trainer(hub, tmp_path, "chat", "adapter", "--prompt", "Hello", "--max-new-tokens", "4")
        assert done.returncode == 0, done.stderr
        assert "tuned:" in done.stdout
    fetched = list((tmp_path / "cache").rglob("model.safetensors"))
    assert len(fetched) == 1


@pytest.mark.nightly
def test_an_adapter_on_a_hub_is_merged_into_the_base_that_it_names_and_into_no_other(hub: Hub, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    models = tmp_path / "hub" / "models" / "acme"
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(models / "tiny"), LoraConfig(r=2, init_lora_weights=False)
    )
    model.peft_config["default"].base_model_name_or_path = "acme/tiny"
    model.save_pretrained(models / "own", save_embedding_layers=False)
    done = trainer(hub, tmp_path, "merge", "hf://acme/tiny", "hf://acme/own", "merged")
    assert done.returncode == 0, done.stderr
    assert "base: it is the one that the adapter names" in done.stdout
    assert "tokens of built-in texts: mean KL divergence" in done.stdout
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    make_tiny_model(models / "other", seed=8)
    other = trainer(hub, tmp_path, "merge", "hf://acme/other", "hf://acme/own", "again")
    assert other.returncode == 64
    assert "was trained on hf://acme/tiny, but BASE is hf://acme/other" in other.stderr
    (models / "own" / "adapter_model.safetensors").rename(models / "own" / "adapter_model.bin")
    pickled = trainer(hub, tmp_path, "merge", "hf://acme/tiny", "hf://acme/own", "again")
    assert (pickled.returncode, "pickle" in pickled.stderr) == (66, True)
    assert not (tmp_path / "again").exists()
