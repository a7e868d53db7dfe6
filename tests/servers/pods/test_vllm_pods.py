"""A FineTuneRelease that is applied before its server is up lets a vLLM of the cluster answer with a job's adapter, and
the next one survives the end of the server in the middle."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from answering_jobs import QUESTIONS, Result
from kserve_world import Kubectl
from kubernetes.client import CoreV1Api
from release_world import Releases
from report_snippets import answers
from user import Bench, first_node, local_volume, process_of
from vllm_server import ENVIRONMENT, FLAGS, Server
from waiting import wait_until

pytestmark = pytest.mark.timeout(1800)

NAME = "inference"
ADAPTER = "The adapter"
PORT, USER = 8000, 1000
START_SECONDS = 400
"""Until a pod with vLLM is ready, on two busy cores."""
WAIT_SECONDS = 150
"""More than a pod of a release waits for a server before it reports that it is away."""
SERVE = ["vllm", "serve", "/base", "--enable-lora", "--port", str(PORT), *FLAGS]


@dataclass
class Deployed:
    """A Deployment with vLLM, its Service, and the volume of its adapters."""

    namespace: str
    kubectl: Kubectl
    server: Server
    adapters: Path

    def scale(self, replicas: int) -> None:
        self.kubectl("scale", "deployment", NAME, "-n", self.namespace, f"--replicas={replicas}")

    def start_with(self, *flags: str) -> None:
        """Let it start anew with these flags too."""
        change = [{"op": "replace", "path": "/spec/template/spec/containers/0/command", "value": [*SERVE, *flags]}]
        of_it = ("deployment", NAME, "-n", self.namespace)
        self.kubectl("patch", *of_it, "--type=json", "-p", json.dumps(change))
        self.kubectl("rollout", "status", *of_it, f"--timeout={START_SECONDS}s")

    def kill_in_the_middle(self) -> None:
        """Kill its processes once the next adapter is on the volume, after which champion and challenger are asked."""
        pods = CoreV1Api().list_namespaced_pod(self.namespace, label_selector=f"app={NAME}").items
        (process,) = [found for pod in pods if (found := process_of(pod))]
        before = set(self.adapters.iterdir())
        wait_until(lambda: set(self.adapters.glob("tuned.*")) - before, "no adapter", seconds=WAIT_SECONDS, pause=0.005)
        os.kill(process, signal.SIGKILL)


def volume_of(bench: Bench, folder: Path) -> list[dict[str, Any]]:
    name = f"adapters-{bench.namespace}"
    size = {"resources": {"requests": {"storage": "1Gi"}}}
    claim = size | {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name}
    meta = {"name": "adapters", "namespace": bench.namespace}
    wanted = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim}
    return [local_volume(name, "", first_node(), folder, "1Gi"), wanted]


def deployment_of(image: str, packages: Path, base: Path) -> dict[str, Any]:
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "HOME": "/tmp", "TORCHDYNAMO_DISABLE": "1"}  # no compiler
    folders = {"packages": (packages, "/opt/servers"), "base": (base, "/base")}
    mounts: list[dict[str, Any]] = [
        {"name": name, "mountPath": there, "readOnly": True} for name, (_, there) in folders.items()
    ]
    volumes: list[dict[str, Any]] = [
        {"name": name, "hostPath": {"path": str(here), "type": "Directory"}} for name, (here, _) in folders.items()
    ]
    mounts += [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "adapters", "mountPath": "/adapters", "readOnly": True},
    ]
    volumes += [
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "adapters", "persistentVolumeClaim": {"claimName": "adapters"}},
    ]
    container = {
        "name": "vllm",
        "image": image,
        "command": SERVE,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}},
        "volumeMounts": mounts,
    }
    pod = {
        "securityContext": {"runAsUser": USER, "runAsGroup": USER, "runAsNonRoot": True},
        "containers": [container],
        "volumes": volumes,
    }
    template = {"metadata": {"labels": {"app": NAME}}, "spec": pod}
    spec = {"replicas": 0, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"app": NAME}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": spec | {"template": template},
    }


@pytest.fixture(scope="module")
def deployed(
    *, bench: Bench, results: list[Result], image: str, packages: Path, kubectl: Kubectl, tmp_path_factory: Any
) -> Iterator[Deployed]:
    """A server without a pod yet."""
    folder = tmp_path_factory.mktemp("served")
    base = bench.download(bench.uri("model"), folder / "base")
    (folder / "adapters").mkdir()
    ports = {"selector": {"app": NAME}, "ports": [{"port": PORT}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": ports}
    for one in (*volume_of(bench, folder / "adapters"), service, deployment_of(image, packages, base)):
        kubectl("apply", "-n", bench.namespace, "-f", "-", stdin=json.dumps(one))
    where = ("service", NAME, "-n", bench.namespace, "-o", "jsonpath={.spec.clusterIP}")
    server = Server(f"http://{kubectl('get', *where)}:{PORT}", folder)
    yield Deployed(bench.namespace, kubectl, server, folder / "adapters")
    kubectl("delete", "deployment", NAME, "-n", bench.namespace, "--timeout=60s")
    kubectl("delete", "pvc", "adapters", "-n", bench.namespace, "--wait=false")
    kubectl("delete", "pv", f"adapters-{bench.namespace}", "--wait=false")


def test_releases_wait_for_a_server_replace_what_it_answers_survive_its_end_and_go_back(
    world: Any, bench: Bench, results: list[Result], deployed: Deployed
) -> None:
    first, second, _ = results
    releases = Releases(world)
    volume = {"claimName": "adapters", "path": "/adapters"}
    target = {"vllm": {"service": {"name": NAME, "port": PORT}, "adapterName": "tuned", "volume": volume}}
    releases.create({"jobRef": {"name": first.job.name}, "target": target, "progressDeadlineSeconds": 1200})

    def said() -> str:
        return str((releases.get().get("status") or {}).get("message"))

    wait_until(lambda: "tries again" in said() and "/v1/models: Connect" in said(), said, seconds=WAIT_SECONDS)

    deployed.scale(1)
    status = releases.wait_for("Released", seconds=START_SECONDS)
    assert status["answering"]["uri"] == first.uri
    deployed.server.check_answers(first.report, ADAPTER)

    deployed.start_with("--lora-modules", "tuned=/adapters/tuned")
    deployed.server.check_answers(first.report, ADAPTER)

    releases.patch({"jobRef": {"name": second.job.name}})
    deployed.kill_in_the_middle()
    wait_until(lambda: "tries again" in said(), said, seconds=WAIT_SECONDS)
    status = releases.wait_for("Released", seconds=2 * START_SECONDS)
    assert (status["comparison"]["verdict"], status["comparison"]["rows"] >= 5) == ("Better", True)
    assert [status[one]["uri"] for one in ("answering", "previous")] == [second.uri, first.uri]
    deployed.server.check_answers(second.report, ADAPTER)

    before = {name: status["previous"][name] for name in ("uri", "manifestSHA256")}
    releases.patch({"jobRef": None, "storage": bench.manifest("none")["spec"]["storage"]} | before)
    releases.wait_for("Released", seconds=WAIT_SECONDS)
    assert answers(first.report)[QUESTIONS[0]] != answers(second.report)[QUESTIONS[0]]
    deployed.server.check_answers(first.report, ADAPTER)
    releases.delete()
