"""KServe's own controller of LLMInferenceServices makes a Deployment of the manifest that a report prints, and rolls
out what a FineTuneRelease sets. Kubernetes runs the Deployment; the test plays the kubelet and the gateway."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kserve_world import KServe, Kubectl, Object, Service
from kubernetes import client
from release_world import RIGHTS, Releases
from waiting import wait_until

from finetune_trainer.report.serving import Place, kserve_llm_adapter

ROOT = Path(__file__).parents[3]
DIGESTS = {"one": "ab" * 32, "two": "cd" * 32}
RANK = 24


def place(namespace: str, job: str = "support.bot") -> Place:
    return Place(
        job, f"s3://bucket/{namespace}/one", "hf://owner/base", "a" * 40, hub_endpoint="https://hub.example.org"
    )


@pytest.fixture(scope="module", autouse=True)
def _controller(*, install: Any, program: Any, running: Any, kserve: KServe, tmp_path_factory: Any) -> Iterator[None]:
    for path in [*kserve.definitions(), ROOT / "crds" / "finetunereleases.yaml"]:
        install(path)
    kserve.add_presets()
    with kserve.controller(program("llmisvc"), running, tmp_path_factory.mktemp("kserve")):
        yield


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
