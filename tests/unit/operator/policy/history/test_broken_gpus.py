"""After a fault of a GPU the next attempt runs on other nodes."""

from typing import Any

import pytest

ECC = "a GPU of this node is broken: CUDA error: uncorrectable ECC error encountered"
TERMS = "requiredDuringSchedulingIgnoredDuringExecution"


def broken(one: Any, job: str, node: str, **pod: Any) -> None:
    """End a pod of a Job with the code of a broken GPU, and the Job with it, as the pod failure policy says."""
    ended = one.pod(job, **pod)
    ended["spec"] = ended["spec"] | {"nodeName": node}
    one.run(ended)
    one.settle()
    one.end(ended, 80, one.report("Failed", reason="GPUFault", message=ECC))
    one.fail(job, message=f"Container trainer for pod team/{job} failed with exit code 80 matching FailJob rule")
    one.settle()


def avoided(one: Any, job: str) -> list[list[str]]:
    """Return the nodes that each term of the Job's affinity excludes."""
    required = one.children[job]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][TERMS]
    return [
        [value for field in term["matchFields"] for value in field["values"]] for term in required["nodeSelectorTerms"]
    ]


def test_the_next_attempt_avoids_the_node_and_the_failure_counts_once(scene: Any) -> None:
    one = scene().to_training()
    assert "affinity" not in one.children["one-1"]["spec"]["template"]["spec"]
    broken(one, "one-1", "gpu-a")
    status = one.object["status"]
    assert (status["failures"], status["failuresByReason"], status["attempts"]) == (1, {"GPUFault": 1}, 2)
    assert status["avoidedNodeNames"] == ["gpu-a"]
    assert status["history"][-1]["nodeName"] == "gpu-a"
    assert avoided(one, "one-2") == [["gpu-a"]]
    broken(one, "one-2", "gpu-b")
    assert avoided(one, "one-3") == [["gpu-a", "gpu-b"]]


def test_the_condition_names_the_avoided_node_while_the_next_attempt_starts(scene: Any) -> None:
    one = scene(backoffLimit=1).to_training()
    broken(one, "one-1", "gpu-a")
    (running,) = [kind for kind in one.object["status"]["conditions"] if kind["type"] == "Running"]
    assert "uncorrectable ECC error" in running["message"]
    assert running["message"].startswith("avoiding gpu-a, whose GPU failed")


def test_too_many_faults_end_the_job(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    broken(one, "one-1", "gpu-a")
    status = one.object["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "ECC" in status["message"]


def test_the_node_of_the_pod_with_the_fault_is_avoided_and_not_that_of_the_first_one(scene: Any) -> None:
    one = scene(tuning={"method": "LoRA"}, resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    for pod, node in ((first, "gpu-a"), (second, "gpu-b")):
        pod["spec"] = pod["spec"] | {"nodeName": node}
    one.settle()
    one.end(second, 80, one.report("Failed", reason="GPUFault", message=ECC))
    one.end(first, 70, one.report("Failed", reason="InternalError", message="a collective failed"))
    one.fail("one-1", message="Container trainer for pod team/x failed with exit code 80 matching FailJob rule")
    one.settle()
    assert one.object["status"]["avoidedNodeNames"] == ["gpu-b"]
    assert avoided(one, "one-2") == [["gpu-b"]]


@pytest.mark.parametrize("message", ["failed with exit code 80 matching FailJob rule", "another"])
def test_an_unobserved_fault_is_read_from_the_message_of_the_job(scene: Any, message: str) -> None:
    one = scene().to_training()
    one.fail("one-1", message=message)
    one.settle()
    assert ("one-2" in one.children) == ("80" in message)
    assert "avoidedNodeNames" not in one.object["status"]
