"""Argo CD's own application controller and repo server apply jobs from a repository: they show each job's health by the
check of the guide, hold the next wave until it is complete, report what is refused, and prune."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from debian import install_missing
from git_server import serving_repositories
from guide_repository import NAME, TEAM, GuideRepository, documented
from waiting import wait_until

Kubectl = Callable[..., str]
Object = dict[str, Any]
NAMESPACE = "argocd"
REFUSED = "rows.jsonl: 0 of 5 rows can be trained on"
EVERYTHING = {
    "sourceRepos": ["*"],
    "destinations": [{"namespace": "*", "server": "*"}],
    "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
}


@pytest.fixture(scope="module")
def _configured(source: Any, install: Any, kubectl: Kubectl) -> None:
    """Its definitions, and its namespace with the guide's ConfigMap."""
    manifests = source("argocd") / "manifests"
    for kind in ("application", "appproject", "applicationset"):
        install(manifests / "crds" / f"{kind}-crd.yaml")
    kubectl("create", "namespace", NAMESPACE)
    for name in ("argocd-cm", "argocd-rbac-cm", "argocd-secret"):
        kubectl("apply", "-n", NAMESPACE, "-f", str(manifests / "base" / "config" / f"{name}.yaml"))
    project = {"apiVersion": "argoproj.io/v1alpha1", "kind": "AppProject", "metadata": {"name": "default"}}
    for one in (documented("v1/ConfigMap"), project | {"spec": EVERYTHING}):
        kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(one))


@pytest.fixture(scope="module", autouse=True)
def _running(_configured: None, program: Any, running: Any, free_port: Any, tmp_path_factory: Any) -> Iterator[None]:
    """Run both and their Redis."""
    install_missing("redis-server", "redis-server")
    redis, repositories = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [program("argocd"), f"--redis={redis}"]
    common = {
        "ARGOCD_FAKE_IN_CLUSTER": "true",  # https://kubernetes.default.svc is the API server of KUBECONFIG
        "ARGOCD_GPG_ENABLED": "false",
        "PATH": f"{Path(program('kustomize')).parent}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path_factory.mktemp("argo-cd")),
    }
    with ExitStack() as stack:
        port = redis.rpartition(":")[2]
        stack.enter_context(running(["redis-server", "--bind", "127.0.0.1", "--port", port, "--save", ""]))
        of_repositories = ["--disable-tls", "--address=127.0.0.1", f"--port={repositories.rpartition(':')[2]}"]
        of_repositories += ["--metrics-address=127.0.0.1", f"--metrics-port={free_port()}"]
        stack.enter_context(running([*command, *of_repositories], ARGOCD_BINARY_NAME="argocd-repo-server", **common))
        of_applications = [f"--namespace={NAMESPACE}", f"--repo-server={repositories}", "--repo-server-plaintext"]
        of_applications += [f"--metrics-port={free_port()}", "--persist-resource-health"]
        stack.enter_context(
            running([*command, *of_applications], ARGOCD_BINARY_NAME="argocd-application-controller", **common)
        )
        yield


class Application:
    """The guide's Application of a repository."""

    def __init__(self, world: Any, kubectl: Kubectl, url: str) -> None:
        self.name = f"team-{world.namespace}"
        self._world, self._kubectl = world, kubectl
        found = documented("argoproj.io/v1alpha1/Application")
        assert found["metadata"] == {"name": TEAM, "namespace": NAMESPACE}
        found["metadata"]["name"] = self.name
        found["spec"]["source"]["repoURL"] = url
        found["spec"]["destination"]["namespace"] = world.namespace
        kubectl("apply", "-f", "-", stdin=json.dumps(found))

    def status(self) -> Object:
        """Its status."""
        where = ("argoproj.io", "v1alpha1", NAMESPACE, "applications", self.name)
        found: Object = self._world.custom.get_namespaced_custom_object(*where).get("status", {})
        return found

    def pull(self) -> None:
        """Ask for the last commit, as its button Refresh does."""
        self._kubectl("annotate", "application", self.name, "-n", NAMESPACE, "argocd.argoproj.io/refresh=hard")

    def wait(self, health: str, sync: str = "Synced") -> None:
        """Wait for both states of the Application."""

        def seen() -> bool:
            status = self.status()
            return (status.get("health", {}).get("status"), status.get("sync", {}).get("status")) == (health, sync)

        wait_until(seen, lambda: f"{health}: {json.dumps(self.status(), indent=1)}")

    def wait_operation(self, text: str) -> None:
        """Wait until the operation's message, or that of one of its objects, matches the text."""

        def seen() -> bool:
            operation = self.status().get("operationState", {})
            objects = operation.get("syncResult", {}).get("resources", [])
            return any(re.search(text, one.get("message", "")) for one in (operation, *objects))

        wait_until(seen, lambda: f"{text}: {json.dumps(self.status(), indent=1)}")

    def job(self, name: str) -> Object:
        """The health of a job."""
        found = (one for one in self.status().get("resources", []) if one["name"] == name)
        return next((one.get("health", {}) for one in found), {})

    def delete(self) -> None:
        """Delete it; what it applied stays."""
        self._kubectl("delete", "application", self.name, "-n", NAMESPACE, "--timeout=60s")


