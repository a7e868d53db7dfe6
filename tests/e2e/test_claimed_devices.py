"""Devices of Dynamic Resource Allocation: the claims of a job, with a real driver whose devices are not real."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from user import Bench, Job, first_node, kubectl, wait_for

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif("FINETUNE_CLUSTER_DIR" not in os.environ, reason="not the cluster of tests/cluster"),
]

CLUSTER = Path(__file__).resolve().parents[1] / "cluster" / "cluster.py"
DRIVER = "gpu.example.com"
DEVICES = 2


def device_class() -> dict[str, Any]:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": DRIVER},
        "spec": {"selectors": [{"cel": {"expression": f"device.driver == '{DRIVER}'"}}]},
    }


def template(namespace: str, name: str, devices: int) -> dict[str, Any]:
    request = {"name": "gpu", "exactly": {"deviceClassName": DRIVER, "count": devices}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


@pytest.fixture(scope="module")
def driver(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example driver of Kubernetes with two devices, and templates for claims of one and of three."""
    folder = tmp_path_factory.mktemp("dra")
    command = [sys.executable, str(CLUSTER), "program", "dra-example-kubeletplugin"]
    program = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    kubelet = Path(os.environ["FINETUNE_CLUSTER_DIR"]) / "kubelet"
    templates = [template(bench.namespace, name, devices) for name, devices in (("one-gpu", 1), ("three-gpus", 3))]
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([device_class(), *templates]))
    with (folder / "driver.log").open("wb") as log:
        running = subprocess.Popen(
            [
                program,
                f"--kubeconfig={os.environ['KUBECONFIG']}",
                f"--node-name={first_node()}",
                f"--num-devices={DEVICES}",
                f"--cdi-root={folder / 'cdi'}",
                f"--kubelet-registrar-directory-path={kubelet / 'plugins_registry'}",
                f"--kubelet-plugins-directory-path={kubelet / 'plugins'}",
                "--healthcheck-port=-1",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for("the devices", lambda: DRIVER in kubectl("get", "resourceslices", "-o", "yaml").stdout)
        yield
        assert running.poll() is None, f"the driver ended: see {folder}"
    finally:
        running.terminate()
        running.wait()
        kubectl("delete", "deviceclass", DRIVER)


def claims(job: Job) -> list[dict[str, Any]]:
    """The claims that were made for pods of the job."""
    shown = kubectl("get", "resourceclaims", "-n", job.namespace, "-o", "yaml").stdout
    return [one for one in yaml.safe_load(shown)["items"] if one["metadata"]["name"].startswith(f"{job.name}-")]


def apply(bench: Bench, name: str, templates: str) -> Job:
    claim = {"name": "gpu", "resourceClaimTemplateName": templates}
    return bench.apply(name, resources={"gpusPerNode": 1, "claims": [claim]})


def wait_for_message(job: Job, words: str) -> str:
    def look() -> str:
        found = job.condition("Running")
        return found["message"] if found.get("reason") == "Unschedulable" and words in found["message"] else ""

    return wait_for(words, look, state=job.status)


def test_a_job_trains_on_a_claimed_device_and_gives_it_back(bench: Bench, driver: None) -> None:
    job = apply(bench, "claimed", "one-gpu")
    (claim,) = wait_for("the claim of the trainer's pod", lambda: [one for one in claims(job) if one.get("status")])
    (device,) = claim["status"]["allocation"]["devices"]["results"]
    assert (device["driver"], device["request"]) == (DRIVER, "gpu")
    (owner,) = claim["metadata"]["ownerReferences"]
    pods = client.CoreV1Api().list_namespaced_pod(job.namespace, label_selector=f"finetune.dev/job-name={job.name}")
    claimed = {one.metadata.name: bool(one.spec.resource_claims) for one in pods.items}
    assert claimed.pop(owner["name"])
    assert list(claimed.values()) == [False], "preflight holds no device"
    job.wait("Complete")
    wait_for("the device to be free", lambda: not claims(job))


def test_a_claim_that_no_node_can_satisfy_is_named(bench: Bench, driver: None) -> None:
    message = wait_for_message(apply(bench, "greedy", "three-gpus"), "cannot allocate all claims")
    assert message.endswith(
        "1 cannot allocate all claims: wait for free devices, or request fewer in the claims of resources.claims; "
        "kubectl get resourceslices shows what the nodes offer"
    )


def test_a_template_that_does_not_exist_is_named_and_the_job_starts_once_it_does(bench: Bench, driver: None) -> None:
    job = apply(bench, "early", "late")
    message = wait_for_message(job, '"late" not found')
    assert message.endswith("create it in the job's namespace, or correct resources.claims")
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(template(bench.namespace, "late", 1)))
    job.wait("Complete")
