"""The scratch space of a job on a volume of its own, by a StorageClass without a provisioner and two local volumes."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from user import Bench, first_node, kubectl, local_volume, wait_for

SIZE = "2Gi"


@pytest.fixture
def storage_class(_kubeconfig: None, tmp_path: Path) -> Iterator[str]:
    """A class with a volume for each of a job's two pods, on the cluster's first node, which is this machine."""
    name = f"scratch-{uuid.uuid4().hex[:6]}"
    node = first_node()
    objects: list[dict[str, Any]] = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    ]
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        objects.append(local_volume(f"{name}-{number}", name, node, tmp_path / str(number), SIZE))
    manifests = yaml.safe_dump_all(objects)
    kubectl("apply", "-f", "-", stdin=manifests)
    yield name
    kubectl("delete", "-f", "-", stdin=manifests)


@pytest.mark.nightly
def test_each_pod_works_on_a_volume_of_the_class_that_is_deleted_with_it(bench: Bench, storage_class: str) -> None:
    workspace = {"sizeLimit": SIZE, "storageClassName": storage_class}
    resources = {"gpusPerNode": 1, "requests": {"cpu": "500m", "memory": "1Gi"}, "workspace": workspace}
    job = bench.apply("on-volumes", resources=resources)
    job.wait("Complete")
    volumes = client.CoreV1Api().list_persistent_volume().items
    used = [one for one in volumes if one.spec.storage_class_name == storage_class]
    assert [one.spec.claim_ref is not None for one in used] == [True, True]
    kubectl("delete", "finetunejob", "on-volumes", "-n", bench.namespace, "--wait")
    claims = client.CoreV1Api().list_namespaced_persistent_volume_claim
    wait_for("no claim", lambda: not claims(bench.namespace).items, state=job.status)
