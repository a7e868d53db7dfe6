"""The base model that is downloaded is the one that preflight checked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.spec import Model
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.files.bound_model import describe_model, fetch_as_checked
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import Entry

URI = "s3://bucket/model"
MODEL = Model(uri=URI)


def fetch(world: Any, checked: dict[str, Any], store: "Listing") -> Path:
    return fetch_as_checked(world.config, checked, store, world.workspace / "model", lambda _: None)


class Listing(LocalStore):
    """Lists an ETag that follows from the content, as S3 does."""

    after_listing: Callable[[], object] = staticmethod(lambda: None)

    def list(self, uri: str) -> list[Entry]:
        found = [replace(entry, etag=str(entry.size)) for entry in super().list(uri)]
        self.after_listing()
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model in storage."""
    stored = tmp_path / "stored"
    stored.mkdir()
    for name, content in {
        "config.json": {"architectures": ["LlamaForCausalLM"]},
        "tokenizer.json": {"version": "1.0"},
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
    }.items():
        (stored / name).write_text(json.dumps(content), encoding="utf-8")
    (stored / "model.safetensors").write_bytes(b"weights")
    return stored


@pytest.fixture
def store(folder: Path) -> Listing:
    return Listing({URI: folder})


def refusal(world: Any, checked: dict[str, Any], store: Listing) -> str:
    with pytest.raises(TrainerError) as refused:
        fetch(world, checked, store)
    assert refused.value.code is ExitCode.MODEL_UNAVAILABLE
    return refused.value.message


def test_the_same_folder_is_accepted(world: Any, folder: Path, store: Listing) -> None:
    found = fetch(world, describe_model(MODEL, folder, store), store)
    assert {path.name for path in found.iterdir()} == {path.name for path in folder.iterdir()}


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
    world: Any, folder: Path, store: Listing, change: Callable[[Path], object], name: str
) -> None:
    checked = describe_model(MODEL, folder, store)
    change(folder)
    message = refusal(world, checked, store)
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
    world: Any, store: Listing, name: str, content: dict[str, Any], words: str
) -> None:
    """The summary of an older version has no digests, and the files may come from a cache."""
    (store.find(URI) / name).write_text(json.dumps(content), encoding="utf-8")
    assert words in refusal(world, {"uri": URI}, store)


def test_weights_that_are_others_only_while_they_are_downloaded_are_refused(
    world: Any, folder: Path, store: Listing
) -> None:
    """Whoever may write to the bucket puts the checked ones back before anything can look again."""
    checked = describe_model(MODEL, folder, store)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"other weights")
    store.after_listing = lambda: weights.write_bytes(b"weights")
    assert "model.safetensors was changed after preflight: its ETag is 13" in refusal(world, checked, store)
