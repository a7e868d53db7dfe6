"""A pod that a node refuses ran nothing: it does not count as a failure of the job until nodes refuse too often."""

from datetime import timedelta
from typing import Any

import pytest

ADMISSION = ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present")
TERMS = "preferredDuringSchedulingIgnoredDuringExecution"


def refuse(one: Any, job: str, node: str = "gpu-a", failed: int = 1, why: tuple[str, str] = ADMISSION) -> None:
    """Reject a pod of the Job as a kubelet does; the Job controller counts it as failed."""
    pod = one.pod(job)
    pod["spec"] = pod["spec"] | {"nodeName": node}
    one.reject(pod, *why)
    one.children[job]["status"] = {"failed": failed}
    one.settle()


def end_job(one: Any, job: str, failed: int) -> None:
    one.fail(job, reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit", failed=failed)
    one.children[job]["status"]["conditions"][0]["lastTransitionTime"] = one.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    one.settle()


def wait(one: Any, seconds: float) -> None:
    one.now += timedelta(seconds=seconds)
    one.settle()


def test_a_refused_pod_does_not_count_as_a_failure_of_the_job(scene: Any) -> None:
    one = scene().to_training()
    refuse(one, "one-1")
    status = one.status
    assert (status.get("failures"), status["preemptions"]) == (None, 1)
    assert status["preemptionsByReason"] == {"PodRejected": 1}
    run = status["history"][0]
    assert (run["result"], run["reason"]) == ("Preempted", "PodRejected")
    assert run["message"].startswith("UnexpectedAdmissionError: Allocate failed")


def test_a_job_that_refused_pods_have_used_up_is_followed_by_another_attempt(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    refuse(one, "one-1")
    end_job(one, "one-1", 1)
    assert one.status["phase"] != "Failed"
    assert "one-2" not in one.children
    assert "UnexpectedAdmissionError" in one.condition("Running")["message"]
    wait(one, 11)
    assert "one-2" in one.children
    assert (one.status.get("failures"), one.status["attempts"]) == (None, 2)


def test_the_wait_between_refused_attempts_doubles(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    for attempt, seconds in ((1, 10), (2, 20), (3, 40)):
        refuse(one, f"one-{attempt}")
        end_job(one, f"one-{attempt}", 1)
        wait(one, seconds - 1)
        assert f"one-{attempt + 1}" not in one.children
        wait(one, 2)
        assert f"one-{attempt + 1}" in one.children


def test_nodes_that_reject_repeatedly_count_as_failures(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    for attempt in range(1, 20):
        refuse(one, f"one-{attempt}")
        end_job(one, f"one-{attempt}", 1)
        wait(one, 601)
        if one.status["phase"] == "Failed":
            break
    assert (attempt, one.status["failures"], one.status["preemptions"]) == (6, 1, 5)
    assert one.status["reason"] == "BackoffLimitExceeded"
    assert "UnexpectedAdmissionError" in one.status["message"]


def test_a_run_between_rejections_restarts_the_count(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    for number in range(1, 5):
        refuse(one, "one-1", failed=number)
    one.end(one.pod("one-1"), 75)
    one.settle()
    for number in range(5, 10):
        refuse(one, "one-1", failed=number)
    assert (one.status.get("failures"), one.status["preemptions"]) == (None, 10)


def test_a_rejection_for_a_lasting_reason_counts_at_once(scene: Any) -> None:
    one = scene().to_training()
    refuse(one, "one-1", why=("SysctlForbidden", "forbidden sysctl"))
    assert one.status["failures"] == 1


@pytest.mark.parametrize("is_observed", [True, False])
def test_too_many_preemptions_end_a_job_whose_pods_are_refused(scene: Any, is_observed: bool) -> None:
    one = scene(backoffLimit=0, maxPreemptions=1).to_training()
    refuse(one, "one-1")
    end_job(one, "one-1", 1)
    wait(one, 11)
    if is_observed:
        refuse(one, "one-2")
    else:
        one.reject(one.pod("one-2"), *ADMISSION)
        end_job(one, "one-2", 1)
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")


def test_an_attempt_prefers_other_nodes_than_the_one_that_ended_two_runs_in_succession(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    for attempt, node in ((1, "gpu-a"), (2, "gpu-a")):
        refuse(one, f"one-{attempt}", node)
        end_job(one, f"one-{attempt}", 1)
        wait(one, 100)
    assert "affinity" not in one.children["one-2"]["spec"]["template"]["spec"]
    affinity = one.children["one-3"]["spec"]["template"]["spec"]["affinity"]
    (term,) = affinity["nodeAffinity"][TERMS]
    assert term["weight"] == 100
    assert term["preference"]["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["gpu-a"]}]
    assert one.condition("Running")["message"].startswith(
        "preferring other nodes than gpu-a, on which two runs in succession ended"
    )


def test_one_refused_pod_of_several_does_not_count_as_a_failure_either(scene: Any) -> None:
    one = scene(tuning={"method": "LoRA"}, resources={"numNodes": 2}, backoffLimit=0).to_training()
    first, second = one.set_of("one-1")
    one.run(first)
    one.settle()
    one.reject(second, *ADMISSION)
    one.end(first, 75, one.report("Preempted"))
    end_job(one, "one-1", 1)
    wait(one, 40)
    assert (one.status.get("failures"), one.status["preemptionsByReason"]) == (None, {"PodRejected": 1})
    assert "one-2" in one.children
