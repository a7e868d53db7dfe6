"""Reward models before a GPU is held: found, complete, safe to load, and with a head that gives one score."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_api.handoff import Artifact, ExitCode, Manifest, ManifestFile, Outcome, Report
from finetune_api.status import PublishedJob
from finetune_trainer.errors import TrainerError
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.rewards.fetch import (
    RewardFolders,
    check_reward_model,
    describe_reward_model,
    fetch_reward_model,
)
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.protocol import Entry, sha256_file

HEAD = {"score.weight": np.zeros((1, 5), np.float32)}
ADAPTER = {"base_model.model.score.weight": np.zeros((1, 5), np.float32)}
CLASSIFIER = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "id2label": {"0": "LABEL_0"}}
LORA = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "s3://bucket/model"}
URI = {"rewardModel": {"uri": "s3://bucket/reward"}}
JOB = {"rewardModel": {"jobRef": {"name": "reward"}}}


@pytest.fixture
def reward(world: Any) -> Path:
    folder: Path = world.bucket / "reward"
    folder.mkdir()
    return folder


def write_whole(folder: Path, base: Path, tensors: dict[str, np.ndarray] = HEAD, **config: Any) -> None:
    """A complete reward model with the tokenizer of the base."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    (folder / "config.json").write_text(json.dumps(CLASSIFIER | config))
    save_file(tensors, folder / "model.safetensors")


def write_adapter(folder: Path, tensors: dict[str, np.ndarray] = ADAPTER, **config: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(LORA | config))
    save_file(tensors, folder / "adapter_model.safetensors")


def check(world: Any, rlhf: dict[str, Any], job: PublishedJob | None = None) -> None:
    world.with_config({"objective": "RLHF", "rlhf": rlhf})
    world.config = world.config.model_copy(update={"reward_job": job})
    preflight(world.run)


def refusal(world: Any, rlhf: dict[str, Any] = URI, job: PublishedJob | None = None) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        check(world, rlhf, job)
    assert not (world.out / "owner.json").exists()
    return caught.value


def publish(world: Any, objective: str = "RewardModel") -> PublishedJob:
    """A finished job that published the adapter in `reward/adapter`."""
    root = world.bucket / "reward"
    files = [
        ManifestFile(path=f"adapter/{path.name}", sha256=sha256_file(path), size=path.stat().st_size)
        for path in sorted((root / "adapter").iterdir())
    ]
    report = Report(
        outcome=Outcome.PUBLISHED, reason="Published", message="trained", job_uid="u-0", config_sha256="c" * 64
    )
    manifest = Manifest(namespace="team", name="reward", uid="u-0", config_sha256="c" * 64, files=files, result=report)
    (root / Artifact.MANIFEST).write_text(manifest.model_dump_json(by_alias=True, exclude_none=True))
    return PublishedJob(
        name="reward",
        uid="u-0",
        objective=objective,
        output_uri="s3://bucket/reward",
        manifest_sha256=sha256_file(root / Artifact.MANIFEST),
    )


@pytest.fixture
def adapter(reward: Path) -> Path:
    """The adapter of a finished job."""
    folder = reward / "adapter"
    folder.mkdir()
    write_adapter(folder)
    return folder


fetch_now = partial(fetch_reward_model, checked={})


def test_a_complete_reward_model_passes(world: Any, reward: Path) -> None:
    write_whole(reward, world.bucket / "model")
    check(world, URI)


def test_an_adapter_on_the_policys_own_base_passes_with_the_bases_tokenizer(world: Any, reward: Path) -> None:
    write_adapter(reward)
    check(world, URI)


def test_an_adapter_on_another_base_passes_where_that_base_is_there(world: Any, reward: Path) -> None:
    other = world.bucket / "other"
    other.mkdir()
    write_whole(other, world.bucket / "model", {"a": np.zeros((3, 5), np.float32)}, architectures=["LlamaForCausalLM"])
    write_adapter(reward, base_model_name_or_path="s3://bucket/other")
    check(world, URI)


@pytest.mark.parametrize("named", ["s3://bucket/model", "s3://bucket/own/../model", "s3://bucket/own@/../model"])
def test_an_adapter_names_no_base_that_its_job_may_not_name(world: Any, reward: Path, named: str) -> None:
    """The file is the user's, the keys may be those of other namespaces too."""
    write_adapter(reward, base_model_name_or_path=named)
    world.with_config({"objective": "RLHF", "rlhf": URI})
    limited = world.config.model_copy(update={"storage_prefixes": ["s3://bucket/own/", "s3://shared/"]})
    for read in (check_reward_model, fetch_now):
        with pytest.raises(TrainerError) as caught:
            read(limited, world.storage, world.workspace, world.bucket / "model")
        assert caught.value.code is ExitCode.MODEL_UNAVAILABLE
        assert f"names the base model {named}, which this namespace may not read" in caught.value.message
        assert "a base under s3://bucket/own/ or s3://shared/" in caught.value.message
    assert world.config.has_hub
    write_adapter(reward, base_model_name_or_path="owner/base")
    with pytest.raises(TrainerError, match="names the base model hf://owner/base, and jobs may not use that hub"):
        fetch_now(
            world.config.model_copy(update={"has_hub": False}),
            world.storage,
            world.workspace,
            world.bucket / "model",
        )
    allowed = world.config.model_copy(update={"storage_prefixes": ["s3://bucket/model/"], "has_hub": False})
    write_adapter(reward)
    assert fetch_now(allowed, world.storage, world.workspace, world.bucket / "model")


