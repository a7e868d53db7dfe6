"""The chart installed by helm on a real API server, and the operator run as the very account that it makes, with the
environment of its pod and no right but the chart's. There is no node: the pod is created, and the process runs here."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from finetune_api import handoff

RELEASE = "finetune-operator"
POLICIES = {"networkPolicy": {"enabled": True}}
PROFILES: dict[str, dict[str, Any]] = {
    "cluster-wide": POLICIES,
    "namespaced": {**POLICIES, "crds": {"enabled": False}, "rbac": {"aggregateToDefaultRoles": False}},
}


class Installed:
    """A release and the one pod that its Deployment has made."""

    def __init__(self, api: client.ApiClient, admin: Path) -> None:
        self.namespace = f"system-{uuid.uuid4().hex[:6]}"
        self.core = client.CoreV1Api(api)
        self.networking = client.NetworkingV1Api(api)
        self._admin = admin

    def pods(self) -> list[Any]:
        return list(self.core.list_namespaced_pod(self.namespace).items)

    def environment(self) -> dict[str, str]:
        """What the pod's container gets."""
        (container,) = self.pods()[0].spec.containers
        return {one.name: one.value or "" for one in container.env if not one.value_from}

    def kubeconfig(self, folder: Path) -> Path:
        """For the service account of the pod."""
        body = {"spec": {"expirationSeconds": 7200}}
        account = self.pods()[0].spec.service_account_name
        token = self.core.create_namespaced_service_account_token(account, self.namespace, body).status.token
        found = yaml.safe_load(self._admin.read_text())
        found["users"] = [{"name": found["users"][0]["name"], "user": {"token": token}}]
        file = folder / "account.yaml"
        file.write_text(yaml.safe_dump(found))
        return file

    def reached(self, peer: Any, own: str) -> set[str]:
        """The pods that a peer of a NetworkPolicy of that namespace stands for, chosen by the API server."""
        spaces = [own]
        if peer.namespace_selector is not None:
            chosen = self.core.list_namespace(label_selector=_words(peer.namespace_selector)).items
            spaces = [one.metadata.name for one in chosen]
        words = _words(peer.pod_selector) if peer.pod_selector else ""
        lists = [self.core.list_namespaced_pod(space, label_selector=words).items for space in spaces]
        return {pod.metadata.name for pods in lists for pod in pods}


def _words(selector: Any) -> str:
    equal = [f"{name}={value}" for name, value in (selector.match_labels or {}).items()]
    return ",".join(equal + [f"{one.key} in ({','.join(one.values)})" for one in selector.match_expressions or []])


@pytest.fixture(params=PROFILES)
def values(request: pytest.FixtureRequest, world: Any, tmp_path: Path) -> Path:
    """A file with the values of a profile."""
    served = {"watchNamespaces": [world.namespace]} if request.param == "namespaced" else {}
    file = tmp_path / f"{request.param}.yaml"
    file.write_text(yaml.safe_dump(PROFILES[request.param] | served))
    return file


@pytest.fixture
def install(helm: str, control_plane: Path, wait: Callable[..., Any]) -> Iterator[Callable[..., Installed]]:
    """Install the chart in a namespace of its own, for jobs in that namespace; it is uninstalled at the end."""
    made: list[Installed] = []
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}

    def run(release: Installed, *words: str) -> None:
        where = ("--namespace", release.namespace, "--kubeconfig", str(control_plane))
        subprocess.run([helm, *words, *where], check=True, capture_output=True)

    def make(values: Path, served: str) -> Installed:
        release = Installed(config.new_client_from_config(str(control_plane)), control_plane)
        release.core.create_namespace({"metadata": {"name": release.namespace, "labels": labels}})
        release.core.patch_namespace(served, {"metadata": {"labels": labels}})
        run(release, "install", RELEASE, str(CHART), "--values", str(values), "--take-ownership")
        made.append(release)
        wait(release.pods, "the operator's pod, which Pod Security has to admit")
        return release

    yield make
    for release in made:
        run(release, "uninstall", RELEASE)
        release.core.delete_namespace(release.namespace)


@pytest.fixture
def installed(install: Callable[..., Installed], values: Path, world: Any) -> Installed:
    return install(values, world.namespace)


