"""The base model that is loaded is the one that preflight checked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.spec import Model
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.bound_model import (
    describe_model,
    describe_reward_model,
    require_as_checked,
    require_reward_model_as_checked,
)
from finetune_trainer.rewards.fetch import RewardFolders
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import Entry

URI = "s3://bucket/model"
MODEL = Model(uri=URI)


class Listing(LocalStore):
    """Lists an ETag that follows from the content, as S3 does."""

    def list(self, uri: str) -> list[Entry]:
        return [replace(entry, etag=str(entry.size)) for entry in super().list(uri)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {
        "config.json": {"architectures": ["LlamaForCausalLM"]},
        "tokenizer.json": {"version": "1.0"},
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
    }.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Listing:
    return Listing({URI: folder})


def refusal(checked: dict[str, Any], folder: Path, store: Listing) -> str:
    with pytest.raises(TrainerError) as refused:
        require_as_checked(MODEL, checked, folder, store)
    assert refused.value.code is ExitCode.MODEL_UNAVAILABLE
    return refused.value.message


def test_the_same_folder_is_accepted(folder: Path, store: Listing) -> None:
    require_as_checked(MODEL, describe_model(MODEL, folder, store), folder, store)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"chat_template": "evil"}'), "tokenizer_config"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "tokenizer.json was changed after preflight: its SHA-256 is absent",
        ),
        (lambda folder: (folder / "chat_template.jinja").write_text("evil"), "chat_template.jinja"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"other weights"),
            "model.safetensors was changed after preflight: its ETag is 13, and preflight checked 7",
        ),
        (lambda folder: (folder / "model-2.safetensors").write_bytes(b"more"), "model-2.safetensors"),
    ],
    ids=["changed", "removed", "added", "weights", "more weights"],
)
def test_a_file_that_changed_after_preflight_is_named_with_both_digests(
    folder: Path, store: Listing, change: Callable[[Path], object], name: str
) -> None:
    checked = describe_model(MODEL, folder, store)
    change(folder)
    message = refusal(checked, folder, store)
    assert name in message
    assert "was changed after preflight" in message
    assert "preflight checked" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", {"auto_map": {"AutoModel": "code.Model"}}, "requires remote code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "code.T"}}, "requires remote code"),
        ("config.json", {"quantization_config": {"bits": 4}}, "already quantised"),
        ("model.safetensors.index.json", {"weight_map": {"w": "../model.safetensors"}}, "not model"),
    ],
)
def test_the_checks_of_preflight_hold_for_what_is_loaded_also_without_its_digests(
    folder: Path, store: Listing, name: str, content: dict[str, Any], words: str
) -> None:
    """The summary of an older version has no digests, and the files may come from a cache."""
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    assert words in refusal({"uri": URI}, folder, store)


def test_a_reward_model_that_changed_after_preflight_is_refused_with_both_digests(folder: Path, store: Listing) -> None:
    reward = RewardFolders(URI, folder)
    checked = describe_reward_model(reward, store)
    require_reward_model_as_checked(reward, checked, store)
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(TrainerError, match="its ETag is 13, and preflight checked 7"):
        require_reward_model_as_checked(reward, checked, store)


def test_a_base_that_the_reward_model_did_not_have_in_preflight_is_refused(folder: Path) -> None:
    adapter = folder / "adapter"
    adapter.mkdir()
    store = Listing({"s3://bucket/reward": adapter, URI: folder})
    checked = describe_reward_model(RewardFolders("s3://bucket/reward", folder, adapter), store)
    with pytest.raises(TrainerError, match="and preflight checked absent"):
        require_reward_model_as_checked(RewardFolders("s3://bucket/reward", folder, adapter, URI), checked, store)