@pytest.mark.parametrize(
    ("tensors", "config", "sentence"),
    [
        ({"a": np.zeros((1, 5), np.float32)}, {}, "have no score.weight"),
        ({"score.weight": np.zeros((2, 5), np.float32)}, {}, "its head has 2 outputs"),
        (HEAD, {"architectures": ["LlamaForCausalLM"]}, "it is a LlamaForCausalLM"),
        (HEAD, {"id2label": {"0": "bad", "1": "good"}}, "with 2 labels"),
        (HEAD, {"id2label": None}, "with 2 labels"),
        (HEAD, {"auto_map": {"AutoModel": "x.Y"}}, "remote code"),
    ],
)
def test_a_model_that_gives_no_score_is_refused(
    world: Any, reward: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], sentence: str
) -> None:
    write_whole(reward, world.bucket / "model", tensors, **config)
    error = refusal(world)
    assert sentence in error.message
    assert error.message.startswith("s3://bucket/reward: ")
    assert error.code is ExitCode.MODEL_UNAVAILABLE


@pytest.mark.parametrize(
    ("tensors", "config", "sentence"),
    [
        ({"base_model.model.a": np.zeros((1, 5), np.float32)}, {}, "have no score.weight"),
        (ADAPTER, {"task_type": "CAUSAL_LM"}, "for task CAUSAL_LM"),
        (ADAPTER, {"peft_type": "IA3"}, "of type IA3"),
        (ADAPTER, {"base_model_name_or_path": None}, "names no base model"),
        (
            ADAPTER,
            {"base_model_name_or_path": "http://169.254.169.254/model"},
            "which must be hf://owner/name, pvc://claim/path, or s3://",
        ),
        (ADAPTER, {"base_model_name_or_path": "/tmp/model"}, "'/tmp/model', which must be hf://owner/name"),
        (ADAPTER, {"base_model_name_or_path": "s3://bucket/nowhere"}, "the base of the reward model"),
    ],
)
def test_an_adapter_that_gives_no_score_is_refused(
    world: Any, reward: Path, tensors: dict[str, np.ndarray], config: dict[str, Any], sentence: str
) -> None:
    write_adapter(reward, tensors, **config)
    error = refusal(world)
    assert sentence in error.message
    assert error.code is ExitCode.MODEL_UNAVAILABLE


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickled_weights_are_refused_unopened(world: Any, reward: Path, name: str) -> None:
    if name.startswith("adapter"):
        write_adapter(reward)
        (reward / "adapter_model.safetensors").unlink()
    else:
        write_whole(reward, world.bucket / "model")
        (reward / "model.safetensors").unlink()
    (reward / name).write_bytes(b"\x80\x04never read")
    error = refusal(world)
    assert "pickle" in error.message
    assert error.code is ExitCode.MODEL_UNAVAILABLE


def test_a_prefix_without_files_names_the_field(world: Any) -> None:
    error = refusal(world)
    assert "correct rlhf.rewardModel.uri" in error.message
    assert error.code is ExitCode.MODEL_UNAVAILABLE


def test_a_config_that_is_not_json_is_refused(world: Any, reward: Path) -> None:
    write_whole(reward, world.bucket / "model")
    (reward / "config.json").write_text("{")
    assert "config.json" in refusal(world).message


def test_a_model_without_its_tokenizer_is_refused(world: Any, reward: Path) -> None:
    write_whole(reward, world.bucket / "model")
    (reward / "tokenizer.json").unlink()
    error = refusal(world)
    assert "tokenizer.json" in error.message
    assert error.code is ExitCode.MODEL_UNAVAILABLE


def test_a_pattern_that_cannot_be_read_is_refused_before_anything_is_claimed(world: Any) -> None:
    error = refusal(world, {"rewards": [{"type": "Regex", "pattern": "(open"}]})
    assert "rlhf.rewards[0].pattern" in error.message
    assert error.code is ExitCode.INVALID_CONFIG


@pytest.mark.usefixtures("adapter")
@pytest.mark.parametrize("rlhf", [JOB, URI])
def test_the_result_of_a_job_passes_by_its_job_and_by_its_prefix(world: Any, rlhf: dict[str, Any]) -> None:
    check(world, rlhf, publish(world))


@pytest.mark.usefixtures("adapter")
def test_a_job_that_trained_something_else_is_an_invalid_config(world: Any) -> None:
    error = refusal(world, JOB, publish(world, objective="DPO"))
    assert error.message == "rlhf.rewardModel.jobRef reward has objective DPO, but RewardModel is needed"
    assert error.code is ExitCode.INVALID_CONFIG


