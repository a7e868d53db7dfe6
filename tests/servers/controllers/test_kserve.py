"""KServe's own controller of LLMInferenceServices makes a Deployment of the manifest that a report prints, and rolls
out what a FineTuneRelease sets. Kubernetes runs the Deployment; the test plays the kubelet and the gateway."""

import base64
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from release_world import RIGHTS, Releases
from waiting import wait_until

from finetune_trainer.report.serving import Place, kserve_llm_adapter

Kubectl = Callable[..., str]
Object = dict[str, Any]
ROOT = Path(__file__).parents[3]
GATEWAY = {"name": "kserve-ingress-gateway", "namespace": "kserve"}
"""The gateway of KServe's configuration, to which the printed manifest leaves the choice."""
DIGESTS = {"one": "ab" * 32, "two": "cd" * 32}
RANK = 24


def place(namespace: str, job: str = "support.bot") -> Place:
    return Place(
        job, f"s3://bucket/{namespace}/one", "hf://owner/base", "a" * 40, hub_endpoint="https://hub.example.org"
    )


def certificate(folder: Path) -> str:
    """Make the webhook's certificate where the controller looks for it; its authority for the API server."""
    folder.mkdir(parents=True)
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=webhook", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run([*made, *names, *files], check=True, capture_output=True)
    return base64.b64encode((folder / "tls.crt").read_bytes()).decode()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def apply(kubectl: Kubectl, one: Object, *arguments: str) -> None:
    kubectl("apply", "--server-side", "-f", "-", *arguments, stdin=json.dumps(one))


