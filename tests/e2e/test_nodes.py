"""Pods and processes that train together on the real cluster: one result, and one end for all when one is lost."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from kubernetes import client
from user import Bench, Job, kubectl, wait_for

PAIR = {"numNodes": 2, "gpusPerNode": 0, "requests": {"cpu": "250m", "memory": "1Gi"}}
LORA = {"method": "LoRA", "lora": {"rank": 8}}
STEPS = {"maxSteps": 80, "perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 1, "maxLength": 128}
KILL = """
import os, signal
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in (1, os.getpid()):
        os.kill(int(name), signal.SIGKILL)
"""


def apply(bench: Bench, name: str, **spec: Any) -> Job:
    spec = {"hyperparameters": STEPS, "evaluation": {"steps": 40}, "checkpoint": {"steps": 20}} | spec
    return bench.apply(name, resources=PAIR, tuning=LORA, **spec)


def rank(pod: Any) -> int:
    return int(pod.metadata.annotations["batch.kubernetes.io/job-completion-index"])


def running_pair(job: Job) -> list[Any]:
    """Both pods by their rank, once they have saved a checkpoint."""
    job.saved_pod()

    def look() -> list[Any]:
        pods = [pod for pod in job.pods() if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp]
        return sorted(pods, key=rank) if len(pods) == 2 else []

    found: list[Any] = wait_for(f"two training pods of {job.name}", look, state=job.status)
    return found


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> dict[str, Any]:
    """The final status of a job that nobody touched."""
    return apply(bench, "calm").wait("Complete")


def test_two_pods_publish_one_result_that_verifies(bench: Bench, undisturbed: dict[str, Any]) -> None:
    assert (undisturbed["attempts"], undisturbed["runs"]) == (1, 1)
    assert undisturbed["metrics"]["evalLoss"] < undisturbed["metrics"]["baselineEvalLoss"]
    job = Job(bench, "calm")
    (own,) = job.jobs()
    assert (own.spec.completions, own.spec.parallelism) == (2, 2)
    service = client.CoreV1Api().read_namespaced_service(own.metadata.name, bench.namespace)
    assert service.spec.cluster_ip == "None"
    command = [sys.executable, "-m", "finetune_trainer", "verify", undisturbed["artifacts"]["uri"]]
    verified = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert verified.returncode == 0, verified.stderr


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["Full", "LoRA", "QLoRA"])
def test_two_gpus_of_one_pod_share_out_the_weights(bench: Bench, method: str) -> None:
    tuning: dict[str, Any] = {"method": method} | ({} if method == "Full" else {"lora": {"rank": 8, "shardBase": True}})
    resources = {"gpusPerNode": 2, "requests": {"cpu": "250m", "memory": "1Gi"}}
    job = bench.apply(f"shared-out-{method.lower()}", tuning=tuning, resources=resources)
    status = job.wait("Complete")
    (pod,) = job.pods()
    assert pod.spec.containers[0].resources.limits["nvidia.com/gpu"] == "2"
    told = kubectl("logs", "-n", bench.namespace, pod.metadata.name).stdout
    (mine, whole) = next(
        (int(one.replace(",", "")) for one in found.groups())
        for found in re.finditer(r"this process holds ([\d,]+) of ([\d,]+) bytes", told)
    )
    assert mine == pytest.approx(whole / 2, rel=0.1)
    assert status["resolved"]["globalBatchSize"] == 2 * status["resolved"]["perDeviceTrainBatchSize"]
    assert status["metrics"]["evalLoss"] < status["metrics"]["baselineEvalLoss"]


def test_the_eviction_of_one_pod_ends_both_and_the_next_run_resumes_to_the_same_end(
    bench: Bench, undisturbed: dict[str, Any]
) -> None:
    job = apply(bench, "evicted")
    first, second = running_pair(job)
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=second.metadata.name, namespace=bench.namespace))
    client.CoreV1Api().create_namespaced_pod_eviction(second.metadata.name, bench.namespace, eviction)

    def code() -> int | None:
        pod = next((one for one in job.pods() if one.metadata.uid == first.metadata.uid), None)
        ended = pod and pod.status.container_statuses[0].state.terminated
        return ended.exit_code if ended else None

    assert wait_for("the end of the pod that was not evicted", code, state=job.status) == 75
    status = job.wait("Complete")
    cut, last = status["history"]
    assert (cut["result"], cut["podUID"], last["result"]) == ("Preempted", first.metadata.uid, "Succeeded")
    assert f"pod 1 ({second.metadata.name})" in cut["message"]
    assert last["resumedFromStep"] > 0
    assert (status["attempts"], status["runs"], status["preemptions"], status.get("failures", 0)) == (1, 2, 1, 0)
    for name in ("trainLoss", "evalLoss"):
        assert status["metrics"][name] == pytest.approx(undisturbed["metrics"][name], rel=1e-4), name


@pytest.mark.nightly
def test_a_killed_process_of_one_pod_is_one_failure_and_another_attempt(bench: Bench) -> None:
    job = apply(bench, "killed")
    first, second = running_pair(job)
    kubectl("exec", "-n", bench.namespace, second.metadata.name, "--", "/opt/venv/bin/python", "-c", KILL, check=False)
    status = job.wait("Complete")
    cut, last = status["history"]
    assert (cut["result"], cut["podUID"], last["result"]) == ("Failed", first.metadata.uid, "Succeeded")
    assert f"pod 1 ({second.metadata.name})" in cut["message"]
    assert last["resumedFromStep"] > 0
    assert (status["attempts"], status["runs"], status["failures"], status.get("preemptions", 0)) == (2, 2, 1, 0)


@pytest.mark.nightly
def test_a_pod_deleted_by_force_counts_once_and_the_job_completes(bench: Bench) -> None:
    job = apply(bench, "forced")
    _, second = running_pair(job)
    kubectl("delete", "pod", "-n", bench.namespace, second.metadata.name, "--grace-period=0", "--force")
    status = job.wait("Complete")
    # The kubelet leaves a second or two even so: enough to agree on a checkpoint, or else the kill is a failure.
    assert status.get("failures", 0) + status.get("preemptions", 0) == 1
    assert status["attempts"] == 1 + status.get("failures", 0)
    assert status["history"][-1]["result"] == "Succeeded"
