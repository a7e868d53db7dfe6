"""Why no pod runs: after which time, by whose message, and with which fix."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.kube.objects import Job
from finetune_operator.kube.observed import Reading, WarningEvent, Warnings
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.pods import pod_diagnosis
from finetune_operator.policy.pods.pod_diagnosis import Diagnosis, EventQuery


def diagnose(one: Any, seconds: float, *warnings: WarningEvent | tuple[str, str], about: str = "") -> Diagnosis:
    """Diagnose the first trainer Job some seconds after its creation, with these events of the named object."""
    pods = [Pod.from_object(pod) for pod in list(one.pods.values())[1:]]
    found = Warnings(about, tuple(WarningEvent(*one) for one in warnings)) if about else None
    return pod_diagnosis.diagnose(
        Job.from_object(one.children["one-1"]), pods, found, one.now + timedelta(seconds=seconds)
    )


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
            "0/1 nodes are available: 1 cannot allocate all claims. still not schedulable, preemption: 0/1 nodes are "
            "available: 1 Preemption is not helpful for scheduling.",
            "No node can run the pod: 0/1 nodes are available: 1 cannot allocate all claims: wait for free devices, or "
            "request fewer in the claims of resources.claims; kubectl get resourceslices shows what the nodes offer",
        ),
        (
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/1 "
            "nodes are available: 1 No preemption victims found for incoming pod.",
            "No node can run the pod: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu: wait for a free "
            "nvidia.com/gpu, or check resources.gpuResourceName",
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


def test_a_job_without_a_pod_has_ten_seconds_before_its_events_are_read(scene: Any) -> None:
    one = scene().to_training()
    query = EventQuery("Job", "one-1-uid")
    assert diagnose(one, 4) == Diagnosis("PodsStarting", check_after=6.5)
    assert diagnose(one, 9.9).query is None
    assert diagnose(one, 10) == Diagnosis("PodsStarting", query=query)
    assert diagnose(one, 60, ("FailedCreate", "no"), about="another-uid").query == query
    assert diagnose(one, 60, ("BackoffLimit", "no"), about="one-1-uid") == Diagnosis("PodsStarting", check_after=10.0)
    refused = diagnose(one, 60, ("FailedCreate", "exceeded quota"), about="one-1-uid")
    assert (refused.reason, refused.check_after, "exceeded quota" in refused.detail) == (
        "PodCreationRefused",
        10.0,
        True,
    )
    one.end(one.pod("one-1"), 1)
    assert diagnose(one, 24) == Diagnosis("PodsStarting", check_after=1.5)
    assert diagnose(one, 25).query == query


def test_a_pending_pod_has_fifteen_seconds_before_its_events_are_read(scene: Any) -> None:
    one = scene().to_training()
    one.pod("one-1")
    query = EventQuery("Pod", "one-1-1-uid")
    assert diagnose(one, 1 + 9) == Diagnosis("PodsStarting", check_after=6.5)
    assert diagnose(one, 1 + 14.9).query is None
    assert diagnose(one, 1 + 15) == Diagnosis("PodsStarting", query=query)
    assert diagnose(one, 60, ("FailedMount", "no"), about="another-uid").query == query
    assert diagnose(one, 60, ("BackOff", "no"), about="one-1-1-uid") == Diagnosis("PodsStarting", check_after=15.0)
    for kind in ("FailedMount", "FailedAttachVolume"):
        failed = diagnose(one, 60, ("BackOff", "no"), (kind, 'secret "s3" not found'), about="one-1-1-uid")
        assert (failed.reason, failed.check_after, "s3" in failed.detail) == ("MountFailed", 15.0, True)


def test_a_mount_that_was_repeated_and_succeeded_does_not_hide_that_the_image_is_pulled(scene: Any) -> None:
    """The event of the first try stays for an hour, and a large image is pulled for minutes."""
    one = scene().to_training()
    pod = one.pod("one-1")
    failed = ("FailedMount", "failed to sync configmap cache: timed out waiting for the condition")
    assert diagnose(one, 60, failed, about="one-1-1-uid").reason == "MountFailed"
    pod["status"]["conditions"] = [{"type": "PodReadyToStartContainers", "status": "True"}]
    assert diagnose(one, 60, failed, about="one-1-1-uid") == Diagnosis("PodsStarting")
    assert diagnose(one, 60) == Diagnosis("PodsStarting")


def test_a_refusal_of_an_earlier_pod_does_not_explain_why_the_next_one_is_awaited(scene: Any) -> None:
    """The quota is free again, and the Job controller waits longer after each failed pod."""
    one = scene().to_training()
    about, message = "one-1-uid", "exceeded quota: small"
    before, after = (WarningEvent("FailedCreate", message, one.now + timedelta(seconds=at)) for at in (0, 2))
    assert diagnose(one, 60, before, about=about).reason == "PodCreationRefused"
    one.end(one.pod("one-1"), 1)
    assert diagnose(one, 60, before, about=about) == Diagnosis("PodsStarting", check_after=10.0)
    assert diagnose(one, 60, after, before, about=about).reason == "PodCreationRefused"


def test_a_pod_that_no_scheduler_has_handled_for_thirty_seconds_names_the_scheduler(scene: Any) -> None:
    """As with a misspelt name, or a scheduler that does not run."""
    one = scene().to_training()
    pod = one.pod("one-1")
    pod["spec"]["schedulerName"] = "volcanic"
    about = "one-1-1-uid"
    assert diagnose(one, 1 + 29, about=about).reason == "PodsStarting"
    found = diagnose(one, 1 + 30, about=about)
    assert (found.reason, found.check_after) == ("Unschedulable", 15.0)
    assert found.detail == (
        "scheduler volcanic has not handled the pod: check scheduling.schedulerName, and that this scheduler runs"
    )
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
    assert diagnose(one, 60, about=about).reason == "PodsStarting"


@pytest.mark.parametrize(
    ("field", "missing"), [("resourceClaimName", "shared"), ("resourceClaimTemplateName", "one-gpu")]
)
def test_a_pod_that_the_scheduler_leaves_aside_for_its_claims_names_them(scene: Any, field: str, missing: str) -> None:
    """The scheduler writes no condition before the claims of a pod exist."""
    one = scene().to_training()
    pod = one.pod("one-1")
    made = {"name": "nic", "resourceClaimTemplateName": "one-nic"}
    pod["spec"] |= {"schedulerName": "default-scheduler", "resourceClaims": [{"name": "gpu", field: missing}, made]}
    pod["status"]["resourceClaimStatuses"] = [{"name": "nic", "resourceClaimName": "one-1-nic"}]
    found = diagnose(one, 1 + 30, about="one-1-1-uid")
    assert found.reason == "Unschedulable"
    assert found.detail == (
        f"scheduler default-scheduler has not handled the pod, which waits for its resource claims ({missing}): check "
        "that they exist in the job's namespace with kubectl get resourceclaims,resourceclaimtemplates, and "
        "scheduling.schedulerName"
    )


def test_a_missing_template_of_claims_is_named_as_the_controller_does(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    claim = {"name": "gpu", "resourceClaimTemplateName": "none"}
    pod["spec"] |= {"schedulerName": "default-scheduler", "resourceClaims": [claim]}
    message = (
        'PodResourceClaim gpu: resource claim template "none": resourceclaimtemplate.resource.k8s.io "none" not found'
    )
    found = diagnose(one, 20, ("FailedResourceClaimCreation", message), about="one-1-1-uid")
    assert found.reason == "Unschedulable"
    assert found.detail == f"{message}: create it in the job's namespace, or correct resources.claims"


def test_a_pod_behind_scheduling_gates_names_them(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1", conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}])
    pod["spec"]["schedulingGates"] = [{"name": "example.com/quota"}, {"name": "example.com/network"}]
    found = diagnose(one, 1)
    assert found.reason == "Unschedulable"
    assert found.detail == (
        "scheduling gates: example.com/quota, example.com/network: the controller that set them has to remove them"
    )


def test_a_deleted_pod_is_lost_once_its_end_is_thirty_seconds_late(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    assert not pod_diagnosis.is_lost(Pod.from_object(pod), one.now + timedelta(hours=1))
    one.delete_pod(pod, grace=0)
    running = Pod.from_object(pod)
    assert not pod_diagnosis.is_lost(running, one.now + timedelta(seconds=30))
    assert pod_diagnosis.is_lost(running, one.now + timedelta(seconds=31))
    assert diagnose(one, 31).reason == "NodeLost"
    one.end(pod, 75)
    assert not pod_diagnosis.is_lost(Pod.from_object(pod), one.now + timedelta(seconds=31))


def test_a_trainer_is_unreachable_after_forty_five_seconds(scene: Any) -> None:
    now = scene().now
    for seconds, expected in ((44, False), (45, True), (46, True)):
        reading = Reading("uid", now, None, now - timedelta(seconds=seconds), "TimeoutError")
        assert pod_diagnosis.is_unreachable(reading, now) is expected
    assert not pod_diagnosis.is_unreachable(Reading("uid", now, None), now)
