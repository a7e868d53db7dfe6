"""The node under a trainer: drained by its administrator, and silent because its kubelet stands still."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from user import Bench, Job, kubectl, wait_for

pytestmark = [pytest.mark.alone, pytest.mark.nightly]

SHAPE = {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}


@contextmanager
def drained(node: str, job: Job) -> Iterator[None]:
    """The node as `kubectl drain` leaves it for the pods of that job; it takes pods again afterwards."""
    pods = f"--pod-selector=finetune.dev/job-name={job.name}"
    try:
        kubectl("drain", node, pods, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=120s")
        yield
    finally:
        kubectl("uncordon", node)


@contextmanager
def silent(node: str) -> Iterator[None]:
    """The node with a kubelet that stands still, of the cluster of tests/cluster or of kind."""
    signal_kubelet(node, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_kubelet(node, signal.SIGCONT)


def signal_kubelet(node: str, number: signal.Signals) -> None:
    folder = os.environ.get("FINETUNE_CLUSTER_DIR")
    if folder:
        os.kill(json.loads((Path(folder) / "pids" / "kubelet.json").read_text())["pid"], number)
    else:
        subprocess.run(["docker", "exec", node, "pkill", f"-{number.name}", "-x", "kubelet"], check=True)


def reason(job: Job, wanted: str) -> str:
    """The message of condition Running while that is its reason."""
    found = job.condition("Running")
    return str(found["message"]) if found.get("reason") == wanted else ""


def test_a_drained_trainer_waits_for_a_node_and_resumes_from_its_checkpoint(bench: Bench) -> None:
    job = bench.apply("drained", hyperparameters=SHAPE | {"maxSteps": 400}, evaluation={"steps": 40})
    trainer = job.saved_pod()
    with drained(trainer.spec.node_name, job):
        words = wait_for("that no node takes it", lambda: reason(job, "Unschedulable"), state=job.status)
        assert "unschedulable" in words
    status = job.wait("Complete")
    first, last = status["history"]
    assert (first["result"], first["reason"], first["exitCode"]) == ("Preempted", "EvictionByEvictionAPI", 75)
    assert last["resumedFromStep"] == first["lastStep"] > 0
    assert (status["attempts"], status["runs"], status["preemptions"], status.get("failures", 0)) == (1, 2, 1, 0)


def test_a_trainer_on_an_unreachable_node_is_named_never_duplicated_and_replaced_once_the_node_is_back(
    bench: Bench,
) -> None:
    spec: dict[str, Any] = {"checkpoint": {"steps": 200, "gracePeriodSeconds": 5}, "evaluation": {"steps": 400}}
    job = bench.apply("silent", hyperparameters=SHAPE | {"maxSteps": 1600}, **spec)
    trainer = job.running_pod()
    node = trainer.spec.node_name
    with silent(node):
        kubectl("delete", "pod", trainer.metadata.name, "-n", bench.namespace, "--wait=false")
        words = wait_for("the lost node in the status", lambda: reason(job, "NodeLost"), state=job.status)
        assert f"kubectl delete node {node}" in words
        assert [pod.metadata.uid for pod in job.pods()] == [trainer.metadata.uid]
    status = job.wait("Complete")
    first, last = status["history"]
    assert (first["podUID"], last["result"]) == (trainer.metadata.uid, "Succeeded")
    assert first["endTime"] <= last["startTime"]
    assert (status["attempts"], status["runs"]) == (1, 2)
    assert status.get("preemptions", 0) + status.get("failures", 0) == 1
