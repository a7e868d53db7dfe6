"""NetworkPolicies of the chart and of the operator, enforced: a job runs under them, and nothing else passes.

Each refusal is of a connection that another pod or another port gets at the same time.
"""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deployed_chart import NAMESPACE, RELEASE, Chart
from kubernetes import client
from test_cluster import PYTHON, RESTRICTED, SERVE, accounts, apply, image, phase, pod, until
from test_nodes import LORA, PAIR, rank
from user import Bench, Job, kubectl, wait_for

NODE, API_SERVER, API_SERVICE, S3, DNS = "10.97.0.1", ("10.97.0.1", 16443), ("10.96.0.1", 443), 28333, 20053
PROGRESS, PROBES, RENDEZVOUS = 8080, 8081, 29500
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3)"
RESOLVE = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"
CLUSTER = [sys.executable, str(Path(__file__).parents[1] / "cluster" / "cluster.py"), "policies"]
LONG = {"maxSteps": 600, "perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 1, "maxLength": 128}
OPERATOR = f"deployment/{RELEASE}"

pytestmark = [
    pytest.mark.alone,
    pytest.mark.nightly,
    pytest.mark.skipif(not Path("/sys/class/net/ftc-node").exists(), reason="not the cluster of tests/cluster"),
]
__all__ = ["image"]


@dataclass
class Place:
    """The pods that are asked: those of a job in training, one of monitoring, and a stranger in each namespace."""

    job: Job
    monitoring: str
    addresses: dict[str, str]


@pytest.fixture(scope="module")
def enforced(_kubeconfig: None) -> Iterator[None]:
    try:
        subprocess.run([*CLUSTER, "up"], check=True)
        yield
    finally:
        subprocess.run([*CLUSTER, "down"], check=True)


@pytest.fixture(scope="module")
def monitoring(_kubeconfig: None, image: str) -> Iterator[str]:
    """A namespace with a scraper that listens, too."""
    name = f"monitoring-{uuid.uuid4().hex[:6]}"
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    until("the namespace's service account", lambda: accounts(name))
    apply(pod(name, "scraper", image, [PYTHON, "-c", SERVE]))
    yield name
    client.CoreV1Api().delete_namespace(name)


@pytest.fixture(scope="module")
def installed(
    enforced: None, bench: Bench, monitoring: str, chart: Chart, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The chart with every policy that it has."""
    own = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": monitoring}}}
    storage = {"to": [{"ipBlock": {"cidr": f"{NODE}/32"}}], "ports": [{"port": S3}]}
    policy = {
        "enabled": True,
        "scrapers": [own],
        "apiServerCIDRs": [f"{NODE}/32"],
        "apiServerPorts": [API_SERVER[1]],
        "dnsPorts": [DNS],
        "egress": {"enabled": True, "rules": [storage]},
    }
    chart.install(tmp_path_factory.mktemp("values"), networkPolicy=policy, watchNamespaces=[bench.namespace])


@pytest.fixture(scope="module")
def place(installed: None, bench: Bench, monitoring: str, image: str) -> Place:
    """A job with two pods in training, under these policies."""
    apply(pod(bench.namespace, "stranger", image, [PYTHON, "-c", SERVE]))
    job = bench.apply(
        "closed", resources=PAIR, tuning=LORA, hyperparameters=LONG, evaluation={"steps": 500}, checkpoint={"steps": 20}
    )
    job.saved_pod()
    phase(bench.namespace, "stranger", "Running")
    phase(monitoring, "scraper", "Running")
    trainers = sorted(job.pods(), key=rank)
    (operator,) = client.CoreV1Api().list_namespaced_pod(NAMESPACE).items
    core = client.CoreV1Api()
    addresses = {
        "trainer": trainers[0].status.pod_ip,
        "operator": operator.status.pod_ip,
        "stranger": core.read_namespaced_pod("stranger", bench.namespace).status.pod_ip,
        "scraper": core.read_namespaced_pod("scraper", monitoring).status.pod_ip,
    }
    until("the stranger's port", lambda: reaches(monitoring, "scraper", addresses["stranger"], PROGRESS))
    return Place(job, monitoring, addresses)


def reaches(namespace: str, name: str, address: str, port: int) -> bool:
    """Whether a process in the pod gets a connection; a refused one counts as none."""
    command = ("--", PYTHON, "-c", CONNECT, address, str(port))
    done = kubectl("exec", "-n", namespace, name, *command, check=False)
    assert done.returncode == 0 or "Error" in done.stderr, done.stderr
    return done.returncode == 0


def second(job: Job) -> Any:
    return sorted(job.pods(), key=rank)[1].metadata.name


def test_the_operator_reaches_the_api_server_and_the_progress_of_trainers_and_no_other_pod(place: Place) -> None:
    wait_for(
        "progress, which the operator polls at the trainer's port",
        lambda: place.job.status().get("progress", {}).get("step", 0) > 0,
        state=place.job.status,
    )
    assert reaches(NAMESPACE, OPERATOR, *API_SERVICE)
    assert not reaches(NAMESPACE, OPERATOR, place.addresses["stranger"], PROGRESS)
    assert not reaches(NAMESPACE, OPERATOR, NODE, S3)


def test_a_trainer_reaches_storage_names_and_its_peer_and_neither_the_api_server_nor_another_pod(place: Place) -> None:
    namespace, name = place.job.namespace, second(place.job)
    assert reaches(namespace, name, NODE, S3)
    (own,) = place.job.jobs()
    resolved = kubectl("exec", "-n", namespace, name, "--", PYTHON, "-c", RESOLVE, f"{own.metadata.name}").stdout
    assert resolved.startswith("10.244.")
    assert reaches(namespace, name, place.addresses["trainer"], RENDEZVOUS)
    for address, port in (
        API_SERVER,
        API_SERVICE,
        *((place.addresses[one], PROGRESS) for one in ("stranger", "scraper")),
    ):
        assert not reaches(namespace, name, address, port), (address, port)


def test_scrapers_reach_the_metrics_and_nothing_else(place: Place) -> None:
    for target in ("operator", "trainer"):
        assert reaches(place.monitoring, "scraper", place.addresses[target], PROGRESS), target
    assert not reaches(place.monitoring, "scraper", place.addresses["operator"], PROBES)
    assert not reaches(place.monitoring, "scraper", place.addresses["trainer"], RENDEZVOUS)


def test_a_pod_of_the_same_namespace_reaches_neither_the_trainers_nor_the_operator(place: Place) -> None:
    namespace = place.job.namespace
    assert reaches(namespace, "stranger", place.addresses["scraper"], PROGRESS)
    for target, port in (("trainer", PROGRESS), ("trainer", RENDEZVOUS), ("operator", PROGRESS), ("operator", PROBES)):
        assert not reaches(namespace, "stranger", place.addresses[target], port), (target, port)


def test_the_job_ends_with_its_result_and_its_policies_go_with_it(place: Place) -> None:
    status = place.job.wait("Complete")
    assert [status.get(name, 0) for name in ("attempts", "runs", "failures")] == [1, 1, 0]
    assert {"manifest.json"} <= set(place.job.bench.keys(status["artifacts"]["uri"]))
    place.job.delete()
    networking = client.NetworkingV1Api()

    def left() -> set[str]:
        return {one.metadata.name for one in networking.list_namespaced_network_policy(place.job.namespace).items}

    until("the end of the job's own policies", lambda: left() == {f"{RELEASE}-jobs"})
