from pathlib import Path
from typing import Any

import pytest
from published_result import publish_result

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.parent_result import check_parents, find_result_at, read_parent_result
from finetune_trainer.storage.protocol import sha256_file


def test_the_recorded_result_has_the_digest_of_each_file(world: Any, tmp_path: Path) -> None:
    result = read_parent_result(publish_result(world.config, world.storage, tmp_path), world.storage)
    assert result.uri == "s3://bucket/out"
    weights = world.out / "adapter" / "adapter_model.safetensors"
    assert result.folder_digests(Artifact.ADAPTER)[weights.name] == sha256_file(weights)
    assert result.folder_digests(Artifact.MERGED) == {}
    assert find_result_at("s3://bucket/out/", world.storage) == result


@pytest.mark.parametrize(("change", "fix"), [("removed", "restore it"), ("replaced", "restore the old one")])
def test_a_changed_result_is_refused_with_the_fix(world: Any, tmp_path: Path, change: str, fix: str) -> None:
    parent = publish_result(world.config, world.storage, tmp_path)
    manifest = world.out / Artifact.MANIFEST
    manifest.unlink() if change == "removed" else manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(TrainerError, match=f"was {change} after that job completed.*{fix}") as caught:
        read_parent_result(parent, world.storage)
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE


def test_a_prefix_without_a_manifest_has_no_result(world: Any) -> None:
    assert find_result_at("s3://bucket/out", world.storage) is None


def test_a_manifest_that_cannot_be_read_is_an_error_of_the_model(world: Any) -> None:
    world.storage.put("s3://bucket/out/manifest.json", b"{}")
    with pytest.raises(TrainerError, match=r"s3://bucket/out: manifest\.json is not a valid manifest") as caught:
        find_result_at("s3://bucket/out", world.storage)
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE


def test_a_job_without_parents_has_none_to_check(world: Any) -> None:
    check_parents(world.config, world.storage)


@pytest.mark.parametrize("role", ["parent", "reward_job"])
def test_a_parent_that_changed_is_refused_even_if_none_of_its_files_are_read(
    world: Any, tmp_path: Path, role: str
) -> None:
    config = world.config.model_copy(update={role: publish_result(world.config, world.storage, tmp_path)})
    check_parents(config, world.storage)
    (world.out / Artifact.MANIFEST).unlink()
    with pytest.raises(TrainerError, match="was removed after that job completed"):
        check_parents(config, world.storage)
