"""Kueue's API in other versions than the newest: an older one is used, and one that cannot be is named."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import NotFoundException

GROUP, PLURAL = "kueue.x-k8s.io", "workloads"
Install = Callable[[str], None]


def kind(version: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"},
        },
        "spec": {
            "group": GROUP,
            "names": {"kind": "Workload", "plural": PLURAL, "singular": "workload"},
            "scope": "Namespaced",
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}},
            ],
        },
    }


@pytest.fixture
def install(world: Any, wait: Any) -> Iterator[Install]:
    """Serve Workloads in one version; they go with the test."""
    extensions = client.ApiextensionsV1Api(world.core.api_client)

    def listed() -> list[str]:
        """The versions in the API server's list, by which the operator looks for Kueue: it follows the kind later."""
        groups = client.ApisApi(world.core.api_client).get_api_versions().groups
        return [one.version for group in groups if group.name == GROUP for one in group.versions]

    def is_served(version: str) -> bool:
        try:
            found = world.custom.list_namespaced_custom_object(GROUP, version, world.namespace, PLURAL)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return bool(found) and listed() == [version]

    def make(version: str) -> None:
        extensions.create_custom_resource_definition(kind(version))
        wait(lambda: is_served(version), f"Workloads in {version}")

    def is_gone() -> bool:
        try:
            extensions.read_custom_resource_definition(f"{PLURAL}.{GROUP}")
        except NotFoundException:
            return listed() == []
        return False

    yield make
    extensions.delete_custom_resource_definition(f"{PLURAL}.{GROUP}")
    wait(is_gone, "the kind is removed")


def test_workloads_of_an_older_kueue_are_read_and_its_jobs_stay_suspended(
    world: Any, install: Install, operator_with: Any, access: Any, wait: Any
) -> None:
    install("v1beta1")
    operator_with(access.kubeconfig).start()
    world.create(scheduling={"queueName": "team"})
    job = wait(lambda: world.batch.list_namespaced_job(world.namespace).items, "the preflight Job")[0]
    waiting = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "no quota for cpu"}
    workload = {
        "apiVersion": f"{GROUP}/v1beta1",
        "kind": "Workload",
        "metadata": {"name": "one", "labels": {f"{GROUP}/job-uid": job.metadata.uid}},
        "spec": {
            "podSets": [{"template": {"metadata": {"annotations": job.spec.template.metadata.annotations}, "spec": {}}}]
        },
        "status": {"conditions": [waiting]},
    }
    world.custom.create_namespaced_custom_object(GROUP, "v1beta1", world.namespace, PLURAL, workload)
    wait(lambda: "no quota for cpu" in world.condition("QuotaReserved").get("message", ""), "the message of Kueue")
    assert world.status()["phase"] == "Queued"
    assert world.batch.read_namespaced_job(job.metadata.name, world.namespace).spec.suspend


def test_a_kueue_without_a_usable_version_is_named_and_its_jobs_stay_suspended(
    world: Any, install: Install, operator_with: Any, access: Any, wait: Any
) -> None:
    install("v1alpha1")
    operator_with(access.kubeconfig).start()
    world.create(scheduling={"queueName": "team"})
    wait(lambda: world.condition("QuotaReserved"), "a condition")
    shown = world.condition("QuotaReserved")
    assert (shown["status"], shown["reason"]) == ("Unknown", "APIUnavailable")
    assert "serves kueue.x-k8s.io only as v1alpha1, and the operator needs v1beta2 or v1beta1" in shown["message"]
    (job,) = world.batch.list_namespaced_job(world.namespace).items
    assert job.spec.suspend
