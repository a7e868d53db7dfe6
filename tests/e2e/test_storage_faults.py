"""Storage that is stopped, slow, torn and failing under real pods: it costs time, and nothing else."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway import Answer, Fault, Gateway, Tear
from kubernetes import client
from user import Bench, Job, wait_for

SHAPE = {"maxSteps": 300, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}
SPEC: dict[str, Any] = {"hyperparameters": SHAPE, "evaluation": {"steps": 100}, "checkpoint": {"steps": 25}}
UNAVAILABLE = Answer(503, b"<Error><Code>ServiceUnavailable</Code></Error>")


def address_for_pods() -> str:
    """An address of this machine that pods reach: the one from which it speaks to their node."""
    (node, *_) = client.CoreV1Api().list_node().items
    node_address = next(one.address for one in node.status.addresses if one.type == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node_address, 9))
        return str(probe.getsockname()[0])


@pytest.fixture
def gateway(bench: Bench) -> Iterator[Gateway]:
    """The pods' way to the storage."""
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    with Gateway(server.hostname or "", server.port or 80, address=address_for_pods()).serving() as one:
        yield one


@pytest.fixture(scope="module")
def calm(bench: Bench) -> dict[str, float]:
    """Losses of the job that nothing happens to."""
    return losses(bench.apply("calm", **SPEC).wait("Complete"))


def losses(status: dict[str, Any]) -> dict[str, float]:
    return {name: status["metrics"][name] for name in ("trainLoss", "evalLoss")}


def apply_behind(bench: Bench, name: str, gateway: Gateway) -> Job:
    storage = {"endpoint": gateway.url, "credentialsSecretRef": {"name": "s3"}}
    return bench.apply(name, storage=storage, **SPEC)


def checkpoints(job: Job) -> set[str]:
    """Those that are whole in storage."""
    keys = job.bench.keys(job.bench.uri(f"out/{job.name}/checkpoints"))
    return {key for key in keys if key.endswith("manifest.json")}


def wait_for_a_checkpoint(job: Job, known: set[str]) -> None:
    wait_for("a new checkpoint", lambda: checkpoints(job) - known, state=job.status)


def wait_for_tries(job: Job) -> None:
    """Until the trainer says that it has tried in vain, and tries again."""
    before = job.logs().count("retry in")
    wait_for("a request that is tried again", lambda: job.logs().count("retry in") > before, state=job.logs)


@contextmanager
def ruled(gateway: Gateway, rule: Callable[[str, str], Fault]) -> Iterator[None]:
    """Requests meet what the rule says, at least three of them."""
    before, usual = gateway.faults, gateway.rule
    gateway.rule = rule
    wait_for("requests that fail", lambda: gateway.faults >= before + 3)
    yield
    gateway.rule = usual


@pytest.mark.nightly
def test_storage_that_fails_tears_crawls_and_goes_away_costs_time_alone(
    bench: Bench, gateway: Gateway, calm: dict[str, float]
) -> None:
    job = apply_behind(bench, "weathered", gateway)
    job.running_pod()
    with ruled(gateway, lambda _method, _path: UNAVAILABLE):
        wait_for_tries(job)
    wait_for_a_checkpoint(job, set())
    with ruled(gateway, lambda method, _path: Tear(after=1000) if method == "PUT" else None):
        known = checkpoints(job)
    gateway.delay = 0.5
    wait_for_a_checkpoint(job, known)
    gateway.delay = 0.0
    gateway.leave()
    wait_for_tries(job)
    assert job.condition("Running")["status"] == "True"
    gateway.come_back()
    status = job.wait("Complete")
    assert losses(status) == calm
    assert (status["runs"], status.get("preemptions", 0), status.get("failures", 0)) == (1, 0, 0)


@pytest.mark.nightly
def test_a_trainer_evicted_while_storage_is_away_ends_in_time_and_the_next_one_waits_for_it(
    bench: Bench, gateway: Gateway, calm: dict[str, float]
) -> None:
    job = apply_behind(bench, "cut-off", gateway)
    trainer = job.saved_pod()
    gateway.leave()
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=trainer.metadata.name, namespace=bench.namespace))
    client.CoreV1Api().create_namespaced_pod_eviction(trainer.metadata.name, bench.namespace, eviction)
    wait_for("the preemption in the status", lambda: job.status().get("preemptions") == 1, state=job.status)
    wait_for_tries(job)
    gateway.come_back()
    status = job.wait("Complete")
    first, last = status["history"]
    assert (first["result"], first["exitCode"], last["result"]) == ("Preempted", 75, "Succeeded")
    assert 0 < last["resumedFromStep"] <= first["lastStep"]
    assert losses(status) == calm
    assert (status["runs"], status.get("failures", 0)) == (2, 0)
