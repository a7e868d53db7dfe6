import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from published_result import list_again, publish_result

from finetune_api.handoff import Artifact, Manifest
from finetune_api.status import PublishedJob
from finetune_trainer.publishing import lineage_chain
from finetune_trainer.publishing.lineage_chain import Link, follow_chain, read_result
from finetune_trainer.storage.protocol import sha256_file

URI = "s3://bucket/out"


def follow(world: Any, uri: str = URI) -> tuple[Any, list[Link], list[str]]:
    manifest = read_result(uri, world.storage)
    assert not isinstance(manifest, str)
    return follow_chain(uri, manifest, world.storage)


def put(world: Any, tmp_path: Path, name: str, parent: PublishedJob | None = None, **lineage: Any) -> PublishedJob:
    world.with_config({"output": {"uri": f"s3://bucket/{name}"}}, name=name, uid=f"uid-{name}")
    config = world.config.model_copy(update={"parent": parent})
    return publish_result(config, world.storage, tmp_path / "results", lineage=lineage)


def test_a_result_without_a_parent_comes_from_its_base(world: Any, tmp_path: Path) -> None:
    publish_result(world.config, world.storage, tmp_path)
    lineage, links, faults = follow(world)
    assert faults == []
    assert lineage.job.uid == world.config.uid
    assert [str(link) for link in links] == [f"base s3://bucket/model sha256:{lineage.base_model.sha256}"]


def test_the_base_is_named_with_its_commit(world: Any, tmp_path: Path) -> None:
    base = {"uri": "hf://acme/base", "revision": "a" * 40, "sha256": "b" * 64}
    put(world, tmp_path, "out", baseModel=base)
    assert follow(world)[1] == [Link(1, "base", "", f"hf://acme/base@{'a' * 40}", "b" * 64)]


def test_every_ancestor_is_listed_with_its_base_one_level_further_for_each_generation(
    world: Any, tmp_path: Path
) -> None:
    first, judge = put(world, tmp_path, "first"), put(world, tmp_path, "judge")
    second = put(world, tmp_path, "second", first)
    put(world, tmp_path, "third", second, rewardJob=judge.model_dump(by_alias=True))
    _, links, faults = follow(world, "s3://bucket/third")
    assert faults == []
    base = links[0].sha256
    assert links == [
        Link(1, "base", "", "s3://bucket/model", base),
        Link(1, "parent", "team/second", "s3://bucket/second", second.manifest_sha256),
        Link(2, "base", "", "s3://bucket/model", base),
        Link(2, "parent", "team/first", "s3://bucket/first", first.manifest_sha256),
        Link(3, "base", "", "s3://bucket/model", base),
        Link(1, "reward job", "team/judge", "s3://bucket/judge", judge.manifest_sha256),
        Link(2, "base", "", "s3://bucket/model", base),
    ]