def test_the_charts_account_brings_a_job_to_its_end_and_may_do_nothing_else(
    installed: Installed, values: Path, world: Any, operator_with: Any, wait: Any
) -> None:
    kubeconfig = installed.kubeconfig(values.parent)
    operator = operator_with(kubeconfig)
    operator.env |= installed.environment() | {"FINETUNE_LOG_FORMAT": "text"}
    operator.start()
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    check_policies(installed, world, trainer)
    world.end(trainer, 0, world.published())
    world.wait_phase("Succeeded")
    wait(lambda: "Completed" in world.events(), "the event of the end")
    log = operator.log.read_text()
    assert "lacks" not in log, log
    is_namespaced = values.stem == "namespaced"
    with config.new_client_from_config(str(kubeconfig)) as api:
        assert refused(lambda: client.CoreV1Api(api).list_namespaced_secret(world.namespace))
        assert refused(lambda: client.CoreV1Api(api).list_namespaced_pod(installed.namespace)) is is_namespaced
        assert refused(lambda: client.RbacAuthorizationV1Api(api).list_cluster_role())


@pytest.fixture
def worlds(world: Any) -> Iterator[tuple[Any, Any]]:
    """Two namespaces."""
    other = f"{world.namespace}-b"
    world.core.create_namespace({"metadata": {"name": other}})
    yield world, type(world)(world.core.api_client, other)
    world.core.delete_namespace(other)


def test_two_releases_divide_the_namespaces_and_have_no_right_to_those_of_the_other(
    install: Callable[..., Installed], worlds: tuple[Any, Any], operator_in: Any, tmp_path: Path
) -> None:
    shards = []
    for number, world in enumerate(worlds):
        folder = tmp_path / f"shard-{number}"
        folder.mkdir()
        (folder / "values.yaml").write_text(
            yaml.safe_dump(PROFILES["namespaced"] | {"watchNamespaces": [world.namespace]})
        )
        release = install(folder / "values.yaml", world.namespace)
        operator = operator_in(world.namespace, release.kubeconfig(folder))
        operator.env |= release.environment() | {"FINETUNE_POD_NAME": f"shard-{number}"}
        shards.append(operator.start())
    for world in worlds:
        world.create()
    for number, world in enumerate(worlds):
        world.end(world.pass_preflight(), 0, world.published())
        world.wait_phase("Succeeded")
        writers = {one["manager"] for one in world.get()["metadata"]["managedFields"] if one.get("subresource")}
        assert writers == {f"finetune-operator-shard-{number}"}
    for operator in shards:
        operator.get("/metrics")
        assert "finetune_operator_other_operators 0.0" in operator.text
    for own, other in zip(shards, reversed(worlds), strict=True):
        with config.new_client_from_config(str(own.access.kubeconfig)) as api:
            assert refused(lambda api=api, other=other: client.BatchV1Api(api).list_namespaced_job(other.namespace))


def check_policies(installed: Installed, world: Any, trainer: Any) -> None:
    """The policies let the operator, and nobody else, reach the port that the trainer answers on."""
    operator = {installed.pods()[0].metadata.name}
    own = installed.networking.read_namespaced_network_policy(RELEASE, installed.namespace).spec
    assert installed.reached(_peer(own.pod_selector), installed.namespace) == operator
    *_, progress = own.egress
    assert [port.port for port in progress.ports] == [handoff.PROGRESS_PORT]
    assert trainer.metadata.name in installed.reached(progress.to[0], installed.namespace)
    for jobs in installed.networking.list_namespaced_network_policy(
        world.namespace
    ).items:  # one where it is served alone
        assert installed.reached(_peer(jobs.spec.pod_selector), world.namespace) == set(world.pods())
        (from_operator,) = jobs.spec.ingress
        assert installed.reached(from_operator.var_from[0], world.namespace) == operator
        assert [port.port for port in from_operator.ports] == [handoff.PROGRESS_PORT]


def _peer(selector: Any) -> Any:
    return client.V1NetworkPolicyPeer(pod_selector=selector)


def refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ApiException as problem:
        return bool(problem.status == 403)
    return False
