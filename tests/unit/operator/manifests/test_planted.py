"""Children that another client made in a job's name are recognised by their content."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.manifests.jobs import Child, build_attempt
from finetune_operator.manifests.network import fill_token
from finetune_operator.manifests.planted import find_changed_labels, find_foreign_content
from finetune_operator.settings import Settings

Object = dict[str, Any]


@pytest.fixture
def child(scene: Any, settings: Settings) -> Child:
    one = scene(resources={"numNodes": 2, "gpusPerNode": 1}).to_training()
    policies = {"isolate_training_pods": True, "pod_egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]}
    return build_attempt(one.job, settings.model_copy(update=policies), "x/y:1", 1)


def stored(built: Object) -> Object:
    """The object as the API server and Kueue leave it."""
    found = copy.deepcopy(built)
    found["metadata"] |= {"uid": "u", "labels": {"a": "b"}}
    if built["kind"] == "Job":
        pod = found["spec"]["template"]["spec"]
        pod |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "nodeSelector": {"flavor": "a100"}}
        pod["tolerations"] = [{"key": "gpu", "operator": "Exists"}]
        pod["containers"][0]["ports"][0]["protocol"] = "TCP"
        for one in pod["containers"][0]["env"]:
            if "valueFrom" in one:
                one["valueFrom"]["fieldRef"]["apiVersion"] = "v1"
        for volume in pod["volumes"]:
            for kind in ("configMap", "secret"):
                if kind in volume:
                    volume[kind].setdefault("defaultMode", 420)
    if built["kind"] == "NetworkPolicy":
        for rule in (*found["spec"]["ingress"], *found["spec"]["egress"]):
            for port in rule.get("ports", []):
                port.setdefault("protocol", "TCP")
    if built["kind"] == "Service":
        found["spec"] |= {"type": "ClusterIP", "sessionAffinity": "None", "clusterIPs": ["None"]}
        for port in found["spec"]["ports"]:
            port |= {"protocol": "TCP", "targetPort": port["port"]}
    return found


def test_what_the_operator_built_is_its_own_with_the_defaults_of_the_api_server(child: Child) -> None:
    assert child.service
    assert child.network_policy
    for built in (child.config_map, child.service, child.network_policy, child.job):
        assert find_foreign_content(built["kind"], built, stored(built)) == ""


def pod_of(job: Object) -> Object:
    pod: Object = job["spec"]["template"]["spec"]
    return pod


def container_of(job: Object) -> Object:
    container: Object = pod_of(job)["containers"][0]
    return container


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda job: container_of(job).update(image="evil/x:1"), "containers[0].image"),
        (lambda job: container_of(job).update(command=["sh"]), "containers[0].command"),
        (lambda job: container_of(job)["args"].append("--x"), "containers[0].args"),
        (lambda job: container_of(job)["env"].append({"name": "LD_PRELOAD", "value": "/x.so"}), "containers[0].env"),
        (lambda job: container_of(job)["env"][0].update(value="/elsewhere"), "containers[0].env"),
        (lambda job: container_of(job).update(envFrom=[{"secretRef": {"name": "s"}}]), "containers[0].envFrom"),
        (lambda job: container_of(job).update(lifecycle={"postStart": {}}), "containers[0].lifecycle"),
        (lambda job: container_of(job)["securityContext"].update(privileged=True), "containers[0].securityContext"),
        (lambda job: pod_of(job)["containers"].append({"name": "two"}), "containers"),
        (lambda job: pod_of(job).update(initContainers=[{"name": "first"}]), "initContainers"),
        (lambda job: pod_of(job).update(hostNetwork=True), "hostNetwork"),
        (lambda job: pod_of(job).update(automountServiceAccountToken=True), "automountServiceAccountToken"),
        (lambda job: pod_of(job).update(serviceAccountName="admin"), "serviceAccountName"),
        (lambda job: pod_of(job)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "volumes"),
        (lambda job: pod_of(job)["volumes"][0].update(hostPath={"path": "/"}), "volumes"),
    ],
)
def test_a_job_with_another_pod_is_recognised(child: Child, change: Callable[[Object], None], field: str) -> None:
    found = stored(child.job)
    change(found)
    assert find_foreign_content("Job", child.job, found) == field


def test_a_job_that_a_webhook_has_stored_with_other_labels_is_recognised(child: Child) -> None:
    found = copy.deepcopy(child.job)
    found["metadata"]["labels"]["team"] = found["spec"]["template"]["metadata"]["labels"]["team"] = "ml"
    assert find_changed_labels(child.job, found) == []
    found["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "corp"
    del found["spec"]["template"]["metadata"]["labels"]["finetune.dev/attempt"]
    assert find_changed_labels(child.job, found) == ["app.kubernetes.io/managed-by", "finetune.dev/attempt"]


@pytest.fixture
def claiming(scene: Any, settings: Settings) -> Object:
    """A Job whose pod gets a volume of its own, with quantities that the API server spells otherwise."""
    workspace = {"sizeLimit": "1.5Ti", "storageClassName": "fast"}
    one = scene(resources={"shmSize": "1024Mi", "workspace": workspace}).to_training()
    return build_attempt(one.job, settings, "x/y:1", 1).job


def stored_claim(job: Object) -> tuple[Object, Object, Object]:
    """The Job as the API server stores it, the template of its claim, and its shared memory."""
    found = stored(job)
    volumes = {one["name"]: one for one in pod_of(found)["volumes"]}
    claim, memory = volumes["workspace"]["ephemeral"]["volumeClaimTemplate"], volumes["shm"]["emptyDir"]
    claim["metadata"] = {"creationTimestamp": None}
    claim["spec"] |= {"volumeMode": "Filesystem", "resources": {"requests": {"storage": "1536Gi"}}}
    memory["sizeLimit"] = "1Gi"
    return found, claim, memory


def test_the_defaults_and_the_spelling_of_a_volume_are_those_of_the_api_server(claiming: Object) -> None:
    assert find_foreign_content("Job", claiming, stored_claim(claiming)[0]) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda claim, _: claim["spec"].update(volumeMode="Block"),
        lambda claim, _: claim["spec"].update(volumeName="of-another"),
        lambda claim, _: claim["spec"]["resources"]["requests"].update(storage="1536Mi"),
        lambda claim, _: claim["spec"]["resources"]["requests"].update(storage="much"),
        lambda claim, _: claim["metadata"].update(labels={"a": "b"}),
        lambda _, memory: memory.update(sizeLimit="2Gi"),
    ],
)
def test_another_volume_is_recognised(claiming: Object, change: Callable[[Object, Object], None]) -> None:
    found, claim, memory = stored_claim(claiming)
    change(claim, memory)
    assert find_foreign_content("Job", claiming, found) == "volumes"


def test_a_config_map_and_a_service_with_another_content_are_not_the_operators(child: Child) -> None:
    config = stored(child.config_map)
    config["data"]["config.json"] = config["data"]["config.json"].replace("s3://", "s3://evil-")
    assert find_foreign_content("ConfigMap", child.config_map, config) == "data"
    assert child.service
    service = stored(child.service)
    service["spec"]["selector"] = {"app": "evil"}
    assert find_foreign_content("Service", child.service, service) == "spec"


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["ingress"].append({}),
        lambda spec: spec["ingress"][1].pop("ports"),
        lambda spec: spec["egress"].append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        lambda spec: spec["podSelector"].update(matchLabels={"app": "other"}),
        lambda spec: spec["policyTypes"].remove("Ingress"),
    ],
)
def test_a_network_policy_that_allows_more_is_not_the_operators(child: Child, change: Callable[[Object], None]) -> None:
    assert child.network_policy
    found = stored(child.network_policy)
    change(found["spec"])
    assert find_foreign_content("NetworkPolicy", child.network_policy, found) == "spec"


def test_the_first_token_that_was_made_counts_and_nothing_else_does(child: Child) -> None:
    """Two operators, or one that was stopped between two calls, make one token."""
    assert child.peer_token
    ours, theirs = (fill_token(child.peer_token, digit * 64) for digit in "12")
    assert find_foreign_content("ConfigMap", ours, stored(theirs)) == ""
    for data in ({}, {"token": ""}, {"token": "1" * 63}, {"token": "1" * 64, "config.json": "{}"}):
        assert find_foreign_content("ConfigMap", ours, stored(theirs) | {"data": data}) == "data"