def test_a_chain_may_have_so_many_links_and_not_more(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = put(world, tmp_path, "second", put(world, tmp_path, "first"))
    put(world, tmp_path, "third", second)
    monkeypatch.setattr(lineage_chain, "MAX_LINKS", 3)
    lineage, links, faults = follow(world, "s3://bucket/second")
    assert (len(links), faults) == (3, [])
    lineage, links, faults = follow(world, "s3://bucket/third")
    assert lineage.job.name == "third"
    assert (len(links), faults) == (3, ["the chain has more than 3 links"])


def test_results_that_name_each_other_as_parent_end_the_chain(world: Any, tmp_path: Path) -> None:
    second = PublishedJob(
        name="second", uid="u", objective="Chat", output_uri="s3://bucket/second", manifest_sha256="0" * 64
    )
    put(world, tmp_path, "second", put(world, tmp_path, "first", second))
    assert follow(world, "s3://bucket/second")[2] == ["parent s3://bucket/second is its own ancestor"]


@pytest.mark.parametrize("folder", ["adapter", "elsewhere"])
def test_the_adapter_that_was_continued_is_the_one_in_the_parents_manifest(
    world: Any, tmp_path: Path, folder: str
) -> None:
    first = put(world, tmp_path, "first")
    digest = sha256_file(world.bucket / "first" / "adapter" / "adapter_model.safetensors")
    uri = f"s3://bucket/first/{folder}"
    put(world, tmp_path, "same", first, initialAdapter={"uri": uri, "sha256": digest})
    assert follow(world, "s3://bucket/same")[2] == []
    put(world, tmp_path, "other", first, initialAdapter={"uri": uri, "sha256": "0" * 64})
    fault = f"lineage: the adapter {uri} had SHA-256 {'0' * 64} and {digest} in its manifest"
    assert follow(world, "s3://bucket/other")[2] == ([fault] if folder == "adapter" else [])


def test_the_adapter_that_an_ancestor_continued_is_the_one_in_the_manifest_of_its_own_parent(
    world: Any, tmp_path: Path
) -> None:
    first = put(world, tmp_path, "first")
    digest = sha256_file(world.bucket / "first" / "adapter" / "adapter_model.safetensors")
    uri = "s3://bucket/first/adapter"
    second = put(world, tmp_path, "second", first, initialAdapter={"uri": uri, "sha256": "0" * 64})
    fault = f"lineage: the adapter {uri} had SHA-256 {'0' * 64} and {digest} in its manifest"
    put(world, tmp_path, "third", second)
    assert follow(world, "s3://bucket/third")[2] == [f"parent s3://bucket/second: {fault}"]
    put(world, tmp_path, "fourth", second, initialAdapter={"uri": uri, "sha256": "1" * 64})
    own = f"lineage: the adapter {uri} had SHA-256 {'1' * 64} and {digest} in its manifest"
    assert follow(world, "s3://bucket/fourth")[2] == [own, f"parent s3://bucket/second: {fault}"]


def test_an_ancestor_without_its_recorded_manifest_is_a_fault(world: Any, tmp_path: Path) -> None:
    first = put(world, tmp_path, "first")
    put(world, tmp_path, "second", first)
    path = world.bucket / "first" / Artifact.MANIFEST
    path.write_bytes(path.read_bytes() + b"\n")
    expected = f"has a manifest.json of SHA-256 {sha256_file(path)} instead of the recorded {first.manifest_sha256}"
    assert follow(world, "s3://bucket/second")[2] == [f"parent s3://bucket/first {expected}"]
    path.unlink()
    expected = f"has no manifest.json, the recorded SHA-256 is {first.manifest_sha256}"
    assert follow(world, "s3://bucket/second")[2] == [f"parent s3://bucket/first {expected}"]


def test_an_ancestor_whose_manifest_cannot_be_read_is_a_fault(world: Any, tmp_path: Path) -> None:
    first = put(world, tmp_path, "first")
    (world.bucket / "first" / Artifact.MANIFEST).write_bytes(b"{}")
    broken = first.model_copy(update={"manifest_sha256": hashlib.sha256(b"{}").hexdigest()})
    put(world, tmp_path, "second", broken)
    assert follow(world, "s3://bucket/second")[2] == ["parent s3://bucket/first manifest.json cannot be read"]
    assert read_result("s3://bucket/first", world.storage) == "manifest.json cannot be read"


def test_a_fault_in_the_lineage_of_an_ancestor_names_the_ancestor(world: Any, tmp_path: Path) -> None:
    wrong = {"namespace": "team", "name": "another", "uid": "uid-first", "configSHA256": world.config.config_sha256}
    first = put(world, tmp_path, "first", job=wrong)
    put(world, tmp_path, "second", first)
    _, links, faults = follow(world, "s3://bucket/second")
    assert "parent s3://bucket/first: lineage: name of the job is another and first in the manifest" in faults
    assert [link.depth for link in links] == [1, 1, 2]
    (world.bucket / "first" / Artifact.LINEAGE).unlink()
    _, links, faults = follow(world, "s3://bucket/second")
    assert faults == ["parent s3://bucket/first: lineage.json is missing"]
    assert [link.depth for link in links] == [1, 1]


def test_a_lineage_that_the_manifest_does_not_list_or_that_changed_is_a_fault(world: Any, tmp_path: Path) -> None:
    put(world, tmp_path, "out")
    path = world.out / Artifact.LINEAGE
    path.write_bytes(path.read_bytes() + b"\n")
    assert follow(world) == (None, [], ["lineage.json does not match its SHA-256 in the manifest"])
    manifest = Manifest.model_validate_json((world.out / Artifact.MANIFEST).read_bytes())
    manifest.files = [file for file in manifest.files if file.path != Artifact.LINEAGE]
    assert follow_chain(URI, manifest, world.storage)[2] == ["manifest.json lists no lineage.json"]


@pytest.mark.parametrize(
    ("content", "field"),
    [("[]", "it"), ("{", "it"), ('{"job": {"namespace": 1}}', "job.namespace"), ("{}", "job")],
)
def test_a_lineage_that_cannot_be_read_names_the_field(world: Any, tmp_path: Path, content: str, field: str) -> None:
    put(world, tmp_path, "out")
    (world.out / Artifact.LINEAGE).write_text(content)
    list_again(world.out)
    expected = f"lineage.json cannot be read: {field} is missing or invalid"
    assert follow(world) == (None, [], [expected])


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
