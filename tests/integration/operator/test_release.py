"""FineTuneReleases on a real API server, by an operator with exactly the rights of the chart; the test is the kubelet,
and the controller of KServe, whose definition is a stand-in here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import others
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from release_world import GROUP, PLURAL, RIGHTS, VERSION, Releases

ROOT = Path(__file__).parents[3]
KSERVE = ("serving.kserve.io", "v1alpha2", "llminferenceservices")
NEW = {"uri": "s3://bucket/jobs/one", "manifestSHA256": "ab" * 32}
OLD = {"uri": "s3://bucket/jobs/old", "manifestSHA256": "cd" * 32}
VLLM = {
    "service": {"name": "vllm"},
    "adapterName": "bot",
    "volume": {"claimName": "adapters", "path": "/adapters"},
}
Object = dict[str, Any]


def kserve_definition() -> Object:
    group, version, plural = KSERVE
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    served = {"name": version, "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": "LLMInferenceService", "plural": plural, "singular": "llminferenceservice"},
            "scope": "Namespaced",
            "versions": [served | {"schema": {"openAPIV3Schema": schema}}],
        },
    }


@pytest.fixture
def releases(world: Any, wait: Callable[..., Any]) -> Iterator[Releases]:
    extensions = client.ApiextensionsV1Api(world.core.api_client)
    definitions = [yaml.safe_load((ROOT / "crds" / "finetunereleases.yaml").read_text()), kserve_definition()]
    for one in definitions:
        extensions.create_custom_resource_definition(one)
    served = [(GROUP, VERSION, PLURAL), KSERVE]

    def is_served(group: str, version: str, plural: str) -> bool:
        try:
            return bool(world.custom.list_namespaced_custom_object(group, version, world.namespace, plural))
        except ApiException as error:
            if error.status != 404:
                raise
            return False

    for kind in served:
        wait(lambda kind=kind: is_served(*kind), f"{kind} is served")
    yield Releases(world)
    for one in definitions:
        extensions.delete_custom_resource_definition(one["metadata"]["name"])
    left = {one["metadata"]["name"] for one in definitions}

    def are_gone() -> bool:
        found = extensions.list_custom_resource_definition().items
        return left.isdisjoint(one.metadata.name for one in found)

    wait(are_gone, "the definitions to be gone", 60)  # the next test creates them again


@pytest.fixture
def serving(
    access: Any, control_plane: Path, tmp_path: Path, operator_with: Callable[..., Any], releases: Releases
) -> Releases:
    """Releases that an operator serves."""
    own = type(access)(control_plane, tmp_path)
    rules = client.RbacAuthorizationV1Api(own.api).read_cluster_role(own.name).rules
    own.set_rules([*(own.api.sanitize_for_serialization(one) for one in rules), *RIGHTS])
    releases.operator = operator_with(own.kubeconfig, FINETUNE_RELEASES="true", FINETUNE_POD_EGRESS="[]").start()
    return releases


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"jobRef": {"name": "one"}, **NEW, "target": {"vllm": VLLM}}, "exactly one of jobRef and uri"),
        ({"target": {"vllm": VLLM}}, "exactly one of jobRef and uri"),
        ({"uri": NEW["uri"], "target": {"vllm": VLLM}}, "uri needs manifestSHA256"),
        ({**NEW, "target": {}}, "exactly one of vllm, kserve and files"),
        ({**NEW, "target": {"vllm": VLLM, "files": {"uri": "s3://bucket/a"}}}, "exactly one of vllm"),
        ({**NEW, "target": {"vllm": VLLM | {"url": "http://x"}}}, "exactly one of url and service"),
        ({"jobRef": {"name": "one"}, "storage": {}, "target": {"vllm": VLLM}}, "storage is only for uri"),
        (
            {**NEW, "require": {"matchedPercent": 9}, "target": {"files": {"uri": "s3://bucket/a"}}},
            "matchedPercent needs a server that is asked",
        ),
        (
            {**NEW, "require": {"tokens": "Any"}, "target": {"files": {"uri": "s3://bucket/a"}}},
            "tokens needs a server that is asked",
        ),
        (
            {**NEW, "target": {"vllm": VLLM | {"caSecretRef": {"name": "ca"}}}},
            "caSecretRef is only for a server with TLS",
        ),
    ],
)
def test_the_api_server_refuses_a_release_that_breaks_a_rule(releases: Releases, spec: Object, words: str) -> None:
    with pytest.raises(ApiException, match=words):
        releases.create(spec, dry_run=True)


def test_the_releases_of_the_guide_are_accepted(releases: Releases) -> None:
    found = [one for _, one in others() if one["kind"] == "FineTuneRelease"]
    assert len(found) == 2
    for one in found:
        releases.create(one["spec"], dry_run=True)


def left_by_releases(world: Any) -> list[str]:
    """The names of the ConfigMaps and NetworkPolicies of releases, without the digest of a content."""
    selector = {"label_selector": "app.kubernetes.io/component=release"}
    policies = client.NetworkingV1Api(world.core.api_client).list_namespaced_network_policy(world.namespace, **selector)
    maps = world.core.list_namespaced_config_map(world.namespace, **selector)
    return ["-".join(one.metadata.name.split("-")[:2]) for one in (*maps.items, *policies.items)]


def test_a_release_waits_for_its_job_replaces_rolls_back_by_its_spec_and_leaves_nothing(
    world: Any, wait: Callable[..., Any], serving: Releases
) -> None:
    serving.create({"jobRef": {"name": "one"}, "target": {"vllm": VLLM}})
    assert "does not exist yet" in serving.wait_for("WaitingForJob")["message"]
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.end(trainer, 0, world.published())

    serving.wait_for("Releasing")
    answering = NEW | {"releasedTime": "2026-01-01T00:00:00Z"}
    comparison = {"verdict": "Better", "rows": 20, "championLoss": 2.0, "challengerLoss": 1.0}
    pod = serving.end("bot-r1", "Released", answering=answering, replaced=OLD, comparison=comparison)
    (container,) = pod.spec.containers
    assert container.args == ["release"]
    assert {volume.secret.secret_name for volume in pod.spec.volumes if volume.secret} == {"s3"}
    status = serving.wait_for("Released")
    assert (status["answering"], status["previous"], status["comparison"]) == (answering, OLD, comparison)
    assert {one["type"]: one["status"] for one in status["conditions"]} == {
        "Ready": "True", "Released": "True", "Reconciling": "False", "Stalled": "False",
    }  # fmt: skip
    wait(lambda: serving.series("finetune_release_ready") == 'reason="Released"} 1.0', "the metric of the release")
    expected = {"WaitingForJob": "Normal", "Releasing": "Normal", "Released": "Normal"}
    wait(lambda: serving.events() == expected, "the events of the release")  # the last one comes after the status

    serving.patch({"jobRef": None, **OLD})
    serving.end("bot-r2", "Held")
    status = serving.wait_for("Held")
    assert left_by_releases(world) == ["bot-r2", "bot-r2"]
    assert status["answering"] == answering
    assert status["lastRefusal"]["manifestSHA256"] == OLD["manifestSHA256"]
    wait(lambda: "bot-r1" not in world.jobs(), lambda: str(world.jobs()))
    world.delete()
    serving.delete()
    wait(lambda: not world.jobs(), lambda: str(world.jobs()))


OTHER_ADAPTER = {"name": "other", "uri": "s3://bucket/other"}


class LLMService:
    """An LLMInferenceService, whose controller is the test."""

    def __init__(self, world: Any) -> None:
        group, version, plural = KSERVE
        self._api = world.custom
        self._where = (group, version, world.namespace, plural)
        lora = {"maxRank": 16, "adapters": [OTHER_ADAPTER]}
        body = {
            "apiVersion": f"{group}/{version}",
            "kind": "LLMInferenceService",
            "metadata": {"name": "service"},
            "spec": {"model": {"uri": "hf://owner/base", "lora": lora}},
        }
        self._api.create_namespaced_custom_object(*self._where, body)

    def get(self) -> Object:
        return dict(self._api.get_namespaced_custom_object(*self._where, "service"))

    def adapters(self) -> list[Object]:
        return list(self.get()["spec"]["model"]["lora"]["adapters"])

    def report_ready(self) -> None:
        ready = {"type": "Ready", "status": "True"}
        status = {"observedGeneration": self.get()["metadata"]["generation"], "conditions": [ready]}
        self._api.patch_namespaced_custom_object_status(*self._where, "service", {"status": status})


@pytest.fixture
def service(world: Any, serving: Releases, wait: Any) -> LLMService:
    """An LLMInferenceService in which a release tries its result."""
    serving.create(NEW | {"target": {"kserve": {"name": "service", "adapterName": "bot"}}})
    serving.wait_for("TargetMissing")
    service = LLMService(world)
    serving.end("bot-r1", "Verified")
    trial = serving.wait_for("WaitingForServer")["trial"]
    assert trial == {"name": "service", "adapterName": "bot"}
    entry = {"name": "bot", "uri": f"{NEW['uri']}/adapter/"}
    wait(lambda: service.adapters() == [OTHER_ADAPTER, entry], lambda: str(service.adapters()))
    return service


def test_the_adapter_of_an_existing_service_is_set_and_waited_for(serving: Releases, service: LLMService) -> None:
    assert serving.get()["status"]["reason"] == "WaitingForServer"
    service.report_ready()
    assert serving.wait_for("Released")["answering"]["uri"] == NEW["uri"]
    assert "trial" not in serving.get()["status"]


def test_an_edit_of_the_target_during_a_trial_gives_the_entry_back(
    wait: Any, serving: Releases, service: LLMService
) -> None:
    serving.patch({"target": {"kserve": None, "files": {"uri": "s3://bucket/alias"}}})
    wait(lambda: service.adapters() == [OTHER_ADAPTER], lambda: str(service.adapters()))
    serving.end("bot-r2", "Released", answering=NEW)
    assert "trial" not in serving.wait_for("Released")


def test_a_pod_that_does_not_start_is_shown_with_its_cause(world: Any, wait: Any, serving: Releases) -> None:
    serving.create(NEW | {"target": {"vllm": VLLM}})
    pod = world.pod_of("bot-r1")
    world.wait_for_image(pod, "ImagePullBackOff", "manifest unknown")

    def shown() -> str:
        return str(serving.get()["status"].get("message"))

    wait(lambda: "The image cannot be pulled: " in shown() and "check the name and the tag" in shown(), shown)
    assert serving.wait_for("Releasing")["conditions"][0]["status"] == "Unknown"
