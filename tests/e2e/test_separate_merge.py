"""A full model is merged by a pod of its own, which requests no GPU, and again after its pod is deleted."""

import json
import subprocess
import sys
from typing import Any

from user import Bench, kubectl, wait_for

RESOURCES = {
    "gpusPerNode": 1,
    "requests": {"cpu": "500m", "memory": "1Gi"},
    "merge": {"requests": {"cpu": "250m", "memory": "1Gi"}},
}


def test_a_deleted_merge_pod_is_replaced_and_the_result_is_verified_from_outside(bench: Bench) -> None:
    uri = bench.uri("out/apart")
    job = bench.apply("apart", output={"uri": uri, "merge": "BF16"}, resources=RESOURCES)

    def look() -> Any:
        """The merge pod, once it has logged something: a process that only begins does not notice its SIGTERM."""
        pod = next((one for one in job.pods("merge") if one.status.phase == "Running"), None)
        return pod if pod and kubectl("logs", pod.metadata.name, "-n", bench.namespace, check=False).stdout else None

    pod = wait_for("a running merge pod", look, state=job.status)
    assert pod.spec.containers[0].resources.limits is None
    assert all(one.status.phase == "Succeeded" for one in job.pods("trainer"))
    assert "manifest.json" in {key.rpartition("/")[2] for key in bench.keys(f"{uri}/checkpoints/trained")}
    kubectl("delete", "pod", pod.metadata.name, "-n", bench.namespace)

    status = job.wait("Complete")
    assert [one["reason"] for one in status["history"]] == ["Trained", "Preempted", "Succeeded"], json.dumps(status)
    assert status["evaluation"]["mergeGate"] == "Passed"
    assert "trainedWeights" not in status
    assert bench.keys(f"{uri}/checkpoints") == []
    command = [sys.executable, "-m", "finetune_trainer", "verify", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
