"""The merge of a full model in a Job without GPUs, once the training is stored."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.handoff import JobConfig, ProgressReport
from finetune_operator.controller import events
from finetune_operator.kube.observed import Reading, WarningEvent, Warnings

Build = Callable[..., Any]
GPUS = {"gpusPerNode": 8, "requests": {"cpu": 64, "memory": "512Gi", "rdma/hca": 1}, "limits": {"memory": "512Gi"}}
STORED = {
    "uri": "s3://bucket/out/checkpoints/trained",
    "step": 6,
    "savedTime": "2026-03-01T11:59:00Z",
    "sha256": "cd" * 32,
}
SPEC: dict[str, Any] = {"output": {"uri": "s3://bucket/out", "merge": "BF16"}, "resources": GPUS}


def trained(one: Any) -> str:
    return str(one.report("Trained", checkpoint=STORED, metrics={"trainLoss": 1.5}, lastStep=6))


def to_merge(one: Any) -> Any:
    """Train, and create the merge Job."""
    one.to_training()
    one.end(one.pod("one-1"), 0, trained(one))
    one.complete("one-1")
    one.settle()
    return one


def config_of(decision: Any) -> JobConfig:
    return JobConfig.model_validate_json(decision.create.config_map["data"]["config.json"])


def pod_spec(one: Any, job: str) -> Any:
    return one.children[job]["spec"]["template"]["spec"]


def test_the_gpus_are_given_back_before_the_merge_starts(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    assert list(one.children) == ["one-preflight", "one-1", "one-2-merge"]
    job, container = one.children["one-2-merge"], pod_spec(one, "one-2-merge")["containers"][0]
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "merge"
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "merge"
    assert (job["spec"]["completions"], job["spec"]["backoffLimit"]) == (1, 3)
    assert container["args"] == ["finish"]
    assert container["image"] == pod_spec(one, "one-1")["containers"][0]["image"]
    assert container["resources"] == {"requests": {"cpu": 64, "memory": "512Gi"}, "limits": {"memory": "512Gi"}}
    assert (one.status["phase"], one.condition("Running")["reason"]) == ("Merging", "Trained")
    assert one.status["trainedWeights"] == STORED
    assert one.status["checkpoint"] == STORED
    assert one.status["metrics"] == {"trainLoss": 1.5}
    assert (one.status["attempts"], one.status["runs"]) == (2, 1)
    assert one.status["history"][0]["result"] == "Succeeded"
    assert one.status["history"][0]["reason"] == "Trained"


def test_a_merge_pod_that_a_quota_refuses_names_its_own_resources(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    one.now += timedelta(seconds=11)
    words = 'Error creating: pods "x" is forbidden: failed quota: q: must specify limits.cpu for: trainer'
    one.warnings = Warnings("one-2-merge-uid", (WarningEvent("FailedCreate", words),))
    one.settle()
    assert "requires in resources.merge.requests and resources.merge.limits" in one.condition("Running")["message"]


def test_what_was_trained_is_written_before_the_merge_is_created(scene: Build) -> None:
    one = scene(**SPEC).to_training()
    one.end(one.pod("one-1"), 0, trained(one))
    one.complete("one-1")
    first = one.look()
    assert (first.create, first.requeue_after) == (None, 0)
    before, one.object["status"] = one.status, first.status.to_wire()
    assert "jobRef" not in one.status
    second = one.look()
    assert second.create
    assert second.create.name == "one-2-merge"
    assert config_of(second).separate_merge
    one.object["status"] = before  # a crash before the write decides the same again
    assert one.look() == first


def test_a_merge_takes_no_labels_of_gpu_nodes_and_no_devices(scene: Build) -> None:
    scheduling = {
        "nodeSelector": {"gpu": "h100"},
        "runtimeClassName": "nvidia",
        "priorityClassName": "research",
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "topology": {"mode": "Required", "level": "rack"},
    }
    trainer = {"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}
    one = scene(**SPEC, scheduling=scheduling, trainer=trainer)
    one.settings = one.settings.model_copy(update={"allowed_priority_classes": ("research",)})
    pod = pod_spec(to_merge(one), "one-2-merge")
    assert "nodeSelector" not in pod
    assert "runtimeClassName" not in pod
    assert (pod["priorityClassName"], pod["tolerations"]) == ("research", [{"key": "gpu", "operator": "Exists"}])
    assert "NCCL_DEBUG" not in [one["name"] for one in pod["containers"][0]["env"]]
    annotations = one.children["one-2-merge"]["spec"]["template"]["metadata"]["annotations"]
    assert [name for name in annotations if "topology" in name] == []


def test_a_merge_waits_in_the_jobs_queue(scene: Build) -> None:
    one = scene(**SPEC, scheduling={"queueName": "team"}).to_training()
    for name in ("one-preflight", "one-1"):
        one.suspend(name, is_suspended=False)
    one.end(one.pod("one-1"), 0, trained(one))
    one.complete("one-1")
    one.settle()
    merge = one.children["one-2-merge"]
    assert (merge["spec"]["suspend"], merge["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]) == (True, "team")
    assert one.status["phase"] == "Queued"


def test_a_merge_may_wait_in_a_queue_of_its_own(scene: Build) -> None:
    resources = {"gpusPerNode": 1, "merge": {"queueName": "cpus"}}
    one = scene(**SPEC | {"resources": resources}, scheduling={"queueName": "team"}).to_training()
    assert one.children["one-1"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    for name in ("one-preflight", "one-1"):
        one.suspend(name, is_suspended=False)
    one.end(one.pod("one-1"), 0, trained(one))
    one.complete("one-1")
    one.settle()
    assert one.children["one-2-merge"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "cpus"
    one.object["spec"]["resources"]["merge"]["queueName"] = "more-cpus"
    (child, queue) = one.look().move_to_queue or (None, None)
    assert (child and child.name, queue) == ("one-2-merge", "more-cpus")


def test_the_queue_of_a_merge_alone_is_named_with_its_own_field(scene: Build) -> None:
    resources = {"gpusPerNode": 1, "merge": {"queueName": "elsewhere"}}
    one = to_merge(scene(**SPEC | {"resources": resources}))
    one.children["one-2-merge"]["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    one.settle()
    message = one.condition("Accepted")["message"]
    assert "merge's queue elsewhere belongs to MultiKueue" in message
    assert "set resources.merge.queueName to a queue of this cluster" in message


def test_a_merge_has_its_own_resources_if_the_job_names_them(scene: Build) -> None:
    merge = {"requests": {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 1}, "limits": {"memory": "80Gi"}}
    one = to_merge(scene(**SPEC | {"resources": {"gpusPerNode": 1, "merge": merge}}))
    found = pod_spec(one, "one-2-merge")["containers"][0]["resources"]
    assert found == {"requests": {"cpu": 8, "memory": "64Gi"}, "limits": {"memory": "80Gi"}}


@pytest.mark.parametrize("resources", [{"gpusPerNode": 8}, {"gpusPerNode": 1, "merge": {}}])
def test_a_merge_whose_job_names_no_requests_gets_those_of_one_process(scene: Build, resources: Any) -> None:
    found = pod_spec(to_merge(scene(**SPEC | {"resources": resources})), "one-2-merge")["containers"][0]["resources"]
    assert found == {"requests": {"cpu": "1", "memory": "2Gi"}}


@pytest.mark.parametrize(
    ("changes", "separate"),
    [
        ({}, True),
        ({"resources": {"gpusPerNode": 1, "numNodes": 2}}, True),
        ({"resources": {"gpusPerNode": 1}}, False),
        ({"resources": {"gpusPerNode": 0, "numNodes": 4}}, False),
        ({"resources": {"gpusPerNode": 0, "merge": {}}}, True),
        ({"output": {"uri": "s3://bucket/out"}}, False),
        ({"output": {"uri": "s3://bucket/out"}, "tuning": {"method": "Full"}}, True),
    ],
)
def test_several_gpus_do_not_wait_for_a_merge(scene: Build, changes: Any, separate: bool) -> None:
    one = scene(**SPEC | changes)
    assert not config_of(one.look()).separate_merge
    one.to_training()
    for name in ("attempts", "jobRef"):
        del one.status[name]
    del one.children["one-1"]
    assert config_of(one.look()).separate_merge == separate


def test_a_published_merge_completes_the_job_and_holds_no_gpu_time(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    assert (one.status["activeSeconds"], one.status["gpuSeconds"]) == (5, 40)
    one.now += timedelta(seconds=30)
    one.end(one.pod("one-2-merge"), 0, one.published())
    one.settle()
    assert one.condition("Complete")["status"] == "False"
    one.complete("one-2-merge")
    one.settle()
    assert one.status["phase"] == "Succeeded"
    assert (one.status["activeSeconds"], one.status["gpuSeconds"]) == (10, 40)
    assert "trainedWeights" not in one.status


def test_the_phase_follows_the_merge_pod(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    pod = one.pod("one-2-merge")
    one.settle()
    assert one.condition("Running")["message"].startswith("The training is complete and holds no GPU")
    one.run(pod)
    for number, (stage, phase) in enumerate([("Loading", "Merging"), ("Merging", "Merging"), ("Publishing",) * 2]):
        report = {"jobUID": "job-uid", "heartbeat": number, "progress": {"stage": stage}}
        one.reading = Reading(pod["metadata"]["uid"], one.now, ProgressReport.model_validate(report))
        decision = one.settle()
        assert decision.follow is not None
        assert (one.status["phase"], one.condition("Running")["message"]) == (phase, "The merge pod is running.")


def test_failures_of_the_training_do_not_shorten_the_merge(scene: Build) -> None:
    one = scene(**SPEC, backoffLimit=1).to_training()
    one.end(one.pod("one-1"), 1, "a first failure")
    one.settle()
    one.end(one.pod("one-1"), 0, trained(one))
    one.complete("one-1")
    one.settle()
    assert one.status["internal"]["failuresBeforeMerge"] == one.status["failures"] == 1
    assert one.children["one-2-merge"]["spec"]["backoffLimit"] == 1
    one.end(one.pod("one-2-merge"), 70, "a failure of the merge")
    one.settle()
    assert (one.status["phase"], one.status["failures"]) == ("Merging", 2)
    one.end(one.pod("one-2-merge"), 70, "another one")
    one.fail("one-2-merge", reason="BackoffLimitExceeded", failed=2)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert one.status["trainedWeights"]["step"] == 6


def test_a_deleted_merge_is_repeated_and_the_training_is_not(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    pod = one.pod("one-2-merge")
    one.run(pod)
    one.settle()
    del one.children["one-2-merge"]
    one.end(pod, 75)
    one.settle()
    assert list(one.children) == ["one-preflight", "one-1", "one-3-merge"]
    assert (one.status["failures"], one.status["gpuSeconds"]) == (1, 40)
    assert one.status["history"][-1]["reason"] == "JobDeleted"


def test_a_merge_that_reports_a_training_is_not_a_result(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    one.end(one.pod("one-2-merge"), 0, trained(one))
    one.complete("one-2-merge")
    one.settle()
    assert "one-3-merge" in one.children
    assert (one.status["failures"], one.status["failuresByReason"]) == (1, {"ResultMissing": 1})


def test_a_training_without_what_it_stored_is_trained_again(scene: Build) -> None:
    one = scene(**SPEC).to_training()
    one.end(one.pod("one-1"), 0, one.report("Trained"))
    one.complete("one-1")
    one.settle()
    assert "one-2" in one.children
    assert one.status["failuresByReason"] == {"ResultMissing": 1}


def test_a_gate_that_is_not_met_in_the_merge_fails_the_job(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(one.pod("one-2-merge"), 78, one.report("GateNotMet", artifacts=artifacts))
    one.fail("one-2-merge")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "GateNotMet")
    assert one.condition("Published")["status"] == "True"


def test_a_suspended_merge_resumes(scene: Build) -> None:
    one = to_merge(scene(**SPEC))
    pod = one.pod("one-2-merge")
    one.run(pod)
    one.settle()
    one.object["spec"]["suspend"] = True
    one.settle()
    assert one.children["one-2-merge"]["spec"]["suspend"]
    one.delete_pod(pod)
    one.end(pod, 75)
    one.settle()
    assert (one.status["phase"], one.status["history"][-1]["result"]) == ("Suspended", "Suspended")
    one.object["spec"]["suspend"] = False
    one.settle()
    assert not one.children["one-2-merge"]["spec"]["suspend"]
    assert one.status["phase"] == "Merging"


def test_the_start_of_a_merge_is_an_event(scene: Build) -> None:
    one = scene(**SPEC).to_training()
    one.end(one.pod("one-1"), 0, trained(one))
    one.complete("one-1")
    one.object["status"] = one.look().status.to_wire()
    before = one.job.status
    to = one.settle()
    found = events.derive_events(before, to.status)
    assert [(event.reason, event.message) for event in found] == [
        ("MergeStarted", "Created Job one-2-merge, which holds no GPU, to merge and publish.")
    ]


def test_an_older_trainer_publishes_by_itself(scene: Build) -> None:
    one = scene(**SPEC).to_training()
    known = json.loads(one.look().status.model_dump_json(by_alias=True))
    assert known["trainedWeights"] is None
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Succeeded"
    assert list(one.children) == ["one-preflight", "one-1"]
