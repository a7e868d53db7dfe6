"""Real Kueue: two teams share four GPUs as in crds/examples/kueue, and every wait is said in words."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from user import Bench, Job, kubectl, process_of, secret, wait_for

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "crds" / "examples" / "kueue"
LONG = {"maxSteps": 360, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}
SECURE = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def install_kueue(*options: str) -> None:
    """Kueue in the cluster of tests/cluster; elsewhere it has to be there."""
    if "FINETUNE_CLUSTER_DIR" in os.environ:
        command = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py"), "kueue"]
        done = subprocess.run([*command, "up", *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    else:
        kubectl("get", "customresourcedefinition", "workloads.kueue.x-k8s.io")


@dataclass
class Teams:
    """The namespaces of the two teams, and the names that stand for those of the example."""

    a: Bench
    b: Bench

    def apply(self, bench: Bench, name: str, example: str, **spec: Any) -> Job:
        """A job with the queue and the priority of a job of the example, as large as a test needs it."""
        documents = yaml.safe_load_all((EXAMPLES / "jobs.yaml").read_text(encoding="utf-8"))
        scheduling = next(one["spec"]["scheduling"] for one in documents if one["metadata"]["name"] == example)
        return bench.apply(name, **{"scheduling": scheduling, "evaluation": {"steps": 60}} | spec)

    def queue_of(self, bench: Bench) -> str:
        """Name of the team's ClusterQueue."""
        return bench.namespace


@pytest.fixture(scope="module")
def teams(s3: Any, _kubeconfig: None) -> Iterator[Teams]:
    """The example's queues under names of their own, and a namespace for each team."""
    install_kueue()
    suffix = uuid.uuid4().hex[:6]
    names = {team: f"{team}-{suffix}" for team in ("team-a", "team-b")}
    for namespace in names.values():
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
        keys = secret(namespace, "s3", os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([space, keys]))
    text = (EXAMPLES / "queues.yaml").read_text(encoding="utf-8")
    for old, new in names.items():
        text = text.replace(old, new)
    kubectl("apply", "-f", "-", stdin=text.replace("finetuning", f"finetuning-{suffix}"))
    yield Teams(*(Bench(namespace, s3) for namespace in names.values()))
    kubectl("delete", "namespace", *names.values(), "--wait", "--timeout=600s")
    kubectl("delete", "clusterqueues", *names.values(), "--wait", "--timeout=300s")


def other_work(bench: Bench, gpus: int) -> None:
    """A team's other work: a plain Job of the highest priority in the same queue that keeps some GPUs."""
    container = {
        "name": "work",
        "image": os.environ["FINETUNE_TRAINER_IMAGE"],
        "command": ["sleep", "3600"],
        "resources": {"limits": {"nvidia.com/gpu": gpus}, "requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": SECURE,
    }
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "urgent"}
    template = {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"suspend": True, "template": template}}
    meta = {"name": "other-work", "namespace": bench.namespace, "labels": labels}
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump(job | {"metadata": meta}))
    kubectl("wait", "--for=jsonpath={.status.ready}=1", "job/other-work", "-n", bench.namespace, "--timeout=300s")


def patch(bench: Bench, kind: str, name: str, spec: dict[str, Any]) -> None:
    kubectl("patch", kind, name, "-n", bench.namespace, "--type=merge", "-p", json.dumps({"spec": spec}))


def quota(job: Job, reason: str, words: str = "") -> Callable[[], str]:
    """Wait for the reason on condition QuotaReserved, with these words; return what kubectl shows then."""

    def look() -> str:
        found = job.condition("QuotaReserved")
        is_so = found.get("reason") == reason and words in found["message"] and job.status()["phase"] == "Queued"
        return found["message"] if is_so else ""

    return look


def suspended_by_operator(job: Job) -> bool:
    return any("finetune.dev/suspended-by" in (one.metadata.annotations or {}) for one in job.jobs())


def test_a_borrower_is_preempted_by_the_owner_shows_why_it_waits_and_resumes_from_its_checkpoint(teams: Teams) -> None:
    other_work(teams.a, 3)  # two of its own, and one that it borrows
    nightly = teams.apply(teams.a, "nightly", "nightly", hyperparameters=LONG)
    nightly.saved_pod()
    hotfix = teams.apply(teams.b, "hotfix", "hotfix", hyperparameters=LONG)
    waits = wait_for("why it waits", quota(nightly, "WaitingForQuota", "unused quota"), state=nightly.status)
    assert "for nvidia.com/gpu in flavor gpu-nodes" in waits
    shown = kubectl("get", "finetunejob", "nightly", "-n", teams.a.namespace, "-o", "wide").stdout
    assert "Queued" in shown
    assert waits in kubectl("describe", "finetunejob", "nightly", "-n", teams.a.namespace).stdout
    last = hotfix.wait("Complete")
    assert last.get("preemptions", 0) == 0
    status = nightly.wait("Complete")
    first, second = status["history"]
    assert (first["result"], first["reason"], first["exitCode"]) == ("Preempted", "Preempted", 75)
    assert "Preempted to accommodate a workload" in first["message"]
    assert second["resumedFromStep"] == first["lastStep"] > 0
    assert (status["attempts"], status["runs"], status["preemptions"], status.get("failures", 0)) == (1, 2, 1, 0)
    assert [status["metrics"][name] for name in ("trainLoss", "evalLoss")] == [
        last["metrics"][name] for name in ("trainLoss", "evalLoss")
    ]
    assert not suspended_by_operator(nightly)
    kubectl("delete", "job", "other-work", "-n", teams.a.namespace, "--wait")