@pytest.fixture
def repository(world: Any, spec: Object, tmp_path: Path) -> GuideRepository:
    return GuideRepository(tmp_path / "git", world.namespace, spec)


@pytest.fixture
def start(
    world: Any, operator: Any, kubectl: Kubectl, repository: GuideRepository, tmp_path: Path
) -> Iterator[Callable[[], Application]]:
    """Create the Application of the repository."""
    with ExitStack() as stack:

        def create() -> Application:
            address = stack.enter_context(serving_repositories(tmp_path / "git"))
            found = Application(world, kubectl, f"{address}/{NAME}")
            stack.callback(found.delete)
            return found

        yield create


Start = Callable[[], Application]


def finish(world: Any, trainer: Any, name: str) -> None:
    world.end(trainer, 0, world.published(name))
    world.wait_phase("Succeeded", name)


def test_a_wave_waits_until_the_job_of_the_wave_before_is_complete(
    world: Any, repository: GuideRepository, start: Start
) -> None:
    repository.commit({"v1": {}, "v2": {}}, waves={"v1": 0, "v2": 1})
    team = start()
    first = world.pass_preflight("v1")
    world.run(first)
    world.wait_phase("Training", "v1")
    team.wait_operation("waiting for healthy state of finetune.dev/FineTuneJob/v1")
    team.wait("Missing", "OutOfSync")
    assert team.job("v1")["status"] == "Progressing"
    assert world.jobs() == ["v1-1", "v1-preflight"]
    finish(world, first, "v1")
    second = world.pass_preflight("v2")
    world.run(second)
    finish(world, second, "v2")
    team.wait("Healthy")
    assert team.job("v2")["status"] == "Healthy"


def test_a_failed_job_degrades_its_application_with_its_reason_until_a_commit_removes_it(
    world: Any, repository: GuideRepository, start: Start
) -> None:
    repository.commit({"broken": {}, "good": {"suspend": True}})
    team = start()
    pod = world.pod_of("broken-preflight")
    world.run(pod)
    world.end(pod, 65, world.report("Failed", "broken", message=REFUSED))
    team.wait("Degraded")
    assert REFUSED in team.job("broken")["message"]
    assert team.job("good")["status"] == "Suspended"
    repository.commit({"good": {"suspend": True}})
    team.pull()
    team.wait("Suspended")
    wait_until(lambda: world.jobs() == [], lambda: str(world.jobs()))


def test_a_change_of_a_fixed_field_is_reported_with_its_fix_and_changes_nothing(
    world: Any, repository: GuideRepository, start: Start
) -> None:
    repository.commit({"v1": {}})
    team = start()
    trainer = world.pass_preflight("v1")
    team.wait("Progressing")
    repository.commit({"v1": {"model": {"uri": "s3://bucket/models/other"}}})
    team.pull()
    team.wait_operation(r"spec\.model: .* create a new FineTuneJob")
    team.wait("Progressing", "OutOfSync")
    assert world.get("v1")["metadata"]["generation"] == 1
    assert world.pod_of("v1-1").metadata.uid == trainer.metadata.uid
