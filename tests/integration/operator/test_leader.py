"""Two replicas of the operator: one reconciles, the other takes over, and nothing is done twice."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

LEASES: list[dict[str, Any]] = [
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
]


class Replicas:
    """Operators that share a Lease in the namespace of the test."""

    def __init__(self, make: Callable[..., Any], kubeconfig: Path, world: Any) -> None:
        self._make, self._kubeconfig, self._world = make, kubeconfig, world
        self.api = client.CoordinationV1Api(world.core.api_client)

    def start(self, name: str, **settings: str) -> Any:
        """Start one with the name of its pod, and wait until it is ready: as the leader, or as a standby."""
        chosen = {"FINETUNE_LEASE_NAMESPACE": self._world.namespace, "FINETUNE_POD_NAME": name, **settings}
        return self._make(self._kubeconfig, **chosen).start()

    @property
    def holder(self) -> str | None:
        lease = self.api.read_namespaced_lease("finetune-operator", self._world.namespace)
        return lease.spec.holder_identity


def leads(operator: Any) -> bool:
    return operator.get("/metrics") == 200 and "finetune_operator_leading 1.0" in operator.text


@pytest.fixture
def replicas(operator_with: Any, access: Any, world: Any) -> Replicas:
    """With the right to the Leases of this namespace alone, as the chart grants it."""
    rbac = client.RbacAuthorizationV1Api(access.api)
    rbac.create_namespaced_role(world.namespace, {"metadata": {"name": "leases"}, "rules": LEASES})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leases"}
    subject = {"kind": "ServiceAccount", "name": access.name, "namespace": "default"}
    body = {"metadata": {"name": "leases"}, "roleRef": reference, "subjects": [subject]}
    rbac.create_namespaced_role_binding(world.namespace, body)
    return Replicas(operator_with, access.kubeconfig, world)


def test_a_standby_is_ready_and_takes_over_from_a_leader_that_was_killed(
    replicas: Replicas, world: Any, wait: Any
) -> None:
    first, second = replicas.start("a"), replicas.start("b")
    assert (leads(first), leads(second)) == (True, False)
    assert second.get("/readyz") == 200
    assert second.text == "standby: finetune-operator-a leads\n"
    world.create()
    wait(lambda: world.jobs() == ["one-preflight"], "preflight by the leader")
    first.kill()
    world.create("two")
    wait(lambda: leads(second), "the standby leads")
    wait(lambda: world.jobs() == ["one-preflight", "two-preflight"], "preflight by the other one")
    assert replicas.holder == "finetune-operator-b"


def test_a_leader_that_is_stopped_hands_over_without_a_wait(replicas: Replicas, world: Any, wait: Any) -> None:
    first, second = replicas.start("a"), replicas.start("b")
    assert first.stop() == 0
    assert replicas.holder in {None, "finetune-operator-b"}
    wait(lambda: leads(second), "the standby leads")
    assert second.stop() == 0


def test_a_standby_that_is_stopped_ends_at_once_and_leaves_the_lease(replicas: Replicas) -> None:
    replicas.start("a")
    second = replicas.start("b")
    assert second.stop() == 0
    assert replicas.holder == "finetune-operator-a"


def test_a_leader_that_was_paused_writes_nothing_after_another_took_over(
    replicas: Replicas, world: Any, wait: Any
) -> None:
    first, second = replicas.start("a"), replicas.start("b")
    os.kill(first.pid, signal.SIGSTOP)
    wait(lambda: leads(second), "the standby leads")
    world.create()
    wait(lambda: world.condition("Accepted").get("status") == "True", "the job is accepted")
    os.kill(first.pid, signal.SIGCONT)
    assert first.process.wait(60) == 1
    assert "finetune-operator-b" in first.log.read_text()
    writers = {one["manager"] for one in world.get()["metadata"]["managedFields"] if one.get("subresource") == "status"}
    assert writers == {"finetune-operator-b"}
    assert world.jobs() == ["one-preflight"]


def test_an_operator_without_the_right_to_its_lease_is_not_ready_and_logs_the_right(
    operator_with: Any, access: Any, world: Any, wait: Any
) -> None:
    one = operator_with(access.kubeconfig, FINETUNE_LEASE_NAMESPACE=world.namespace).launch()
    wait(lambda: "may not get leases in namespace" in one.log.read_text(), "the missing right")
    assert one.get("/readyz") == 503
    one.process.terminate()
    assert one.process.wait(30) == 0
