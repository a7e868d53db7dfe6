"""`finetune-trainer verify`: what it proves, and a sentence for each fault."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_result import MODULE, TENSORS, list_again, publish_result
from safetensors.numpy import save_file

from finetune_api.handoff import Artifact, ExitCode
from finetune_api.status import PublishedJob
from finetune_trainer.commands.verify import VerifyResult, verify_published, verify_result
from finetune_trainer.errors import TrainerError

JOB = {"namespace": "team", "name": "job", "uid": "uid-job", "configSHA256": "c"}
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def put(world: Any, tmp_path: Path, name: str = "job", parent: PublishedJob | None = None, **changes: Any) -> Any:
    world.with_config({"output": {"uri": f"s3://bucket/{name}"}}, name=name, uid=f"uid-{name}")
    config = world.config.model_copy(update={"parent": parent})
    return publish_result(config, world.storage, tmp_path / "results", **changes)


def verdict_on(world: Any, name: str = "job") -> VerifyResult:
    return verify_result(f"s3://bucket/{name}", world.storage)


def test_a_whole_result_is_proven_and_its_base_named(world: Any, tmp_path: Path) -> None:
    put(world, tmp_path)
    verdict = verdict_on(world)
    assert verdict.faults == []
    assert {"adapter/adapter_model.safetensors", "lineage.json", "openlineage.jsonl"} <= {
        file.path for file in verdict.files
    }
    assert [(link.role, link.uri) for link in verdict.chain] == [("base", "s3://bucket/model")]
    assert json.loads(verdict.to_json())["ok"] is True


def test_the_head_of_a_reward_model_is_saved_whole_and_may_be_named_as_a_target(tmp_path: Path) -> None:
    from finetune_trainer.models.adapters.check import find_adapter_faults

    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {
        f"{prefix}A.weight": np.ones((2, 4), np.float32),
        f"{prefix}B.weight": np.ones((4, 2), np.float32),
        "base_model.model.score.weight": np.ones((1, 4), np.float32),
    }
    save_file(tensors, tmp_path / "weights")
    config = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "score"], "modules_to_save": ["score"]}
    assert find_adapter_faults(tmp_path / "weights", json.dumps(config).encode(), "") == []
    del tensors["base_model.model.score.weight"]
    save_file(tensors, tmp_path / "weights")
    (fault,) = find_adapter_faults(tmp_path / "weights", json.dumps(config).encode(), "")
    assert fault == "target_modules without a tensor: score"


@pytest.mark.parametrize(
    ("tensors", "adapter", "told"),
    [
        (TENSORS | {A: np.full((2, 4), np.nan, dtype=np.float32)}, {}, "values that are not finite"),
        (TENSORS | {A: np.full((2, 4), np.inf, dtype=np.float16)}, {}, "values that are not finite"),
        (TENSORS | {B: np.zeros((4, 2), dtype=np.float32)}, {}, "it changes nothing"),
        ({A: TENSORS[A]}, {}, "1 modules lack one of their two factors"),
        (TENSORS | {"model.norm.weight": np.ones(2, dtype=np.float32)}, {}, "1 tensors are not factors of an adapter"),
        (TENSORS, {"r": 8}, "2 tensors do not have the rank 8"),
        (TENSORS, {"target_modules": ["k_proj"]}, "1 modules are not in target_modules"),
        (TENSORS, {"target_modules": ["q_proj", "v_proj"]}, "target_modules without a tensor: v_proj"),
        (
            TENSORS,
            {"base_model_name_or_path": "acme/other"},
            "names the base acme/other, but the lineage names s3://bucket",
        ),
        (TENSORS, {"peft_type": "IA3"}, "does not describe a LoRA adapter"),
    ],
)
def test_an_invalid_adapter_is_detected(
    world: Any, tmp_path: Path, tensors: dict[str, Any], adapter: dict[str, Any], told: str
) -> None:
    put(world, tmp_path, tensors=tensors, adapter=adapter)
    faults = verdict_on(world).faults
    assert any(told in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("lineage", "told"),
    [
        ({"configFile": {"path": "finetune_config.yaml", "sha256": "0" * 64}}, "finetune_config.yaml has SHA-256 000"),
        ({"dataset": {"files": [{"path": "dataset/train.jsonl", "sha256": "1" * 64}]}}, "dataset/train.jsonl has SHA"),
        ({"job": JOB | {"uid": "another"}}, "uid of the job is another and uid-job in the manifest"),
        ({"dataset": {"files": ["a"]}}, "lineage.json cannot be read: dataset.files.0 is missing or invalid"),
        ({"baseModel": None}, "lineage.json cannot be read: baseModel is missing or invalid"),
    ],
)
def test_a_lineage_that_does_not_match_its_manifest_is_detected(
    world: Any, tmp_path: Path, lineage: dict[str, Any], told: str
) -> None:
    put(world, tmp_path, lineage=lineage)
    faults = verdict_on(world).faults
    assert any(told in fault for fault in faults), faults


def test_a_chain_is_followed_back_to_the_base(world: Any, tmp_path: Path) -> None:
    first = put(world, tmp_path, "first")
    second = put(world, tmp_path, "second", first)
    put(world, tmp_path, "third", second)
    verdict = verdict_on(world, "third")
    assert verdict.faults == []
    parents = [(link.depth, link.name, link.sha256) for link in verdict.chain if link.role == "parent"]
    assert parents == [(1, "team/second", second.manifest_sha256), (2, "team/first", first.manifest_sha256)]
    assert verdict.chain[-1].role == "base"


def test_a_replaced_grandparent_breaks_the_chain_and_both_digests_are_reported(world: Any, tmp_path: Path) -> None:
    first = put(world, tmp_path, "first")
    put(world, tmp_path, "third", put(world, tmp_path, "second", first))
    (world.bucket / "first" / "adapter" / "adapter_config.json").write_text("{}")
    list_again(world.bucket / "first")
    faults = verdict_on(world, "third").faults
    assert len(faults) == 1
    assert faults[0].startswith("parent s3://bucket/first has a manifest.json of SHA-256 ")
    assert faults[0].endswith(f"instead of the recorded {first.manifest_sha256}")


def test_a_removed_parent_and_one_that_is_its_own_ancestor_are_reported(world: Any, tmp_path: Path) -> None:
    parent = put(world, tmp_path, "first")
    put(world, tmp_path, "second", parent)
    (world.bucket / "first" / Artifact.MANIFEST).unlink()
    assert "parent s3://bucket/first has no manifest.json" in verdict_on(world, "second").faults[0]
    put(world, tmp_path, "loop", parent.model_copy(update={"output_uri": "s3://bucket/loop"}))
    assert verdict_on(world, "loop").faults == ["parent s3://bucket/loop is its own ancestor"]


def test_files_that_the_manifest_does_not_list_are_named(world: Any, tmp_path: Path) -> None:
    put(world, tmp_path)
    for name in ("merged/model.safetensors", "gguf/model-Q8_0.gguf", "checkpoints/step-000002/state", "owner.json"):
        world.storage.put(f"s3://bucket/job/{name}", b"of an earlier attempt")
    world.storage.put("s3://bucket/job/merged/of-another/owner.json", b"{}")
    assert verdict_on(world).faults == [
        "in the folders of the result, but not part of it: gguf/model-Q8_0.gguf, merged/model.safetensors; "
        "delete them from s3://bucket/job"
    ]


def test_a_prefix_without_a_manifest_has_one_fault(world: Any) -> None:
    assert verdict_on(world, "nothing").faults == ["manifest.json is missing"]


@pytest.mark.parametrize("uri", ["nothing/here", "hf://acme/helpdesk", "pvc://claim/result"])
def test_what_is_no_folder_is_refused_by_its_name_and_not_as_a_result_without_a_manifest(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "finetune_trainer")
    with pytest.raises(TrainerError, match=f"URI {uri}: there is no such folder") as caught:
        verify_published(uri, None, [])
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert ("a push to a hub has neither manifest nor lineage" in caught.value.message) is uri.startswith("hf://")


def test_the_name_of_a_file_in_a_manifest_is_text_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "finetune_trainer")  # the command sets the level: it is restored after the test
    hostile = "a\nok  0  forged\x1b[2J\x9b\u202e"
    (tmp_path / hostile).write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    files = [{"path": path, "size": 1, "sha256": digest} for path in (hostile, f"{hostile}-absent")]
    result = {"outcome": "Published", "reason": "Published", "message": "", "jobUID": "u", "configSHA256": "c"}
    (tmp_path / Artifact.MANIFEST).write_text(json.dumps(JOB | {"files": files, "result": result}))
    assert verify_published(str(tmp_path), None, []) == 1
    out, err = capsys.readouterr()
    shown = "a\\nok  0  forged\\u001b[2J\\u009b\\u202e"
    assert out.splitlines()[0] == f"ok  {digest}  {shown}"
    assert f"BAD {shown}-absent" in err
    assert not {"\x1b", "\x9b", "\u202e"} & set(out + err)
