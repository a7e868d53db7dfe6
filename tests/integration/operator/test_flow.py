"""One job from creation to its end, on a real API server; the test plays the kubelet."""

from typing import Any

import pytest


def test_a_job_goes_through_preflight_and_training_to_complete(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    preflight = world.pod_of("one-preflight")
    assert world.wait_phase("Preflight")["reason"] == "PreflightRunning"
    world.run(preflight)
    world.end(preflight, 0, world.validated())
    trainer = world.pod_of("one-1")
    validated = world.wait_condition("Validated", "DatasetValid")
    assert validated["status"] == "True"
    assert validated["message"] == "90 of 100 rows can be trained on; 10 rejected (BAD_JSON 10)."
    world.run(trainer)
    status = world.wait_phase("Training")
    assert status["jobRef"]["name"] == "one-1"
    world.end(trainer, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert status["artifacts"]["manifestSHA256"] == "ab" * 32
    assert status["metrics"] == {"trainLoss": 0.9, "evalLoss": 1.2, "baselineEvalLoss": 2.5}
    assert status["progress"]["display"] == "100%"
    assert (status["attempts"], status["runs"]) == (1, 1)
    assert status.get("failures", 0) == 0
    job = world.batch.read_namespaced_job("one-1", world.namespace)
    assert status["completionTime"] == job.status.completion_time.strftime("%Y-%m-%dT%H:%M:%SZ")
    truths = {one["type"]: one["status"] for one in status["conditions"]}
    assert truths == {
        "Accepted": "True",
        "Suspended": "False",
        "Queued": "False",
        "Validated": "True",
        "Running": "False",
        "GracePeriodSufficient": "Unknown",
        "EarlyStopped": "False",
        "Published": "True",
        "Complete": "True",
        "Failed": "False",
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }
    happened = ["Completed", "PreflightStarted", "RowsRejected", "TrainingStarted"]
    wait(lambda: sorted(world.events()) == happened, lambda: str(sorted(world.events())))


def test_training_runs_the_image_of_preflight_by_its_digest(world: Any, operator: Any) -> None:
    world.create()
    trainer = world.pass_preflight()
    digest = "registry.example/finetune-trainer@sha256:" + "1" * 64
    assert trainer.spec.containers[0].image == digest
    world.wait_condition("Validated", "DatasetValid")
    assert world.status()["lineage"]["trainerImage"] == digest


def test_preflight_can_have_an_image_of_its_own_and_the_trainers_is_pinned_from_its_pod(
    world: Any, operator: Any, wait: Any
) -> None:
    slim, digest = "registry.example/finetune-preflight:1", "registry.example/finetune-trainer@sha256:" + "1" * 64
    operator.kill()
    operator.env["FINETUNE_PREFLIGHT_IMAGE"] = slim
    operator.start()
    world.create()
    assert world.pod_of("one-preflight").spec.containers[0].image == slim
    trainer = world.pass_preflight()
    assert trainer.spec.containers[0].image == "registry.example/finetune-trainer:1"
    world.wait_condition("Validated", "DatasetValid")
    assert "trainerImage" not in world.status()["lineage"]
    world.run(trainer)
    wait(lambda: world.status()["lineage"].get("trainerImage") == digest, lambda: str(world.status()["lineage"]))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (64, "InvalidConfig"),
        (65, "DatasetUnusable"),
        (66, "ModelUnavailable"),
        (73, "OutputConflict"),
        (77, "StorageDenied"),
    ],
)
def test_a_terminal_exit_of_preflight_fails_the_job_with_the_reports_message(
    world: Any, operator: Any, code: int, reason: str
) -> None:
    world.create()
    pod = world.pod_of("one-preflight")
    world.run(pod)
    world.end(pod, code, world.report("Failed", message="the bucket says no"))
    status = world.wait_phase("Failed")
    assert (status["reason"], status["message"]) == (reason, "the bucket says no")
    assert world.condition("Stalled")["status"] == "True"
    assert world.condition("Validated")["reason"] == reason
    assert world.jobs() == ["one-preflight"]


