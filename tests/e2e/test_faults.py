"""Faults on the real cluster: operator killed, trainer evicted, out of memory, deleted. Nothing is trained twice."""

from typing import Any

import pytest
from kubernetes import client
from user import Bench, Job, kubectl, wait_for

LONG = {"maxSteps": 400, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}
SELDOM = {"evaluation": {"steps": 200}, "checkpoint": {"steps": 20}}


def operator_pods() -> list[Any]:
    return list(
        client.CoreV1Api()
        .list_namespaced_pod("finetune-system", label_selector="app.kubernetes.io/component=operator")
        .items
    )


@pytest.mark.alone
def test_an_operator_killed_in_mid_run_leaves_one_job_and_the_right_status(bench: Bench) -> None:
    job = bench.apply("orphan", hyperparameters=LONG | {"maxSteps": 250}, **SELDOM)
    trainer = job.running_pod()
    killed = operator_pods()[0].metadata.name
    kubectl("delete", "pod", killed, "-n", "finetune-system", "--grace-period=0", "--force")
    wait_for(
        "another operator to be ready",
        lambda: any(
            pod.metadata.name != killed and any(one.ready for one in pod.status.container_statuses or [])
            for pod in operator_pods()
        ),
    )
    status = job.wait("Complete")
    assert [one.metadata.name for one in job.jobs()] == [status["jobRef"]["name"]]
    assert [run["podName"] for run in status["history"]] == [trainer.metadata.name]
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)


def test_an_evicted_trainer_counts_as_a_preemption_and_the_next_run_resumes_from_its_checkpoint(bench: Bench) -> None:
    job = bench.apply("evicted", hyperparameters=LONG | {"maxSteps": 200}, **SELDOM)
    trainer = job.saved_pod()
    _evict(bench, trainer)
    wait_for("the preemption in the status", lambda: job.status().get("preemptions") == 1, state=job.status)
    assert job.condition("Complete").get("status") != "True"
    status = job.wait("Complete")
    first, last = status["history"]
    assert (first["result"], first["exitCode"], first["podUID"]) == ("Preempted", 75, trainer.metadata.uid)
    assert last["result"] == "Succeeded"
    assert last["resumedFromStep"] == first["lastStep"] >= SELDOM["checkpoint"]["steps"]
    assert (status["attempts"], status["runs"], status["preemptions"], status.get("failures", 0)) == (1, 2, 1, 0)


@pytest.mark.nightly
@pytest.mark.alone
def test_an_eviction_while_the_operator_is_down_is_counted_once_the_next_run_reports_it(bench: Bench) -> None:
    job = bench.apply("unwatched", hyperparameters=LONG, **SELDOM)
    first = job.running_pod()
    kubectl("scale", "deployment/finetune-operator", "-n", "finetune-system", "--replicas=0")
    try:
        wait_for("no operator", lambda: not operator_pods())
        evicted = [first.metadata.name]
        _evict(bench, first)
        second = wait_for("a second pod that trains", lambda: _training(job, evicted), state=job.pods)
        evicted.append(second.metadata.name)
        _evict(bench, second)
        third = wait_for("a third pod that trains", lambda: _training(job, evicted), state=job.pods)
    finally:
        kubectl("scale", "deployment/finetune-operator", "-n", "finetune-system", "--replicas=1")
    status = job.wait("Complete")
    ends = {run["podName"]: (run["result"], run["reason"]) for run in status["history"]}
    assert ends[second.metadata.name] == ("Preempted", "Unobserved")
    assert ends[first.metadata.name][0] == "Preempted"
    assert ends[third.metadata.name] == ("Succeeded", "Succeeded")
    assert (status["attempts"], status["runs"], status["preemptions"], status.get("failures", 0)) == (1, 3, 2, 0)


def _evict(bench: Bench, pod: Any) -> None:
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.metadata.name, namespace=bench.namespace))
    client.CoreV1Api().create_namespaced_pod_eviction(pod.metadata.name, bench.namespace, eviction)


def _training(job: Job, known: list[str]) -> Any:
    """Another pod than those that are known, once its log tells of a step: no operator is there to ask."""
    for pod in job.pods():
        name = pod.metadata.name
        if name not in known and pod.status.phase == "Running":
            log = kubectl("logs", "-n", job.namespace, name, check=False).stdout
            return pod if "INFO Training" in log else None
    return None


def test_a_trainer_that_runs_out_of_memory_is_retried_until_the_backoff_limit(bench: Bench) -> None:
    # The kernel kills it while it imports PyTorch: a SIGKILL that no handler and no grace period softens.
    memory = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"memory": "100Mi"}}
    job = bench.apply("hungry", resources={"gpusPerNode": 1, **memory}, backoffLimit=1)
    status = job.wait("Failed")
    assert [(run["result"], run["reason"], run["exitCode"]) for run in status["history"]] == [
        ("Failed", "OutOfMemory", 137),
        ("Failed", "OutOfMemory", 137),
    ]
    assert (status["attempts"], status["runs"], status["failures"], status.get("preemptions", 0)) == (1, 2, 2, 0)
    failed = job.condition("Failed")
    assert failed["reason"] == "BackoffLimitExceeded"
    assert "resources.limits.memory" in failed["message"]


@pytest.mark.nightly
def test_a_trainer_pod_deleted_by_force_counts_by_its_exit_code_and_the_next_run_finishes(
    bench: Bench,
) -> None:
    job = bench.apply("forced", hyperparameters=LONG, **SELDOM)
    trainer = job.running_pod()
    kubectl("delete", "pod", "-n", bench.namespace, trainer.metadata.name, "--grace-period=0", "--force")
    status = job.wait("Complete")
    first, last = status["history"]
    # The kubelet leaves a second or two even so: enough to save and say so, or else the kill is a failure.
    meaning = {75: ("Preempted", "Preempted"), 137: ("Failed", "ContainerError")}
    assert (first["result"], first["reason"]) == meaning[first["exitCode"]]
    assert (first["podUID"], last["result"]) == (trainer.metadata.uid, "Succeeded")
    assert first["endTime"] <= last["startTime"]
    preempted = int(first["exitCode"] == 75)
    assert (status.get("preemptions", 0), status.get("failures", 0)) == (preempted, 1 - preempted)
    assert (status["attempts"], status["runs"]) == (1, 2)
    (own,) = job.jobs()
    assert (own.status.failed or 0) == status.get("failures", 0)


@pytest.mark.nightly
def test_a_trainer_job_deleted_by_hand_is_a_new_attempt_that_counts(bench: Bench) -> None:
    job = bench.apply("deleted", hyperparameters=LONG, **SELDOM)
    job.running_pod()
    first = job.jobs()[0].metadata
    kubectl("delete", "job", first.name, "-n", bench.namespace, "--wait")
    status = job.wait("Complete")
    assert (status["attempts"], status["failures"]) == (2, 1)
    assert status["jobRef"]["name"] != first.name


def test_the_operator_serves_health_and_metrics(bench: Bench) -> None:
    path = "/api/v1/namespaces/finetune-system/services/finetune-operator:metrics/proxy/metrics"
    metrics = kubectl("get", "--raw", path).stdout
    assert "finetune_job_status_phase" in metrics
    resident = float(
        next(line.split()[1] for line in metrics.splitlines() if line.startswith("process_resident_memory_bytes"))
    )
    assert resident < 150 * 2**20
