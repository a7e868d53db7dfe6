"""Claims that keep a pod from a node: the scheduler's message, and the fix."""

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            '0/3 nodes are available: persistentvolumeclaim "hf-cache" not found. preemption: 0/3 nodes are available: '
            "3 Preemption is not helpful for scheduling.",
            'No node can run the pod: persistentvolumeclaim "hf-cache" not found: create this claim in the job\'s '
            "namespace; the pod then starts",
        ),
        (
            'persistentvolumeclaim "hf-cache" is being deleted',
            'No node can run the pod: persistentvolumeclaim "hf-cache" is being deleted: create it again once it is '
            "gone; the pod then starts",
        ),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
            "No node can run the pod: pod has unbound immediate PersistentVolumeClaims: give the claim a storage "
            "class that provisions its volume, or create a matching volume; the pod then starts",
        ),
        (
            "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            "No node can run the pod: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu: wait for a free "
            "nvidia.com/gpu, or check resources.gpuResourceName",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["preflight", "training"])
def test_the_cause_of_a_pending_pod_is_shown_with_its_fix(scene: Any, stage: str, message: str, shown: str) -> None:
    one = scene(modelCache={"claimName": "hf-cache"})
    one.settle()
    if stage == "training":
        one.to_training()
    child = "one-1" if stage == "training" else "one-preflight"
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    one.pod(child, conditions=[condition])
    one.settle()
    running = one.condition("Running")
    assert (running["status"], running["reason"], running["message"]) == ("False", "Unschedulable", shown)
    assert one.status["message"] == shown
