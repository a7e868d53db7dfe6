"""Root causes with their fixes, in the condition, in the history and as an event."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.handoff import ExitCode
from finetune_api.names import Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller.events import derive_events
from finetune_operator.kube.observed import WarningEvent, Warnings
from finetune_operator.policy import remediation
from finetune_operator.policy.pods.pod_diagnosis import EventQuery

UNSCHEDULABLE = [
    (
        'waiting for ephemeral volume controller to create the persistentvolumeclaim "one-1-0-abc-workspace"',
        "volumes of ended pods count for the namespace's quota too",
    ),
    ("0/4 nodes are available: 4 Insufficient nvidia.com/gpu. preemption: 0/4 nodes", "free nvidia.com/gpu"),
    ("0/4 nodes are available: 4 Insufficient nvidia.com/mig-3g.40gb.", "check resources.gpuResourceName"),
    ("0/4 nodes are available: 4 Insufficient memory.", "less memory in resources.requests"),
    ("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.", "scheduling.nodeSelector"),
    ("0/2 nodes are available: 2 node(s) had untolerated taint {gpu: true}.", "scheduling.tolerations"),
    ("0/2 nodes are available: 2 node(s) had volume node affinity conflict.", "reach the volume"),
    ("no nodes available to schedule pods", "add a node"),
    ("pod group is not ready, 2 Pending, 2 minAvailable; Pending: 2 Unschedulable", "all pods of the job fit at once"),
    ("something new", "kubectl describe nodes"),
]
IMAGES = [
    (
        "ErrImagePull",
        "rpc error: code = NotFound desc = failed to pull: not found",
        "name and the tag of trainer.image",
    ),
    ("ErrImagePull", "pull access denied, repository does not exist", "imagePullSecrets"),
    ("ImagePullBackOff", "401 Unauthorized", "imagePullSecrets"),
    ("ErrImagePull", "toomanyrequests: rate limit", "limits pulls"),
    ("ErrImagePull", "dial tcp: lookup registry.example: no such host", "make the registry reachable"),
    ("ErrImagePull", "x509: certificate signed by unknown authority", "CA"),
    ("InvalidImageName", "couldn't parse image name", "spelling"),
    ("ErrImageNeverPull", "image is not present with pull policy of Never", "imagePullPolicy"),
    ("ErrImagePull", "write: no space left on device", "disk"),
    ("ErrImagePull", "no match for platform in manifest", "architecture"),
    ("ErrImagePull", "something new", "check trainer.image"),
]
REFUSALS = [
    ('pods "x" is forbidden: exceeded quota: q, requested: limits.memory=9Gi', "have the quota raised"),
    ('pods "x" is forbidden: failed quota: q: must specify limits.cpu for: trainer', "resources.limits"),
    ('pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 9Gi', "LimitRange"),
    ('Pod "x" is invalid: spec: Invalid value: "2Gi": must be less than or equal to memory limit of 1Gi', "or to {}"),
    ('pods "x" is forbidden: violates PodSecurity "restricted:latest": x', "Pod Security level restricted"),
    ('pods "x" is forbidden: error looking up service account team/train', "trainer.serviceAccountName"),
    ('pods "x" is forbidden: no PriorityClass with name high was found', "scheduling.priorityClassName"),
    ('pods "x" is forbidden: pod rejected: RuntimeClass "kata" not found', "scheduling.runtimeClassName"),
    ('pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=9, limited: pods=9', "others have ended"),
    ('admission webhook "policy.example" denied the request', "ask its owner for an exception"),
    ("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", "ask its owner for an exception"),
    (
        'admission webhook "validate.kyverno.svc-fail" denied the request: The label `team` is required.',
        "trainer.defaults.podLabels",
    ),
    (
        'admission webhook "validation.gatekeeper.sh" denied the request: [owner] missing annotation(s): {"owner"}',
        "trainer.defaults.podAnnotations",
    ),
    ("something new", "it is tried again"),
]
MOUNTS = [
    ('MountVolume.SetUp failed for volume "credentials" : secret "s3" not found', "create this Secret"),
    ('MountVolume.SetUp failed for volume "config" : configmap "x" not found', "the operator recreates it"),
    (
        'MountVolume.SetUp failed for volume "chat-template" : configmap "x" not found',
        "create this ConfigMap in the job's namespace",
    ),
    ("references non-existent secret key: HF_TOKEN", "add this key"),
    ("Multi-Attach error for volume", "holds the volume"),
    ("something new", "fix the volume"),
]
STARTS = [
    ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root", "non-root"),
    (
        "RunContainerError",
        "nvidia-container-cli: unsatisfied condition: cuda>=13.0",
        "driver to 580",
    ),
    ("RunContainerError", 'exec: "train": executable file not found in $PATH', "use a trainer image"),
    ("CreateContainerError", "something new", "kubectl logs"),
]


def shown(one: Any, reason: str, fix: str) -> str:
    """The condition, the summary and the event all say it."""
    before = one.job.status
    one.settle()
    running = one.condition("Running")
    assert (running["status"], running["reason"]) == ("False", reason)
    assert fix in running["message"]
    assert one.status["message"] == running["message"]
    (event,) = [event for event in derive_events(before, one.job.status) if event.reason == reason]
    assert event.is_warning
    assert event.message == running["message"]
    return str(running["message"])


@pytest.mark.parametrize(("words", "fix"), UNSCHEDULABLE)
def test_why_no_node_can_run_the_pod(scene: Any, words: str, fix: str) -> None:
    one = scene().to_training()
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    one.pod("one-1", conditions=[condition])
    message = shown(one, "Unschedulable", fix)
    assert "preemption:" not in message


UNCREATED = 'waiting for ephemeral volume controller to create the persistentvolumeclaim "one-1-0-abc-workspace"'
CLAIMS = [
    ('persistentvolumeclaims "x" is forbidden: exceeded quota: disks, requested: persistentvolumeclaims=1', "quota"),
    ('admission webhook "policy.example" denied the request: no class fast', "ask its owner for an exception"),
]


@pytest.mark.parametrize(("words", "fix"), CLAIMS)
def test_why_the_claim_of_a_workspace_is_not_created(scene: Any, words: str, fix: str) -> None:
    """Only an event of the pod names it: the scheduler reports that the claim does not exist yet."""
    one = scene().to_training()
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": UNCREATED}
    pod = one.pod("one-1", conditions=[condition])
    assert one.look().fetch_events_for == EventQuery("Pod", pod["metadata"]["uid"])
    words = f"ephemeral volume workspace: create PVC one-1-0-abc-workspace: {words}"
    one.warnings = Warnings(pod["metadata"]["uid"], (WarningEvent("FailedBinding", words),))
    assert words in shown(one, "Unschedulable", fix)


@pytest.mark.parametrize(("reason", "words", "fix"), IMAGES)
def test_why_the_image_cannot_be_pulled(scene: Any, reason: str, words: str, fix: str) -> None:
    one = scene().to_training()
    state = {"waiting": {"reason": reason, "message": words}}
    one.pod("one-1", containerStatuses=[{"name": "trainer", "state": state}])
    shown(one, "ImagePullFailed", fix)


@pytest.mark.parametrize(("words", "fix"), REFUSALS)
def test_why_the_pod_is_not_created(scene: Any, words: str, fix: str) -> None:
    one = scene().to_training()
    one.now += timedelta(seconds=11)
    one.warnings = Warnings("one-1-uid", (WarningEvent("FailedCreate", f"Error creating: {words}"),))
    shown(one, "PodCreationRefused", fix)


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (REFUSALS[0][0], "request less in preflight.resources, or"),
        (REFUSALS[1][0], "quota requires in preflight.resources.requests and preflight.resources.limits"),
        (REFUSALS[2][0], "keep preflight.resources within the LimitRange"),
        (REFUSALS[3][0], "set preflight.resources.requests, or to {}"),
    ],
)
def test_why_a_preflight_pod_is_not_created_names_its_own_field(scene: Any, words: str, fix: str) -> None:
    one = scene()
    one.settle()
    one.now += timedelta(seconds=11)
    one.warnings = Warnings("one-preflight-uid", (WarningEvent("FailedCreate", f"Error creating: {words}"),))
    shown(one, "PodCreationRefused", fix)


@pytest.mark.parametrize(("words", "fix"), MOUNTS)
def test_why_a_volume_is_not_mounted(scene: Any, words: str, fix: str) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.now += timedelta(seconds=60)
    one.warnings = Warnings(pod["metadata"]["uid"], (WarningEvent("FailedMount", words),))
    shown(one, "MountFailed", fix)


@pytest.mark.parametrize(("reason", "words", "fix"), STARTS)
def test_why_the_container_does_not_start(scene: Any, reason: str, words: str, fix: str) -> None:
    one = scene().to_training()
    state = {"waiting": {"reason": reason, "message": words}}
    one.pod("one-1", containerStatuses=[{"name": "trainer", "state": state}])
    shown(one, "ContainerError", fix)


@pytest.mark.parametrize(
    ("end", "result", "reason", "fix"),
    [
        ({"code": 137, "reason": "OOMKilled"}, "Failed", "OutOfMemory", "resources.limits.memory"),
        ({"code": 79}, "Failed", "GPUOutOfMemory", "perDeviceTrainBatchSize"),
        ({"code": 80, "message": "ECC"}, "Failed", "GPUFault", "ECC: drain the node"),
        ({"code": 77}, "Failed", "StorageDenied", "storage.credentialsSecretRef"),
        ({"code": 69}, "Failed", "StorageUnavailable", "make the storage endpoint reachable"),
        ({"code": 76}, "Failed", "Diverged", "learningRate"),
        ({"code": 70, "message": "Traceback\nValueError: x"}, "Failed", "InternalError", "ValueError: x: see kubectl"),
        ({"code": 127}, "Failed", "ContainerError", "use a trainer image"),
        ({"code": 139}, "Failed", "ContainerError", "GPU driver"),
        ({"code": 137}, "Failed", "ContainerError", "gracePeriodSeconds"),
        (
            {"code": 137, "message": '{"display":"76%","step":92}\n{"display":"77%","step":93}'},
            *("Failed", "ContainerError", "the container ended with exit code 137: killed by SIGKILL"),
        ),
        (
            {"code": 137, "evicted": 'Usage of EmptyDir volume "workspace" exceeds the limit "50Gi".'},
            *("Failed", "WorkspaceFull", "resources.workspace.sizeLimit"),
        ),
        (
            {"code": 137, "evicted": "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi."},
            *("Failed", "WorkspaceFull", "resources.workspace.sizeLimit"),
        ),
        ({"code": 137, "evicted": "The node was low on resource: memory."}, "Failed", "Evicted", "resources.requests"),
        (
            {"code": 143, "disruption": "PreemptionByScheduler"},
            *("Preempted", "PreemptionByScheduler", "a pod with higher priority"),
        ),
        ({"code": 143, "disruption": "DeletionByTaintManager"}, "Preempted", "DeletionByTaintManager", "its node"),
    ],
)
def test_the_end_of_a_run_names_what_to_change(scene: Any, end: Any, result: str, reason: str, fix: str) -> None:
    one = scene().to_training()
    before = one.job.status
    one.end(one.pod("one-1"), **end)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"]) == (result, reason)
    assert fix in run["message"]
    events = [event.message for event in derive_events(before, one.job.status) if "Run 1" in event.message]
    assert [fix in message for message in events] == [True]


def test_a_pod_that_the_kubelet_rejected_is_reported(scene: Any) -> None:
    one = scene().to_training()
    one.reject(one.pod("one-1"), "UnexpectedAdmissionError", "Allocate failed: no healthy devices")
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"]) == ("Preempted", "PodRejected")
    assert run["message"].startswith("UnexpectedAdmissionError: Allocate failed: no healthy devices: check the node's")


def test_the_trainers_own_message_is_unchanged(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 77, one.report("Failed", message="bucket b: 403: grant s3:PutObject"))
    one.settle()
    assert one.status["history"][0]["message"] == "bucket b: 403: grant s3:PutObject"


def test_every_code_of_the_exit_table_has_a_fix() -> None:
    codes = set(ExitCode) - {ExitCode.OK, ExitCode.PREEMPTED}
    assert {code.reason for code in codes} - set(remediation.FIXES_BY_REASON) == set()
    assert set(remediation.FIXES_BY_MESSAGE) <= set(remediation.FIXES_BY_REASON)
    assert set(remediation.FIXES_BY_REASON) <= set(Reason)


@pytest.mark.parametrize("reason", sorted(remediation.FIXES_BY_REASON))
def test_a_fix_is_appended_once(reason: str) -> None:
    once = remediation.append_fix(reason, "words.")
    assert remediation.append_fix(reason, once) == once


def test_a_problem_is_one_event_as_long_as_it_lasts(scene: Any) -> None:
    one = scene().to_training()
    words = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    one.pod("one-1", conditions=[condition])
    one.settle()
    first = one.job.status
    condition["message"] = words.replace("4 ", "3 ")
    one.settle()
    assert derive_events(first, one.job.status) == []
    assert [event.reason for event in derive_events(FineTuneJobStatus(), first)].count("Unschedulable") == 1