def test_without_the_operator_a_job_cannot_be_found(world: Any) -> None:
    error = refusal(world, JOB)
    assert "rlhf.rewardModel.uri" in error.message
    assert error.code is ExitCode.INVALID_CONFIG


@pytest.mark.usefixtures("adapter")
def test_a_result_that_was_replaced_since_is_refused(world: Any) -> None:
    job = publish(world)
    manifest = world.bucket / "reward" / Artifact.MANIFEST
    manifest.write_text(manifest.read_text().replace("trained", "retrained"))
    error = refusal(world, JOB, job)
    assert "was replaced" in error.message
    assert error.code is ExitCode.MODEL_UNAVAILABLE


def test_weights_that_are_not_those_of_the_manifest_are_not_loaded(world: Any, adapter: Path) -> None:
    job = publish(world)
    write_adapter(adapter, {"base_model.model.score.weight": np.ones((1, 5), np.float32)})
    world.with_config({"objective": "RLHF", "rlhf": JOB})
    config = world.config.model_copy(update={"reward_job": job})
    with pytest.raises(TrainerError, match=r"adapter_model\.safetensors does not match its SHA-256") as caught:
        fetch_now(config, world.storage, world.workspace, world.bucket / "model")
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE


class Listing(LocalStore):
    """Lists an ETag that follows from the content, as S3 does."""

    def list(self, uri: str, limit: int = 1000) -> list[Entry]:
        folder = self._path(uri)
        return [replace(entry, etag=sha256_file(folder / entry.key)) for entry in super().list(uri, limit)]


def fetch_checked(world: Any, change: Callable[[], object]) -> RewardFolders | None:
    """Fetch the reward model after preflight has checked it, and something has changed."""
    world.with_config({"objective": "RLHF", "rlhf": URI})
    store, base = Listing({"s3://bucket": world.bucket}), world.bucket / "model"
    reward = check_reward_model(world.config, store, world.workspace, base)
    assert reward
    checked = describe_reward_model(reward, store)
    change()
    return fetch_reward_model(world.config, store, world.workspace, base, checked=checked)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"])
def test_a_reward_model_that_changed_after_preflight_is_refused_by_the_name_of_the_file(
    world: Any, reward: Path, name: str
) -> None:
    if name.startswith("adapter"):
        write_adapter(reward)
    else:
        write_whole(reward, world.bucket / "model")
    assert fetch_checked(world, lambda: None)
    file = reward / name
    with pytest.raises(TrainerError, match=rf"{name} was changed after preflight: its ETag is \w+, and .* checked \w+"):
        fetch_checked(world, lambda: file.write_bytes(file.read_bytes() + b" "))
    assert not (world.workspace / "reward").exists()


def test_the_base_of_a_reward_model_that_changed_after_preflight_is_refused(world: Any, reward: Path) -> None:
    other = world.bucket / "other"
    other.mkdir()
    write_whole(other, world.bucket / "model", {"a": np.zeros((3, 5), np.float32)}, architectures=["LlamaForCausalLM"])
    write_adapter(reward, base_model_name_or_path="s3://bucket/other")
    assert fetch_checked(world, lambda: None)
    with pytest.raises(TrainerError, match=r"s3://bucket/other: model.safetensors was changed after preflight"):
        fetch_checked(world, lambda: save_file({"a": np.ones((3, 5), np.float32)}, other / "model.safetensors"))


@pytest.mark.parametrize(("revision", "same"), [("a" * 40, True), ("b" * 40, False)])
def test_a_hubs_base_is_the_policys_own_at_the_same_commit_alone(
    world: Any, reward: Path, revision: str, same: bool
) -> None:
    write_adapter(reward, base_model_name_or_path="owner/base", revision="a" * 40)
    world.with_config({"objective": "RLHF", "rlhf": URI, "model": {"uri": "hf://owner/base", "revision": revision}})
    base = world.bucket / "model"
    folders = {"s3://bucket": world.bucket, "hf://owner/base": base}
    found = fetch_now(world.config, LocalStore(folders), world.workspace, base)
    assert found
    assert (found.model == base) == same
    assert (found.model / "config.json").is_file()


def test_what_an_earlier_attempt_fetched_is_not_mixed_in(world: Any, reward: Path) -> None:
    write_adapter(reward)
    world.with_config({"objective": "RLHF", "rlhf": URI})
    (world.workspace / "reward").mkdir()
    (world.workspace / "reward" / "tokenizer.json").write_text("of another model")
    folders = fetch_now(world.config, world.storage, world.workspace, world.bucket / "model")
    assert folders
    assert folders.tokenizer == folders.model == world.bucket / "model"
    assert folders.adapter
    assert sorted(path.name for path in folders.adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_complete_reward_model_is_fetched_without_a_base(world: Any, reward: Path) -> None:
    write_whole(reward, world.bucket / "model")
    world.with_config({"objective": "RLHF", "rlhf": URI})
    folders = fetch_now(world.config, world.storage, world.workspace, world.bucket / "model")
    assert folders == RewardFolders("s3://bucket/reward", world.workspace / "reward")
    assert folders.tokenizer == folders.model
    assert (folders.model / "model.safetensors").read_bytes() == (reward / "model.safetensors").read_bytes()
