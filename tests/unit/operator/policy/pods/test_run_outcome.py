"""How an ended pod counts: which reports are trusted, and what an exit code means without one."""

from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_operator.kube.pod import Pod
from finetune_operator.manifests.jobs import build_pod_failure_policy
from finetune_operator.policy.pods.run_outcome import judge

CODES = [*(int(code) for code in ExitCode if code), 1, 137, 143]


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        '"Published"',
        '{"outcome": "Published"}',
        '{"a":' * 900,
    ],
)
def test_a_completed_job_without_a_valid_report_is_not_a_success(scene: Any, message: str) -> None:
    one = scene(backoffLimit=0).to_training()
    one.end(one.pod("one-1"), 0, message)
    one.complete("one-1")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert one.condition("Published")["status"] == "False"


@pytest.mark.parametrize(("size", "phase"), [(4096, "Succeeded"), (4097, "Failed")])
def test_a_report_may_be_as_large_as_a_termination_message_and_no_larger(scene: Any, size: int, phase: str) -> None:
    one = scene(backoffLimit=0).to_training()
    message = one.published()
    one.end(one.pod("one-1"), 0, message + " " * (size - len(message)))
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == phase


@pytest.mark.parametrize(
    "forged",
    [
        {"jobUID": "another"},
        {"configSHA256": "0" * 64},
        {"artifacts": {"uri": "s3://bucket/out"}},
        *({"artifacts": {"uri": "s3://bucket/out", "manifestSHA256": text}} for text in ("", "x", "AB" * 32, "a" * 65)),
        {"metrics": {"evalLoss": "NaN"}},
        {"outcome": "Validated"},
    ],
)
def test_a_report_that_does_not_prove_this_jobs_result_is_not_a_success(scene: Any, forged: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(one.pod("one-1"), 0, one.report("Published", **{"artifacts": artifacts} | forged))
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Failed"


def test_infinity_in_a_report_is_refused(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    message = one.published().replace('"message"', '"metrics": {"evalLoss": 1e999}, "message"')
    one.end(one.pod("one-1"), 0, message)
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Failed"


def test_a_pod_of_another_controller_proves_nothing(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    foreign = one.pod("one-1", "forger")
    foreign["metadata"]["ownerReferences"][0]["uid"] = "somebody-else"
    one.end(foreign, 0, one.published())
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Failed"


def action_of_the_job(code: int, disruption: str) -> str:
    """What the Job controller does: the first rule that matches decides."""
    for rule in build_pod_failure_policy()["rules"]:
        matches = code in rule["onExitCodes"]["values"] if "onExitCodes" in rule else bool(disruption)
        if matches:
            return str(rule["action"])
    return "Count"


@pytest.mark.parametrize("disruption", ["", "EvictionByEvictionAPI"])
@pytest.mark.parametrize("code", CODES)
def test_a_pod_counts_once_and_as_its_job_counts_it(scene: Any, code: int, disruption: str) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.end(pod, code, disruption=disruption)
    action = action_of_the_job(code, disruption)
    if action == "FailJob":
        one.fail("one-1", message=f"Container trainer for pod team/one-1 failed with exit code {code} matching FailJob")
    elif action == "Count":
        one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    expected = (0, 1) if action == "Ignore" else (1, 0)
    assert (one.status.get("failures", 0), one.status.get("preemptions", 0)) == expected


def test_the_node_of_a_gpu_that_failed_during_a_drain_is_avoided(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    pod["spec"] = pod["spec"] | {"nodeName": "gpu-a"}
    one.run(pod)
    one.settle()
    one.end(pod, ExitCode.GPU_FAULT, one.report("Failed"), disruption="EvictionByEvictionAPI")
    one.fail("one-1", message="Container trainer for pod team/one-1 failed with exit code 80 matching FailJob")
    one.settle()
    assert (one.status["attempts"], one.status["avoidedNodeNames"]) == (2, ["gpu-a"])


@pytest.mark.parametrize("is_bound", [True, False])
@pytest.mark.parametrize("is_suspended", [True, False])
def test_a_waiting_pod_that_is_deleted_was_not_rejected_by_a_node_or_killed(
    scene: Any, is_bound: bool, is_suspended: bool
) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    if is_suspended:
        one.object["spec"]["suspend"] = True
        one.settle()
    one.delete_pod(pod, grace=120 if is_bound else 0)
    if (
        is_bound
    ):  # what the kubelet writes; of a pod without a node, the API server's garbage collector changes the phase
        one.end(pod, 137, "The container could not be located when the pod was terminated", "ContainerStatusUnknown")
        terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        terminated |= {"startedAt": None, "finishedAt": None}
    else:
        pod["status"] = {"phase": "Failed"}
    one.settle()
    run = one.status["history"][0]
    expected = ("Suspended", "UserRequested") if is_suspended else ("Failed", "Unobserved")
    assert (run["result"], run["reason"]) == expected
    assert run["message"].startswith("the pod was deleted")


def test_a_pod_that_its_node_rejected_shows_why_although_it_is_deleted(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.reject(pod, "OutOfcpu", "Pod was rejected: node has no CPU left")
    one.delete_pod(pod)
    outcome = judge(Pod.from_object(pod), None)
    assert outcome.message.startswith("OutOfcpu: Pod was rejected: node has no CPU left")
