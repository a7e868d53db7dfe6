import json
from pathlib import Path
from typing import Any

from published_result import list_again, publish_result

from finetune_api.handoff import Artifact
from finetune_trainer.publishing.lineage_chain import follow_chain, read_result
from finetune_trainer.storage.protocol import sha256_file

URI = "s3://bucket/out"


def follow(world: Any) -> tuple[Any, list[str], list[str]]:
    manifest = read_result(URI, world.storage)
    assert not isinstance(manifest, str)
    lineage, links, faults = follow_chain(URI, manifest, world.storage)
    return lineage, [str(link) for link in links], faults


def test_a_result_without_a_parent_comes_from_its_base(world: Any, tmp_path: Path) -> None:
    publish_result(world.config, world.storage, tmp_path)
    lineage, links, faults = follow(world)
    assert faults == []
    assert lineage.job.uid == world.config.uid
    assert links == [f"base s3://bucket/model sha256:{lineage.base_model.sha256}"]


def test_a_prefix_without_a_manifest_has_no_result(world: Any) -> None:
    assert read_result(URI, world.storage) == "manifest.json is missing"


def test_a_config_other_than_the_recorded_one_is_a_fault(world: Any, tmp_path: Path) -> None:
    publish_result(world.config, world.storage, tmp_path)
    recorded = sha256_file(world.out / Artifact.CONFIG)
    (world.out / Artifact.CONFIG).write_text("spec: []\n")
    list_again(world.out)
    found = sha256_file(world.out / Artifact.CONFIG)
    expected = f"lineage: finetune_config.yaml has SHA-256 {recorded} and {found} in the manifest"
    assert follow(world)[2] == [expected]


def test_a_lineage_of_another_job_is_a_fault(world: Any, tmp_path: Path) -> None:
    publish_result(world.config, world.storage, tmp_path)
    path = world.out / Artifact.LINEAGE
    content = json.loads(path.read_text())
    content["job"]["uid"] = "other"
    path.write_text(json.dumps(content))
    list_again(world.out)
    assert follow(world)[2] == [f"lineage: uid of the job is other and {world.config.uid} in the manifest"]
