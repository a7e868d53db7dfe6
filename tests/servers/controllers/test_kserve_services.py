"""KServe's own controller of InferenceServices makes a Deployment of each manifest that a report prints. Kubernetes
runs the Deployment; the test plays the kubelet."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kserve_world import KServe, Kubectl, Served, copied

from finetune_trainer.report.serving import Place, kserve_adapter, kserve_merged

ENDPOINT = "http://minio.storage:9000"
HUB = "https://hub.example.org"
ACCOUNT = "reader"
IMAGE = "registry.example.com/team/helpdesk:v1"
RANK = 24
LORA = ["--enable-lora", "--max-lora-rank=32", "--lora-modules=tuned=/mnt/models/adapter"]
SETTINGS = ["--chat-template=/mnt/models/adapter/chat_template.jinja", "--generation-config=/mnt/models/adapter"]


def place(namespace: str, **changed: str) -> Place:
    found = Place("support.bot", f"s3://bucket/{namespace}/one", "hf://owner/base", "a" * 40, ENDPOINT, HUB)
    return replace(found, namespace=namespace, **changed)


@pytest.fixture(scope="module", autouse=True)
def _controller(  # noqa: PLR0917 - fixtures
    source: Any, install: Any, program: Any, running: Any, kubectl: Kubectl, kserve: KServe, tmp_path_factory: Any
) -> Iterator[None]:
    """The controller with KServe's definitions and all its runtimes; its storage container names the hub, as the
    report prints."""
    config = source("kserve") / "config"
    full = config / "crd" / "full"
    for path in [
        *sorted(full.glob("serving*.yaml")),
        *sorted((full / "clusterstoragecontainer").glob("serving*.yaml")),
    ]:
        install(path)
    for folder in ("runtimes", "storagecontainers"):
        kubectl("apply", "--server-side", "-k", str(config / folder))
    hub = {"spec": {"container": {"env": [{"name": "HF_ENDPOINT", "value": HUB}]}}}
    kubectl("patch", "clusterstoragecontainer", "default", "--type=merge", "-p", json.dumps(hub))
    with kserve.controller(program("kserve"), running, tmp_path_factory.mktemp("kserve"), "manifests.yaml"):
        yield


class Service(Served):
    """The InferenceService of a report, and its Deployment."""

    version, plural = "v1beta1", "inferenceservices"
    selector = "serving.kserve.io/inferenceservice"

    def create(self, manifest: str) -> None:
        """Apply the printed manifest with a service account that has a Secret, as the report describes both."""
        kept = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "of the key"}
        meta = {"name": "s3", "annotations": {"serving.kserve.io/s3-endpoint": ENDPOINT}}
        self.world.core.create_namespaced_secret(self.world.namespace, {"metadata": meta, "stringData": kept})
        account = {"metadata": {"name": ACCOUNT}, "secrets": [{"name": "s3"}]}
        self.world.core.create_namespaced_service_account(self.world.namespace, account)
        wanted = yaml.safe_load(manifest)
        wanted["spec"]["predictor"]["serviceAccountName"] = ACCOUNT
        super().create(yaml.safe_dump(wanted))

    def pod(self) -> Any:
        """Its pod, as the webhook has completed it."""
        name = self.new_pod()
        return self.pods()[name]


@pytest.fixture
def service(world: Any, kubectl: Kubectl) -> Iterator[Service]:
    yield Service(world, kubectl)
    kubectl("delete", "inferenceservice", "--all", "-n", world.namespace, "--timeout=60s")


def require_credentials(initializer: Any) -> None:
    """The keys are references to the Secret, and the endpoint is that of its annotation."""
    env = {one.name: one for one in initializer.env}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        found = env[name].value_from.secret_key_ref
        assert (found.name, found.key) == ("s3", name)
    assert env["AWS_ENDPOINT_URL"].value == ENDPOINT


def become_ready(service: Service) -> None:
    """Play the kubelet of its only pod, and wait for KServe."""
    assert service.conditions().get("Ready") != "True"
    service.make_ready(service.new_pod())
    service.wait_ready()
    assert service.get()["status"]["url"] == f"http://{service.name}-{service.world.namespace}.example.com"


def test_the_service_of_a_full_model_copies_it_with_the_keys_of_its_account_and_becomes_ready(
    service: Service,
) -> None:
    namespace = service.world.namespace
    service.create(kserve_merged(place(namespace)))
    pod = service.pod()
    (initializer,), (server,) = pod.spec.init_containers, pod.spec.containers
    assert copied(initializer) == {"/mnt/models": f"s3://bucket/{namespace}/one/merged/"}
    require_credentials(initializer)
    assert server.image == "kserve/huggingfaceserver:latest-gpu"
    assert server.args == ["--model_name=support-bot", "--model_name=tuned"], "a parser takes the last"
    assert {"/mnt/models"} == {one.mount_path for one in server.volume_mounts if one.name.startswith("kserve-")}
    assert (server.resources.limits["nvidia.com/gpu"], server.resources.limits["memory"]) == ("1", "24Gi")
    become_ready(service)  # whose status KServe may write after the pod's Deployment
    assert service.get()["status"]["clusterServingRuntimeName"] == "kserve-huggingfaceserver"


def test_the_service_of_an_adapter_copies_it_and_the_base_of_a_hub_and_becomes_ready(service: Service) -> None:
    namespace = service.world.namespace
    service.create(kserve_adapter(place(namespace), RANK))
    pod = service.pod()
    (initializer,), (server,) = pod.spec.init_containers, pod.spec.containers
    assert copied(initializer) == {
        "/mnt/models/base": f"hf://owner/base:{'a' * 40}",
        "/mnt/models/adapter": f"s3://bucket/{namespace}/one/adapter/",
    }
    require_credentials(initializer)
    assert {one.name: one.value for one in initializer.env}["HF_ENDPOINT"] == HUB
    mounts = [{one.mount_path for one in each.volume_mounts} for each in (initializer, server)]
    assert "/mnt/models" in mounts[0] & mounts[1]
    named = ["--model_name=support-bot", "--model_name=support-bot", "--model_dir=/mnt/models/base"]
    assert server.args == [*named, *LORA, *SETTINGS]
    become_ready(service)


@pytest.mark.parametrize(("base", "folder"), [("pvc://shared/llama/8b", "llama/8b"), ("pvc://shared", ".")])
def test_the_server_finds_the_base_in_the_claim_that_kserve_mounts(service: Service, base: str, folder: str) -> None:
    service.create(kserve_adapter(place(service.world.namespace, base=base), RANK))
    spec = service.pod_spec()
    (initializer,), (server,) = spec.init_containers, spec.containers
    assert list(copied(initializer)) == ["/mnt/models/adapter"]
    (volume,) = (one.name for one in spec.volumes if one.persistent_volume_claim)
    (mount,) = (one for one in server.volume_mounts if one.name == volume)
    (named,) = (word.removeprefix("--model_dir=") for word in server.args if word.startswith("--model_dir="))
    inside = Path(mount.sub_path or "") / Path(named).relative_to(mount.mount_path)
    assert str(inside) == folder


def test_a_full_model_from_a_registry_is_a_volume_of_the_pod(service: Service) -> None:
    wanted = yaml.safe_load(kserve_merged(place(service.world.namespace)))
    wanted["spec"]["predictor"]["model"]["storageUri"] = f"oci+native://{IMAGE}"
    service.create(yaml.safe_dump(wanted))
    spec = service.pod().spec
    assert not spec.init_containers
    (volume,) = (one for one in spec.volumes if one.image)
    assert volume.image.reference == IMAGE
    (mount,) = (one for one in spec.containers[0].volume_mounts if one.name == volume.name)
    assert (mount.mount_path, mount.sub_path) == ("/mnt/models", "models")


def test_a_long_name_is_cut_so_that_kserve_accepts_it_in_a_host(service: Service) -> None:
    service.create(kserve_merged(place(service.world.namespace, name="support-bot" * 5)))
    (found,) = service.world.custom.list_namespaced_custom_object(*service.where)["items"]
    service.name = found["metadata"]["name"]
    become_ready(service)