@pytest.mark.nightly
def test_a_stopped_queue_and_then_the_user_stop_a_trainer_which_resumes_each_time(teams: Teams) -> None:
    job = teams.apply(teams.a, "stopped", "nightly", hyperparameters=LONG)
    job.running_pod()
    patch(teams.a, "clusterqueue", teams.queue_of(teams.a), {"stopPolicy": "HoldAndDrain"})
    words = wait_for("the stopped queue in the status", quota(job, "QueueStopped"), state=job.status)
    assert "wait until it is started again, or change scheduling.queueName" in words
    wait_for("the preemption to be counted", lambda: job.status().get("preemptions") == 1, state=job.status)
    patch(teams.a, "clusterqueue", teams.queue_of(teams.a), {"stopPolicy": "None"})
    job.running_pod()
    patch(teams.a, "finetunejob", "stopped", {"suspend": True})
    wait_for("no trainer pod", lambda: not job.pods(), state=job.status)
    assert job.status()["phase"] == "Suspended"
    name = job.status()["workloadRef"]["name"]
    group = ("kueue.x-k8s.io", "v1beta2", teams.a.namespace, "workloads")
    workload = client.CustomObjectsApi().get_namespaced_custom_object(*group, name)
    assert workload["spec"]["active"] is False
    patch(teams.a, "finetunejob", "stopped", {"suspend": False})
    status = job.wait("Complete")
    assert [run["result"] for run in status["history"]] == ["Preempted", "Suspended", "Succeeded"]
    assert (status["attempts"], status["preemptions"], status.get("failures", 0)) == (1, 1, 0)
    assert not suspended_by_operator(job)


@pytest.mark.nightly
def test_a_trainer_that_ends_after_quota_is_back_was_preempted_and_has_not_failed(teams: Teams) -> None:
    brief = {"checkpoint": {"steps": 30, "gracePeriodSeconds": 10}, "evaluation": {"steps": 60}}
    job = teams.apply(teams.a, "hung", "nightly", hyperparameters=LONG | {"maxSteps": 120}, **brief)
    trainer = job.saved_pod()
    pid = process_of(trainer)
    assert pid
    os.kill(pid, signal.SIGSTOP)
    patch(teams.a, "clusterqueue", teams.queue_of(teams.a), {"stopPolicy": "HoldAndDrain"})
    wait_for("the stopped queue in the status", quota(job, "QueueStopped"), state=job.status)
    patch(teams.a, "clusterqueue", teams.queue_of(teams.a), {"stopPolicy": "None"})
    status = job.wait("Complete")
    first, last = status["history"]
    assert (first["podUID"], first["result"], first["exitCode"]) == (trainer.metadata.uid, "Preempted", 137)
    assert first["message"].startswith("Kueue: ")
    assert (last["result"], last["resumedFromStep"] > 0) == ("Succeeded", True)
    assert (status["runs"], status["preemptions"], status.get("failures", 0)) == (2, 1, 0)
    assert [one.status.failed or 0 for one in job.jobs()] == [0]


@pytest.mark.nightly
def test_what_the_queue_lacks_is_shown_and_a_corrected_queue_takes_effect_at_once(teams: Teams) -> None:
    wrong = teams.apply(teams.a, "wrong-queue", "nightly", scheduling={"queueName": "gpu"})
    resources = {"requests": {"cpu": "100m", "memory": "1Gi"}}
    odd = teams.apply(
        teams.a, "wrong-gpu", "nightly", resources=resources | {"gpusPerNode": 1, "gpuResourceName": "amd.com/gpu"}
    )
    rack = {"mode": "Required", "level": "cloud.example.com/rack"}
    topology = teams.apply(
        teams.a, "wrong-topology", "nightly", scheduling={"queueName": "gpus", "topology": rack}, resources=resources
    )
    words = wait_for("the missing queue", quota(wrong, "QueueNotFound"), state=wrong.status)
    assert "LocalQueue gpu doesn't exist: create it in the job's namespace, or change scheduling.queueName" in words
    words = wait_for("the resource without a flavor", quota(odd, "NoMatchingFlavor"), state=odd.status)
    assert "have amd.com/gpu added to the ClusterQueue, or change resources (gpuResourceName, requests)" in words
    words = wait_for("the missing topology", quota(topology, "NoMatchingTopology"), state=topology.status)
    assert "change scheduling.topology" in words
    odd.delete()
    topology.delete()
    patch(teams.a, "finetunejob", "wrong-queue", {"scheduling": {"queueName": "gpus"}})
    status = wrong.wait("Complete")
    assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)


@pytest.mark.nightly
def test_a_waiting_job_whose_queue_is_removed_starts_without_it(teams: Teams) -> None:
    waiting = teams.apply(teams.a, "left-queue", "nightly", scheduling={"queueName": "gpu"})
    wait_for("the missing queue", quota(waiting, "QueueNotFound"), state=waiting.status)
    patch(teams.a, "finetunejob", "left-queue", {"scheduling": None})
    status = waiting.wait("Complete")
    assert (status["runs"], status.get("failures", 0)) == (1, 0)


@pytest.mark.nightly
def test_if_kueue_holds_every_job_one_without_a_queue_shows_that_it_must_name_one(teams: Teams) -> None:
    install_kueue("--manage-all")
    try:
        job = teams.a.apply("unqueued")
        words = wait_for("that a queue is missing", quota(job, "QueueMissing"), state=job.status)
        assert "set scheduling.queueName" in words
        patch(teams.a, "finetunejob", "unqueued", {"scheduling": {"queueName": "gpus"}})
        status = job.wait("Complete")
        assert (status["attempts"], status["runs"], status.get("failures", 0)) == (1, 1, 0)
    finally:
        install_kueue()