@pytest.mark.parametrize(
    ("code", "reason"), [(64, "InvalidConfig"), (76, "Diverged"), (79, "GPUOutOfMemory"), (77, "StorageDenied")]
)
def test_a_terminal_exit_of_training_is_not_retried(world: Any, operator: Any, code: int, reason: str) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.end(trainer, code, world.report("Failed", message="why", lastStep=7))
    status = world.wait_phase("Failed")
    assert (status["reason"], status["message"]) == (reason, "why")
    run = status["history"][0]
    assert (run["exitCode"], run["reason"], run["lastStep"], run["result"]) == (code, reason, 7, "Failed")
    assert world.jobs() == ["one-1", "one-preflight"]


def test_a_result_published_before_is_adopted_and_not_trained_again(world: Any, operator: Any) -> None:
    world.create()
    pod = world.pod_of("one-preflight")
    artifacts = {"uri": "s3://bucket/jobs/one", "manifestSHA256": "ef" * 32}
    world.end(pod, 0, world.report("Adopted", artifacts=artifacts, metrics={"evalLoss": 1.0}))
    status = world.wait_phase("Succeeded")
    assert world.condition("Complete")["reason"] == "Adopted"
    assert world.condition("Published")["status"] == "True"
    assert status["artifacts"]["manifestSHA256"] == "ef" * 32
    assert status["metrics"]["evalLoss"] == 1.0
    assert world.jobs() == ["one-preflight"]


def test_a_completed_job_without_a_report_is_not_a_result_and_is_tried_again(world: Any, operator: Any) -> None:
    world.create()
    world.end(world.pass_preflight(), 0, "")
    second = world.pod_of("one-2")
    status = world.status()
    assert (status["failures"], status["history"][0]["reason"]) == (1, "ResultMissing")
    assert world.batch.read_namespaced_job("one-2", world.namespace).spec.backoff_limit == 2
    world.end(second, 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"], status["failures"]) == (2, 2, 1)


def test_results_missing_too_often_fail_the_job(world: Any, operator: Any) -> None:
    world.create(backoffLimit=0)
    world.end(world.pass_preflight(), 0, "")
    status = world.wait_phase("Failed")
    assert status["reason"] == "BackoffLimitExceeded"
    assert "ResultMissing" in status["message"]


def test_a_forged_report_is_not_a_result(world: Any, operator: Any, wait: Any) -> None:
    world.create(backoffLimit=0)
    trainer = world.pass_preflight()
    owner = trainer.metadata.owner_references[0]
    foreign = {
        "metadata": {
            "name": "forger",
            "labels": {key: value for key, value in trainer.metadata.labels.items() if "batch" not in key},
            "annotations": trainer.metadata.annotations,
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": owner.name, "uid": owner.uid, "controller": False}
            ],
        },
        "spec": {"containers": [{"name": "trainer", "image": "x"}], "restartPolicy": "Never"},
    }
    forger = world.core.create_namespaced_pod(world.namespace, foreign)
    world.end(forger, 0, world.published())
    other = world.report("Published", artifacts={"manifestSHA256": "ab" * 32}).replace(
        world.get()["metadata"]["uid"], "00000000-0000-0000-0000-000000000000"
    )
    world.end(trainer, 0, other)
    assert world.wait_phase("Failed")["reason"] == "BackoffLimitExceeded"
    assert world.condition("Published")["status"] == "False"


