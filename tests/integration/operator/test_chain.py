"""Jobs that build on other jobs, on a real API server: they wait, wake, and hold on to what they were accepted with."""

import json
from typing import Any

import pytest

TUNED = {"method": "LoRA"}
CHILD = {"objective": "DPO", "lineage": {"parentRef": {"name": "sft"}}}
CONTINUING = CHILD | {"tuning": TUNED | {"initialAdapter": {"fromParent": True}}}
RLHF = {
    "objective": "RLHF",
    "lineage": {"parentRef": {"name": "sft"}},
    "rlhf": {"rewardModel": {"jobRef": {"name": "scorer"}}},
}


def _result(name: str) -> dict[str, str]:
    uri = f"s3://bucket/jobs/{name}"
    return {"uri": uri, "adapterURI": f"{uri}/adapter", "manifestSHA256": name.encode().hex().ljust(64, "0")}


def _complete(world: Any, name: str) -> dict[str, Any]:
    world.end(world.pass_preflight(name), 0, world.report("Published", name, artifacts=_result(name)))
    status: dict[str, Any] = world.wait_phase("Succeeded", name)
    return status


def _config(world: Any, pod: Any) -> dict[str, Any]:
    """What a pod was told."""
    name = next(one.config_map.name for one in pod.spec.volumes if one.config_map)
    data = world.core.read_namespaced_config_map(name, world.namespace).data
    config: dict[str, Any] = json.loads(data["config.json"])
    return config


def test_a_chain_applied_in_the_wrong_order_completes(world: Any, operator: Any) -> None:
    world.create("rlhf", **RLHF)
    waits = world.wait_condition("Accepted", "WaitingForParent", "rlhf")
    assert waits["status"] == "Unknown"
    assert f"FineTuneJob sft (lineage.parentRef) does not exist in namespace {world.namespace}" in waits["message"]
    assert "FineTuneJob scorer (" in waits["message"]
    world.create("scorer", objective="RewardModel")
    world.create("sft")
    _complete(world, "scorer")
    world.wait_phase("Preflight", "sft")
    assert world.status("rlhf")["phase"] == "Pending"
    assert not [name for name in world.jobs() if name.startswith("rlhf")]
    _complete(world, "sft")
    config = _config(world, world.pod_of("rlhf-preflight"))
    assert (config["parent"]["name"], config["parent"]["objective"]) == ("sft", "Chat")
    assert config["parent"]["manifestSHA256"] == _result("sft")["manifestSHA256"]
    assert config["rewardJob"] == {
        "name": "scorer",
        "uid": world.get("scorer")["metadata"]["uid"],
        "objective": "RewardModel",
        "outputURI": "s3://bucket/jobs/scorer",
        "manifestSHA256": _result("scorer")["manifestSHA256"],
    }
    assert world.events().count("WaitingForParent") == 1


def test_pinned_parents_outlive_the_parent_and_the_operator(world: Any, operator: Any) -> None:
    world.create("sft", tuning=TUNED)
    _complete(world, "sft")
    world.create("dpo", **CONTINUING)
    preflight = world.pod_of("dpo-preflight")
    told = _config(world, preflight)["parent"]
    operator.kill()
    world.delete("sft")
    operator.start()
    world.create("sft", tuning=TUNED)
    _complete(world, "sft")
    world.end(preflight, 0, world.validated("dpo"))
    trainer = world.pod_of("dpo-1")
    assert _config(world, trainer)["parent"] == told
    world.end(trainer, 0, world.published("dpo"))
    lineage = world.wait_phase("Succeeded", "dpo")["lineage"]
    assert lineage["parent"] == told
    assert told["uid"] != world.get("sft")["metadata"]["uid"]


def test_a_failed_parent_can_be_corrected_and_its_child_continues(world: Any, operator: Any) -> None:
    world.create("dpo", **CHILD)
    world.create("sft")
    world.end(
        world.pod_of("sft-preflight"), 65, world.report("Failed", "sft", reason="DatasetUnusable", message="no rows")
    )
    failed = world.wait_condition("Accepted", "ParentFailed", "dpo")
    assert "sft has failed (DatasetUnusable: no rows)" in failed["message"]
    assert (world.status("dpo")["phase"], world.condition("Stalled", "dpo")["status"]) == ("Pending", "False")
    world.delete("sft")
    world.wait_condition("Accepted", "WaitingForParent", "dpo")
    world.create("sft")
    _complete(world, "sft")
    parent = _config(world, world.pod_of("dpo-preflight"))["parent"]
    assert parent["uid"] == world.get("sft")["metadata"]["uid"]


def test_a_circle_is_named_on_each_of_its_jobs_until_one_is_deleted(world: Any, operator: Any) -> None:
    names = ["a", "b", "c"]
    for name, parent in zip(names, ["b", "c", "a"], strict=True):
        world.create(name, lineage={"parentRef": {"name": parent}})
    for name, way in zip(names, ["a → b → c → a", "b → c → a → b", "c → a → b → c"], strict=True):
        found = world.wait_condition("Accepted", "InvalidSpec", name)
        assert (found["status"], way in found["message"]) == ("False", True)
    assert world.jobs() == []
    world.delete("a")
    world.wait_condition("Accepted", "WaitingForParent", "c")
    world.wait_condition("Accepted", "WaitingForParent", "b")


@pytest.mark.parametrize(
    ("parent", "child", "words"),
    [
        ({"tuning": {"method": "Full"}}, CONTINUING, "publishes no adapter"),
        ({}, RLHF | {"rlhf": {"rewardModel": {"jobRef": {"name": "sft"}}}}, "name a job with objective RewardModel"),
    ],
)
def test_a_parent_that_cannot_serve_is_refused_before_it_is_awaited(
    world: Any, operator: Any, parent: Any, child: Any, words: str
) -> None:
    world.create("sft", **parent)
    world.create("child", **child)
    found = world.wait_condition("Accepted", "InvalidSpec", "child")
    assert words in found["message"]
    assert world.status("child")["phase"] == "Pending"


def test_the_api_server_takes_pods_with_tokens_cache_and_authority(world: Any, operator: Any) -> None:
    world.create(
        hub={"endpoint": "https://mirror.example", "caSecretRef": {"name": "ca"}},
        model={"uri": "hf://owner/model", "revision": "v1", "credentialsSecretRef": {"name": "gated"}},
        dataset={"train": {"uri": "hf://datasets/owner/rows", "credentialsSecretRef": {"name": "rows"}}},
        modelCache={"claimName": "hf-cache"},
    )
    for pod in (world.pod_of("one-preflight"), world.pass_preflight()):
        mounts = {one.name: one.mount_path for one in pod.spec.containers[0].volume_mounts}
        assert mounts["hub-tokens"] == "/etc/finetune/hub"
        assert (mounts["model-cache"], mounts["hub-ca"]) == ("/model-cache", "/etc/finetune/hub-ca")
        volumes = {one.name: one for one in pod.spec.volumes}
        assert [one.secret.name for one in volumes["hub-tokens"].projected.sources] == ["gated", "rows"]
        assert volumes["model-cache"].persistent_volume_claim.claim_name == "hf-cache"
    world.cannot_schedule(pod, '0/1 nodes are available: persistentvolumeclaim "hf-cache" not found. preemption: none.')
    shown = world.wait_condition("Running", "Unschedulable")
    assert 'persistentvolumeclaim "hf-cache" not found: create this claim' in shown["message"]
    assert "mirror.example" in json.dumps(_config(world, pod)["spec"]["hub"])
