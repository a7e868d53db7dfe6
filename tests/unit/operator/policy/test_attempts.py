"""The trainer Jobs: one attempt after another, the ends of their runs, and the result."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport
from finetune_operator.controller import events
from finetune_operator.kube.errors import Denied, Refused
from finetune_operator.kube.observed import Reading

Build = Callable[..., Any]
ARTIFACTS = {"uri": "s3://bucket/out", "adapterURI": "s3://bucket/out/adapter", "manifestSHA256": "ab" * 32}


def test_success_waits_for_the_jobs_own_end(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 0, one.published())
    one.settle()
    assert one.condition("Complete")["status"] == "False"
    assert (one.status["phase"], one.condition("Running")["reason"]) == ("Publishing", "Finished")
    one.complete("one-1")
    one.settle()
    assert one.condition("Complete")["status"] == "True"
    assert one.status["completionTime"] == "2026-03-01T12:01:00Z"
    assert one.status["dataset"] == {"rows": 5, "acceptedRows": 5}


def test_counters_are_written_before_the_next_attempt_is_created(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 0)
    one.complete("one-1")
    first = one.look()
    assert (first.create, first.status.failures, first.requeue_after) == (None, 1, 0)
    one.object["status"] = first.status.to_wire()
    second = one.look()
    assert second.create is not None
    assert (second.create.name, second.status.failures) == ("one-2", 1)


def test_a_run_that_is_counted_after_its_attempt_is_written_before_the_next_one_is_created(
    scene: Any,
) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 0, "no report")
    one.complete("one-1")
    one.object["status"] = one.look().status.to_wire()
    one.end(one.pod("one-1"), 1)
    first = one.look()
    assert (first.create, first.requeue_after, first.status.runs) == (None, 0, 2)
    one.object["status"] = first.status.to_wire()
    assert one.look().create is not None


def test_an_attempt_created_before_a_crash_is_taken_over(scene: Any) -> None:
    one = scene().to_training()
    stored = one.status
    one.object["status"] = {name: value for name, value in stored.items() if name not in {"attempts", "jobRef"}}
    decision = one.settle()
    assert decision.create is None
    assert list(one.children) == ["one-preflight", "one-1"]
    assert (one.status["attempts"], one.status["jobRef"]["name"]) == (1, "one-1")


def test_a_deleted_attempt_counts_once_and_waits_for_its_pod(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    del one.children["one-1"]
    one.settle()
    assert "one-2" not in one.children
    assert one.status.get("failures", 0) == 0
    one.end(pod, 75)
    one.settle()
    assert list(one.children) == ["one-preflight", "one-2"]
    assert (one.status["failures"], one.status.get("preemptions", 0)) == (1, 0)
    assert one.status["history"][0]["reason"] == "JobDeleted"


def test_a_failed_job_without_pods_still_gives_the_exit_tables_reason(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    one.settle()
    one.pods.clear()
    one.fail("one-1", message="Container trainer for pod team/x failed with exit code 76 matching FailJob rule")
    one.settle()
    one.now += timedelta(seconds=5)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "Diverged")
    assert "currentRun" not in one.status


def test_a_job_that_a_deadline_of_another_client_ended_names_that_deadline(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 75, one.report("Preempted"))
    one.fail("one-1", "DeadlineExceeded", "Job was active longer than specified deadline", failed=0)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "DeadlineExceeded")
    assert one.status["message"].startswith(
        "The trainer ran for longer than the activeDeadlineSeconds of Job one-1, which another client has set: raise it"
    )


def test_an_image_that_the_spec_names_from_the_start_is_pinned_too(scene: Any) -> None:
    one = scene(trainer={"image": "registry.example/trainer:2"}).to_training()
    images = [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in one.children.values()]
    assert images == ["registry.example/trainer:2", "registry.example/trainer@sha256:" + "1" * 64]


def test_an_image_whose_registry_a_policy_of_the_cluster_replaces_is_pinned_under_its_own_name(scene: Any) -> None:
    one = scene(trainer={"image": "registry.example/trainer:2"})
    one.settle()
    one.children["one-preflight"]["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror.example/trainer:2"
    pod = one.pod("one-preflight")
    one.end(pod, 0, one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
    pod["status"]["containerStatuses"][0]["imageID"] = "mirror.example/trainer@sha256:" + "1" * 64
    one.complete("one-preflight")
    one.settle()
    image = one.children["one-1"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example/trainer@sha256:" + "1" * 64


def test_a_users_new_image_is_used_by_the_next_attempt_and_an_upgrade_is_not(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 0)
    one.complete("one-1")
    one.settings = one.settings.model_copy(update={"trainer_image": "registry.example/trainer:2"})
    one.settle()
    image = one.children["one-2"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example/trainer@sha256:" + "1" * 64
    one.object["spec"]["trainer"] = {"image": "registry.example/trainer:3"}
    one.end(one.pod("one-2"), 0)
    one.complete("one-2")
    one.settle()
    image = one.children["one-3"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example/trainer:3"


def test_a_running_pod_is_followed_and_its_figures_shown(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    progress = {"percent": 50, "display": "50%", "stage": "Merging"}
    report = {"jobUID": "job-uid", "heartbeat": 1, "progress": progress, "metrics": {"trainLoss": 1.5}}
    one.reading = Reading(pod["metadata"]["uid"], one.now, ProgressReport.model_validate(report))
    decision = one.settle()
    assert decision.follow is not None
    assert decision.follow.ip == "10.0.0.7"
    assert one.condition("Running")["message"].startswith("The trainer pod is running")
    assert one.status["phase"] == "Publishing"
    assert one.status["metrics"] == {"trainLoss": 1.5}
    assert one.status["progress"]["lastUpdatedTime"] == "2026-03-01T12:00:00Z"


def test_a_pod_without_an_address_is_not_followed(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"), ip="")
    assert one.settle().follow is None
    assert one.condition("Running")["reason"] == "PodsRunning"


def test_figures_of_another_pod_are_not_shown(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    report = {"jobUID": "job-uid", "heartbeat": 1, "progress": {"step": 7}, "metrics": {"trainLoss": 1.5}}
    one.reading = Reading("another-uid", one.now, ProgressReport.model_validate(report))
    one.settle()
    assert (one.status.get("metrics"), one.status.get("progress")) == (None, None)


def test_a_job_is_looked_at_again_when_a_pod_that_is_stopped_may_be_lost(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    assert one.settle().requeue_after is None
    one.delete_pod(pod)
    assert one.settle().requeue_after == 30.0


def test_a_silent_trainer_is_a_message_and_still_runs(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    silent = one.now - timedelta(seconds=60)
    one.reading = Reading(pod["metadata"]["uid"], silent, None, silent, "TimeoutError")
    one.settle()
    found = one.condition("Running")
    assert (found["status"], found["reason"]) == ("True", "Unreachable")
    assert one.status["phase"] == "Training"


def preempt(one: Any, times: int) -> None:
    """End that many runs with a preemption, and write each."""
    for _ in range(times):
        one.end(one.pod("one-1"), 75, one.report("Preempted"))
        one.object["status"] = one.look().status.to_wire()


def test_the_last_preemption_is_written_before_the_job_is_removed(scene: Any) -> None:
    one = scene(maxPreemptions=1).to_training()
    preempt(one, 1)
    one.end(one.pod("one-1"), 75)
    first = one.look()
    assert (first.delete, first.status.preemptions, first.requeue_after) == (None, 2, 0)
    assert not first.status.is_true("Failed")
    one.object["status"] = first.status.to_wire()
    second = one.look()
    assert second.delete is not None
    assert second.delete.name == "one-1"
    assert second.status.reason == "TooManyPreemptions"


def test_no_preemption_is_survived_with_a_limit_of_zero(scene: Any) -> None:
    one = scene(maxPreemptions=0).to_training()
    assert one.status["phase"] == "Starting"
    preempt(one, 1)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")


@pytest.mark.parametrize(
    ("exit_code", "limit", "reason"),
    [(75, "maxPreemptions", "TooManyPreemptions"), (1, "backoffLimit", "BackoffLimitExceeded")],
)
def test_a_run_that_a_lowered_limit_stops_is_recorded_with_its_time(
    scene: Any, exit_code: int, limit: str, reason: str
) -> None:
    one = scene(**{limit: 3}).to_training()
    one.end(one.pod("one-1"), exit_code, "the first one")
    one.settle()
    one.run(one.pod("one-1"))
    one.settle()
    before = one.status
    one.object["spec"][limit] = 0
    one.now += timedelta(hours=1)
    one.settle()
    assert (one.status["reason"], one.children.get("one-1")) == (reason, None)
    assert "the first one" in one.status["message"]
    assert "currentRun" not in one.status
    stopped = one.status["history"][-1]
    assert (one.status["runs"], stopped["result"], stopped["reason"]) == (2, "Failed", reason)
    assert one.status["gpuSeconds"] - before["gpuSeconds"] == 3600
    assert (one.status.get("failures"), one.status.get("preemptions")) == (
        before.get("failures"),
        before.get("preemptions"),
    )


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_its_runs_have_used_up_keeps_its_pods_and_their_logs(scene: Any, nodes: int) -> None:
    """The end of a pod is observed about a second before the Job counts it."""
    one = scene(backoffLimit=0, resources={"gpusPerNode": 1, "numNodes": nodes}).to_training()
    pods = one.set_of("one-1", nodes)
    one.settle()
    for pod in pods:
        one.end(pod, 70, "boom")
    one.settle()
    assert one.condition("Failed")["status"] == "False"
    assert "one-1" in one.children
    one.fail("one-1", "BackoffLimitExceeded", failed=nodes)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "one-1" in one.children


def test_a_pod_that_its_job_creates_beyond_the_backoff_limit_is_removed(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    one.end(one.pod("one-1"), 70, "boom")
    one.settle()
    one.run(one.pod("one-1"))
    one.settle()
    assert (one.status["reason"], one.children.get("one-1")) == ("BackoffLimitExceeded", None)


@pytest.mark.parametrize("obstacle", [Denied("delete", "jobs", "team"), Refused("a webhook says no")])
def test_a_job_whose_trainer_cannot_be_removed_is_not_failed_and_tried_again(scene: Any, obstacle: Any) -> None:
    one = scene(maxPreemptions=1).to_training()
    preempt(one, 2)
    assert one.look().delete is not None
    decision = one.look(obstacle=obstacle)
    assert not decision.status.is_true("Failed")
    assert decision.status.completion_time is None
    assert decision.requeue_after is not None
    assert str(obstacle) in (decision.status.message or "")


def test_an_unwritten_removal_is_neither_a_deleted_job_nor_a_second_attempt(scene: Any) -> None:
    one = scene(maxPreemptions=1).to_training()
    preempt(one, 2)
    killed = one.pod("one-1")
    one.run(killed)
    assert one.look().delete is not None
    del one.children["one-1"]
    one.settle()
    assert "waiting until" in one.status["message"]
    one.end(killed, 75)
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")
    assert one.status.get("failures", 0) == 0
    assert one.status["message"].endswith("Preempted: a sentence")


def ended(scene: Build, **evaluation: str) -> Any:
    """A trainer that published what met no gate."""
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    report = one.report("GateNotMet", message="the loss is 3", artifacts=ARTIFACTS, evaluation=evaluation, lastStep=7)
    one.end(pod, 78, report)
    one.fail("one-1")
    one.settle()
    return one


@pytest.mark.parametrize(
    ("merged", "reason"),
    [("NotMet", "MergedModelWithheld"), ("NotRun", "GateNotRun"), ("Passed", "ManifestReported")],
)
def test_a_gate_that_is_not_met_fails_the_job_and_the_condition_shows_what_is_published(
    scene: Build, merged: str, reason: str
) -> None:
    one = ended(scene, gate="NotMet", mergeGate=merged)
    failed, published = one.condition("Failed"), one.condition("Published")
    assert (failed["status"], failed["reason"], failed["message"]) == ("True", "GateNotMet", "the loss is 3")
    assert (published["status"], published["reason"]) == ("True", reason)
    assert "s3://bucket/out" in published["message"]
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "GateNotMet")
    assert one.status["artifacts"] == ARTIFACTS
    assert one.status["evaluation"] == {"gate": "NotMet", "mergeGate": merged}
    assert one.status["failures"] == 1
    assert list(one.children) == ["one-preflight", "one-1"]
    assert one.condition("Stalled")["status"] == "True"


@pytest.mark.parametrize(
    ("merged", "gguf", "reason"),
    [
        ("Passed", "NotMet", "GGUFWithheld"),
        ("Passed", "NotRun", "GGUFWithheld"),
        ("NotMet", "NotRun", "MergedModelWithheld"),
        ("Passed", "Passed", "ManifestReported"),
    ],
)
def test_the_condition_shows_that_gguf_files_are_withheld(scene: Build, merged: str, gguf: str, reason: str) -> None:
    one = ended(scene, gate="NotConfigured", mergeGate=merged, ggufGate=gguf)
    assert (one.condition("Published")["status"], one.condition("Published")["reason"]) == ("True", reason)
    assert one.status["evaluation"]["ggufGate"] == gguf


def test_a_job_that_stopped_early_and_met_no_gate_shows_both(scene: Build) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    early = {"stopped": True, "stoppedAtStep": 60, "bestStep": 40, "patience": 2}
    one.end(pod, 78, one.report("GateNotMet", artifacts=ARTIFACTS, earlyStopping=early))
    one.fail("one-1")
    one.settle()
    assert (one.condition("EarlyStopped")["status"], one.condition("Failed")["reason"]) == ("True", "GateNotMet")


def test_a_manifest_without_its_digest_is_not_called_published(scene: Build) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.end(pod, 78, one.report("GateNotMet", artifacts={"uri": "s3://bucket/out"}))
    one.fail("one-1")
    one.settle()
    assert one.condition("Published")["status"] == "False"


def test_the_failure_is_a_warning_that_names_the_gate(scene: Build) -> None:
    before = scene().to_training().job.status
    one = ended(scene, gate="NotMet")
    warnings = [event for event in events.derive_events(before, one.job.status) if event.is_warning]
    assert any("GateNotMet" in event.message or "the loss is 3" in event.message for event in warnings)


def test_a_report_of_another_outcome_with_that_code_publishes_nothing(scene: Build) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.end(pod, 78, one.report("Failed", artifacts=ARTIFACTS))
    one.fail("one-1")
    one.settle()
    assert one.condition("Failed")["reason"] == "GateNotMet"
    assert one.condition("Published")["status"] == "False"


CHECKED = {"preflightSHA256": "aa" * 32, "datasetSHA256": "bb" * 32, "baseModelRevision": "c0ffee"}


def checked(scene: Build, **lineage: str) -> Any:
    """A job whose preflight reported these digests, with its first trainer Job."""
    one = scene()
    one.settle()
    report = one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}, lineage=CHECKED | lineage)
    one.end(one.pod("one-preflight"), 0, report)
    one.complete("one-preflight")
    one.settle()
    return one


@pytest.mark.parametrize("field", CHECKED)
def test_a_result_of_other_inputs_than_preflight_checked_is_not_complete(scene: Build, field: str) -> None:
    one = checked(scene)
    other = CHECKED | {field: "cc" * 32}
    one.end(one.pod("one-1"), 0, one.report("Published", artifacts=ARTIFACTS, lineage=other))
    one.complete("one-1")
    one.settle()
    assert (one.condition("Complete")["status"], one.condition("Failed")["reason"]) == ("False", "DatasetUnusable")
    assert "cc" * 32 in one.condition("Failed")["message"]
    assert f"preflight had checked {CHECKED[field]}" in one.condition("Failed")["message"]
    assert one.status["lineage"][field] == CHECKED[field], "the pinned value stays"


def test_a_result_of_what_preflight_checked_or_of_an_older_trainer_is_complete(scene: Build) -> None:
    for lineage in (CHECKED, {}):
        one = checked(scene)
        one.end(one.pod("one-1"), 0, one.report("Published", artifacts=ARTIFACTS, lineage=lineage))
        one.complete("one-1")
        one.settle()
        assert one.condition("Complete")["status"] == "True"
        assert one.status["lineage"].items() >= CHECKED.items()


@pytest.mark.parametrize(("code", "outcome"), [(76, "Failed"), (78, "GateNotMet")])
def test_a_final_failure_keeps_the_figures_and_only_a_published_result_gets_a_lineage(
    scene: Build, code: int, outcome: str
) -> None:
    one = scene().to_training()
    lineage = {"datasetSHA256": "12" * 32}
    one.end(one.pod("one-1"), code, one.report(outcome, metrics={"trainLoss": 9.5}, lineage=lineage))
    one.fail("one-1")
    one.settle()
    assert (one.status["phase"], one.status["metrics"]) == ("Failed", {"trainLoss": 9.5})
    assert ("datasetSHA256" in one.status["lineage"]) == (outcome == "GateNotMet")


def test_a_deleted_job_counts_in_addition_to_the_failures_of_its_single_pods(scene: Build) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 1)
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    del one.children["one-1"]
    one.settle()
    assert (one.status["failures"], list(one.children)) == (2, ["one-preflight", "one-2"])


def test_the_next_attempt_of_several_pods_names_the_failure_of_the_last_one(scene: Build) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 70, "CUDA error: device lost")
    one.end(first, 75, one.report("Preempted", reason="PeerLost"))
    one.fail("one-1", "BackoffLimitExceeded")
    one.object["status"] = one.look().status.to_wire()
    created = one.look()
    assert created.create is not None
    running = next(one for one in created.status.conditions or [] if one.type == "Running")
    assert (running.status, running.reason) == ("False", "BackingOff")
    assert "InternalError: pod 1 (one-1-2): CUDA error: device lost" in running.message


def test_a_pod_that_fails_and_a_first_one_that_reports_no_result_are_one_failure_of_their_attempt(scene: Build) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 65, "last words")
    one.end(first, 0, "last words")
    one.complete("one-1")
    one.settle()
    assert (one.status["attempts"], one.status["failures"]) == (2, 1)


def test_a_job_that_is_suspended_in_preflight_starts_no_trainer_and_does_not_say_so(scene: Build) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 0, one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
    one.complete("one-preflight")
    one.object["spec"]["suspend"] = True
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert one.condition("Running")["reason"] != "PodsStarting"
    one.object["spec"]["suspend"] = False
    assert one.look().status.condition("Running").reason == "PodsStarting"


def test_an_earlier_attempt_that_is_still_open_is_ended(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 0)
    one.complete("one-1")
    one.settle()
    assert list(one.children) == ["one-preflight", "one-1", "one-2"]
    one.children["one-1"]["status"] = {}
    decision = one.look()
    assert decision.delete is not None
    assert decision.delete.name == "one-1"
    one.settle()
    assert list(one.children) == ["one-preflight", "one-2"]


def test_an_attempt_that_is_closed_but_still_open_is_ended_before_the_next_one(scene: Any) -> None:
    one = scene().to_training()
    del one.object["status"]["jobRef"]
    decision = one.look()
    assert decision.delete is not None
    assert (decision.delete.name, decision.create) == ("one-1", None)
    one.settle()
    assert list(one.children) == ["one-preflight", "one-2"]