@pytest.fixture(scope="module")
def _configured(source: Any, install: Any, kubectl: Kubectl) -> None:
    """KServe's definitions, configuration and presets, and a gateway as its controller would report it."""
    module = source("llmisvc")
    for path in sorted((module / "config" / "crd" / "full" / "llmisvc").glob("serving*.yaml")):
        install(path)
    for kind in ("gateway", "gatewayclasses", "httproute"):
        install(module / "test" / "crds" / f"gatewayapi_{kind}.yaml")
    install(ROOT / "crds" / "finetunereleases.yaml")
    kubectl("create", "namespace", "kserve")
    kubectl("apply", "--server-side", "-f", str(module / "config" / "configmap" / "inferenceservice.yaml"))
    for path in sorted((module / "config" / "llmisvcconfig").glob("config-*.yaml")):
        kubectl("apply", "--server-side", "-n", "kserve", "-f", str(path))
    version = {"apiVersion": "gateway.networking.k8s.io/v1"}
    of_class = {"metadata": {"name": "test"}, "spec": {"controllerName": "example.com/test"}}
    apply(kubectl, version | {"kind": "GatewayClass"} | of_class)
    listener = {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
    spec = {"gatewayClassName": "test", "listeners": [listener]}
    apply(kubectl, version | {"kind": "Gateway", "metadata": GATEWAY, "spec": spec})
    status = {"status": {"addresses": [{"type": "IPAddress", "value": "192.0.2.1"}]}}
    of_gateway = ("gateway", GATEWAY["name"], "-n", GATEWAY["namespace"])
    kubectl("patch", *of_gateway, "--subresource=status", "--type=merge", "-p", json.dumps(status))


@pytest.fixture(scope="module", autouse=True)
def _controller(
    *,
    _configured: None,
    source: Any,
    program: Any,
    running: Any,
    free_port: Any,
    kubectl: Kubectl,
    tmp_path_factory: Any,
) -> Iterator[None]:
    """Run it with its webhooks, whose certificate it reads from the folder of temporary files."""
    temporary, port = tmp_path_factory.mktemp("kserve"), free_port()
    authority = certificate(temporary / "k8s-webhook-server" / "serving-certs")
    flags = ("--metrics-addr=0", "--health-probe-addr=0", f"--webhook-port={port}")
    with running([program("llmisvc"), *flags], TMPDIR=str(temporary)) as log:
        wait_until(lambda: answers(port), lambda: log.read_text()[-3000:])
        manifests = source("llmisvc") / "config" / "webhook" / "llmisvc" / "manifests.yaml"
        found = list(yaml.safe_load_all(manifests.read_text()))
        for one in found:
            for hook in one["webhooks"]:
                url = f"https://127.0.0.1:{port}{hook['clientConfig']['service']['path']}"
                hook["clientConfig"] = {"url": url, "caBundle": authority}
            apply(kubectl, one)
        yield
        for one in found:
            kubectl("delete", one["kind"], one["metadata"]["name"])


class Service:
    """The LLMInferenceService of a report, and its Deployment."""

    name = "support-bot"

    def __init__(self, world: Any, kubectl: Kubectl) -> None:
        self.world, self._kubectl = world, kubectl
        self._apps = client.AppsV1Api(world.core.api_client)
        self._where = ("serving.kserve.io", "v1alpha2", world.namespace, "llminferenceservices")

    def get(self) -> Object:
        """The object."""
        return dict(self.world.custom.get_namespaced_custom_object(*self._where, self.name))

    def conditions(self) -> dict[str, str]:
        """Its conditions, of its current spec."""
        found = self.get()
        status = found.get("status") or {}
        is_current = status.get("observedGeneration") == found["metadata"]["generation"]
        return {one["type"]: one["status"] for one in status.get("conditions", [])} if is_current else {}

    def create(self, manifest: str) -> None:
        """Apply the printed manifest, as its reader does."""
        self._kubectl("apply", "-n", self.world.namespace, "-f", "-", stdin=manifest)

    def entry(self) -> str:
        """The URI of its adapter."""
        (found,) = self.get()["spec"]["model"]["lora"]["adapters"]
        assert found["name"] == "tuned"
        return str(found["uri"])

    def pod_spec(self) -> Any:
        """The spec of the Deployment's pods."""

        def find() -> Any:
            found = self._apps.list_namespaced_deployment(self.world.namespace).items
            return found[0].spec.template.spec if found else None

        return wait_until(find, lambda: json.dumps(self.get(), indent=1))

    def copied(self) -> dict[str, str]:
        """What the pods copy, by the folder to which."""
        (initializer,) = self.pod_spec().init_containers
        return dict(zip(initializer.args[1::2], initializer.args[::2], strict=True))

    def wait_copied(self, uri: str) -> None:
        """Wait until the Deployment has another adapter."""
        wait_until(lambda: self.copied()["/mnt/lora/tuned"] == uri, lambda: f"{uri}: {self.copied()}")

    def wait_ready(self) -> None:
        """Wait until the controller reports it ready."""
        wait_until(lambda: self.conditions().get("Ready") == "True", lambda: json.dumps(self.get()["status"], indent=1))

    def pods(self) -> dict[str, Any]:
        """Its pods, by name."""
        selector = "app.kubernetes.io/part-of=llminferenceservice"
        found = self.world.core.list_namespaced_pod(self.world.namespace, label_selector=selector).items
        return {one.metadata.name: one for one in found}

    def new_pod(self, *old: str) -> str:
        """The pod that is none of those."""
        return str(wait_until(lambda: next((name for name in self.pods() if name not in old), ""), "a new pod"))

    def make_ready(self, pod: str) -> None:
        """Do what the kubelet does when the server answers its probe."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": at}
        status = {"status": {"phase": "Running", "conditions": [ready]}}
        self.world.core.patch_namespaced_pod_status(pod, self.world.namespace, status)

    def accept_route(self) -> Object:
        """Do what the controller of the gateway does with its route; return that."""
        where = ("gateway.networking.k8s.io", "v1", self.world.namespace, "httproutes")

        def routes() -> list[Object]:
            return list(self.world.custom.list_namespaced_custom_object(*where)["items"])

        (route,) = wait_until(routes, lambda: json.dumps(self.get(), indent=1))
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        common = {"status": "True", "lastTransitionTime": at, "observedGeneration": route["metadata"]["generation"]}
        conditions = [common | {"type": one, "reason": one, "message": ""} for one in ("Accepted", "ResolvedRefs")]
        (parent,) = route["spec"]["parentRefs"]
        accepted = {"parentRef": parent, "controllerName": "example.com/test", "conditions": conditions}
        status = {"status": {"parents": [accepted]}}
        self.world.custom.patch_namespaced_custom_object_status(*where, route["metadata"]["name"], status)
        return route


@pytest.fixture
def service(world: Any, kubectl: Kubectl) -> Iterator[Service]:
    yield Service(world, kubectl)
    kubectl("delete", "llminferenceservice", "--all", "-n", world.namespace, "--timeout=60s")


@pytest.fixture
def serving(service: Service) -> Service:
    """A service that is ready with the result `one`."""
    service.create(kserve_llm_adapter(place(service.world.namespace), RANK))
    service.accept_route()
    service.make_ready(service.new_pod())
    service.wait_ready()
    return service


@pytest.fixture
def releases(serving: Service, access: Any, control_plane: Path, tmp_path: Path, operator_with: Any) -> Releases:
    """The releases of its namespace, which an operator serves with exactly the rights of the chart."""
    own = type(access)(control_plane, tmp_path)
    rules = client.RbacAuthorizationV1Api(own.api).read_cluster_role(own.name).rules
    own.set_rules([*(own.api.sanitize_for_serialization(one) for one in rules), *RIGHTS])
    found = Releases(serving.world)
    found.operator = operator_with(own.kubeconfig, FINETUNE_RELEASES="true").start()
    return found


def result(world: Any, name: str) -> Object:
    return {"uri": f"s3://bucket/{world.namespace}/{name}", "manifestSHA256": DIGESTS[name]}


def command_line(container: Any, folder: Path) -> list[str]:
    """The arguments with which the container's own script starts vLLM."""
    program = folder / "vllm"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        "print('0.32.0' if sys.argv[1:] == ['--version'] else json.dumps(sys.argv[1:]))\n"
    )
    program.chmod(0o755)
    command = [*container.command, *container.args]
    done = subprocess.run(command, env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_the_service_of_a_report_copies_base_and_adapter_starts_vllm_with_both_and_becomes_ready(
    service: Service, tmp_path: Path
) -> None:
    namespace = service.world.namespace
    service.create(kserve_llm_adapter(place(namespace), RANK))
    assert service.copied() == {
        "/mnt/models": f"hf://owner/base:{'a' * 40}",
        "/mnt/lora/tuned": f"s3://bucket/{namespace}/one/adapter/",
    }
    (initializer,) = service.pod_spec().init_containers
    assert {one.name: one.value for one in initializer.env}["HF_ENDPOINT"] == "https://hub.example.org"
    (server,) = service.pod_spec().containers
    assert server.resources.limits["nvidia.com/gpu"] == "1"
    words = command_line(server, tmp_path)
    assert words[:4] == ["serve", "/mnt/models", "--served-model-name", "support-bot"]
    at = words.index("--lora-modules")
    assert words[at - 2 : at] == ["--enable-lora", "--max-lora-rank=32"]
    modules = [json.loads(one) for one in words[at + 1 : at + 3]]
    assert modules == [
        {"name": name, "path": "/mnt/lora/tuned"} for name in ("tuned", f"publishers/{namespace}/models/tuned")
    ]
    assert words[at + 3 :] == [
        "--chat-template=/mnt/lora/tuned/chat_template.jinja",
        "--generation-config=/mnt/lora/tuned",
    ]

    service.accept_route()
    wait_until(lambda: service.conditions().get("HTTPRoutesReady") == "True", lambda: str(service.conditions()))
    assert (service.conditions()["PresetsCombined"], service.conditions()["Ready"]) == ("True", "False")
    service.make_ready(service.new_pod())
    service.wait_ready()
    assert set(service.conditions().values()) == {"True"}
    assert service.get()["status"]["url"] == f"http://192.0.2.1/{namespace}/support-bot"


def test_a_release_is_done_once_only_pods_with_its_adapter_answer_and_the_way_back_too(
    serving: Service, releases: Releases
) -> None:
    world, first = serving.world, serving.new_pod()
    releases.create(result(world, "two") | {"target": {"kserve": {"name": serving.name, "adapterName": "tuned"}}})
    releases.end("bot-r1", "Verified")
    serving.wait_copied(f"s3://bucket/{world.namespace}/two/adapter/")
    second = serving.new_pod(first)
    serving.wait_ready()
    wait_until(
        lambda: "1 of 2 pods are of its earlier spec" in releases.get()["status"]["message"],
        lambda: str(releases.get()),
    )
    assert releases.get()["status"]["reason"] == "WaitingForServer", "although the service is Ready"
    serving.make_ready(second)
    assert releases.wait_for("Released")["answering"]["uri"] == f"s3://bucket/{world.namespace}/two"
    assert set(serving.pods()) == {second}

    releases.patch(result(world, "one"))
    releases.end("bot-r2", "Verified")
    serving.wait_copied(f"s3://bucket/{world.namespace}/one/adapter/")
    serving.make_ready(serving.new_pod(second))
    status = releases.wait_for("Released")
    assert (status["answering"]["uri"], status["previous"]["uri"]) == tuple(
        f"s3://bucket/{world.namespace}/{name}" for name in ("one", "two")
    )


def test_a_server_that_does_not_start_with_the_adapter_of_a_release_gets_back_the_one_before(
    serving: Service, releases: Releases
) -> None:
    world, first = serving.world, serving.new_pod()
    before = serving.entry()
    target = {"target": {"kserve": {"name": serving.name, "adapterName": "tuned"}}}
    releases.create(result(world, "two") | target | {"progressDeadlineSeconds": 45})
    releases.end("bot-r1", "Verified")
    serving.wait_copied(f"s3://bucket/{world.namespace}/two/adapter/")
    status = releases.wait_for("RolledBack", seconds=120)
    assert "not ready within progressDeadlineSeconds: Deployment support-bot-kserve: " in status["message"]
    assert serving.entry() == before
    serving.wait_copied(before)
    wait_until(lambda: set(serving.pods()) == {first}, lambda: str(serving.pods().keys()))
    serving.wait_ready()


def test_a_release_of_what_the_printed_manifest_serves_restarts_nothing(serving: Service, releases: Releases) -> None:
    first = serving.new_pod()
    target = {"target": {"kserve": {"name": serving.name, "adapterName": "tuned"}}}
    generation = serving.get()["metadata"]["generation"]
    releases.create(result(serving.world, "one") | target)
    releases.end("bot-r1", "Verified")
    releases.wait_for("Released")
    assert serving.get()["metadata"]["generation"] == generation
    assert set(serving.pods()) == {first}


def test_what_the_webhook_refuses_is_readable_for_kubectl_and_in_a_release(
    serving: Service, releases: Releases, kubectl: Kubectl
) -> None:
    words = 'spec.model.lora.adapters[0].name: Invalid value: "support-bot": adapter name must differ from base model'
    manifest = kserve_llm_adapter(place(serving.world.namespace), RANK).replace("name: tuned", "name: support-bot")
    with pytest.raises(AssertionError) as refused:
        kubectl("apply", "-n", serving.world.namespace, "-f", "-", stdin=manifest)
    assert words in str(refused.value)
    target = {"target": {"kserve": {"name": serving.name, "adapterName": serving.name}}}
    releases.create(result(serving.world, "two") | target)
    releases.end("bot-r1", "Verified")
    status = releases.wait_for("APIDenied")
    assert "adapter name must differ from base model name" in status["message"]
    assert serving.entry() == f"s3://bucket/{serving.world.namespace}/one/adapter/"


def test_the_webhook_accepts_the_service_of_a_job_with_the_name_of_its_adapter(world: Any, kubectl: Kubectl) -> None:
    manifest = kserve_llm_adapter(place(world.namespace, "tuned"), RANK)
    apply_it = ("apply", "--server-side", "--dry-run=server", "-n", world.namespace, "-f", "-")
    assert "serverside-applied" in kubectl(*apply_it, stdin=manifest)