def test_a_preempted_run_is_not_a_failure_and_is_replaced_within_its_job(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    first = world.pass_preflight()
    world.run(first)
    world.wait_phase("Training")
    world.end(first, 75, world.report("Preempted", message="saved nothing yet", lastStep=3))
    wait(lambda: world.status().get("preemptions") == 1, "a counted preemption")
    second = world.pod_of("one-1")
    assert second.metadata.uid != first.metadata.uid
    world.run(second)
    world.end(second, 143, disruption="EvictionByEvictionAPI")
    wait(lambda: world.status().get("preemptions") == 2, "a counted eviction")
    world.end(world.pod_of("one-1"), 0, world.published())
    status = world.wait_phase("Succeeded")
    assert (status["attempts"], status["runs"], status["preemptions"]) == (1, 3, 2)
    assert status.get("failures", 0) == 0
    assert [run["result"] for run in status["history"]] == ["Preempted", "Preempted", "Succeeded"]
    assert status["history"][1]["reason"] == "EvictionByEvictionAPI"


def test_the_end_of_an_evicted_pod_that_is_gone_is_observed(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    first = world.pass_preflight()
    world.run(first)
    world.wait_phase("Training")
    world.end(first, 75, world.report("Preempted"), disruption="EvictionByEvictionAPI")
    world.core.delete_namespaced_pod(first.metadata.name, world.namespace, grace_period_seconds=0)
    wait(lambda: world.status().get("preemptions") == 1, "a counted preemption")
    assert world.status()["history"][0]["exitCode"] == 75


def test_more_preemptions_than_allowed_end_the_job_and_its_pods(world: Any, operator: Any, wait: Any) -> None:
    world.create(maxPreemptions=1)
    world.end(world.pass_preflight(), 75, world.report("Preempted"))
    wait(lambda: world.status().get("preemptions") == 1, "the first preemption")
    world.end(world.pod_of("one-1"), 75, world.report("Preempted"))
    assert world.wait_phase("Failed")["reason"] == "TooManyPreemptions"
    wait(lambda: "one-1" not in world.jobs(), "the Job is removed")


def test_an_out_of_memory_run_is_counted_and_retried_with_a_hint(world: Any, operator: Any, wait: Any) -> None:
    world.create(backoffLimit=1)
    world.end(world.pass_preflight(), 137, reason="OOMKilled")
    wait(lambda: world.status().get("failures") == 1, "a counted failure")
    run = world.status()["history"][0]
    assert run["reason"] == "OutOfMemory"
    assert "memory" in run["message"]
    world.end(world.pod_of("one-1"), 70, "Traceback\nValueError: boom")
    status = world.wait_phase("Failed")
    assert status["reason"] == "BackoffLimitExceeded"
    assert "InternalError: ValueError: boom" in status["message"]
    assert (status["failures"], status["runs"]) == (2, 2)
    assert {run["podName"] for run in status["history"]} <= set(world.pods()), "the logs of both runs are kept"


def test_a_deleted_trainer_job_is_replaced_by_a_counted_attempt(world: Any, operator: Any) -> None:
    world.create()
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    world.batch.delete_namespaced_job("one-1", world.namespace, propagation_policy="Background")
    again = world.pod_of("one-preflight")
    world.run(again)
    assert world.status()["failures"] == 1
    world.end(again, 0, world.validated())
    second = world.pod_of("one-2")
    world.end(second, 0, world.published())
    assert world.wait_phase("Succeeded")["attempts"] == 2


def test_the_result_of_a_job_that_a_ttl_removed_while_the_operator_was_down_is_adopted(
    world: Any, operator: Any, wait: Any
) -> None:
    world.create(backoffLimit=0)
    trainer = world.pass_preflight()
    world.run(trainer)
    world.wait_phase("Training")
    operator.kill()
    world.end(trainer, 0, world.published())
    wait(lambda: world.batch.read_namespaced_job("one-1", world.namespace).status.completion_time, "a complete Job")
    world.batch.delete_namespaced_job("one-1", world.namespace, propagation_policy="Background")
    wait(lambda: "one-1" not in world.jobs(), "the Job is removed")
    operator.start()
    again = world.pod_of("one-preflight")
    world.run(again)
    artifacts = {"uri": "s3://bucket/jobs/one", "manifestSHA256": "ab" * 32}
    world.end(again, 0, world.report("Adopted", artifacts=artifacts))
    assert world.wait_phase("Succeeded")["reason"] == "Succeeded"
    assert world.jobs() == ["one-preflight"]


def test_a_job_removed_after_success_stays_complete(world: Any, operator: Any, wait: Any) -> None:
    world.create()
    world.end(world.pass_preflight(), 0, world.published())
    world.wait_phase("Succeeded")
    before = world.get()["metadata"]["resourceVersion"]
    world.batch.delete_namespaced_job("one-1", world.namespace, propagation_policy="Background")
    wait(lambda: "one-1" not in world.jobs(), "the Job is removed")
    operator.kill()
    operator.start()
    wait(lambda: operator.get("/metrics") and 'name="one"' in operator.text, "the job is known after the restart")
    assert world.get()["metadata"]["resourceVersion"] == before
    assert world.jobs() == ["one-preflight"]
