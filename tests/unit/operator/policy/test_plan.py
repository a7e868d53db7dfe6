"""The decisions, one sentence each; what a whole cluster says of them stands in tests/integration/operator."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport
from finetune_operator.kube.errors import Denied, NameTaken, Refused
from finetune_operator.kube.observed import Reading, Warnings


def test_a_new_job_gets_its_preflight_and_every_condition(scene: Any) -> None:
    one = scene()
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert len(one.status["conditions"]) == 12
    assert (one.status["phase"], one.status["observedGeneration"]) == ("Preflight", 1)
    assert one.condition("Ready")["status"] == "Unknown"
    assert one.condition("Reconciling")["status"] == "True"


def test_a_finished_job_is_left_alone(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Succeeded"
    before = dict(one.status)
    one.children.clear()
    one.pods.clear()
    one.object["spec"]["trainer"] = {"image": "evil.example/x"}
    decision = one.look()
    assert decision.status.to_wire() == before
    assert decision.create is None


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


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        '"Published"',
        '{"outcome": "Published"}',
        "x" * 5000,
        '{"a":' * 900,
    ],
)
def test_a_completed_job_without_a_valid_report_is_no_success(scene: Any, message: str) -> None:
    one = scene(backoffLimit=0).to_training()
    one.end(one.pod("one-1"), 0, message)
    one.complete("one-1")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert one.condition("Published")["status"] == "False"


@pytest.mark.parametrize(
    "forged",
    [
        {"jobUid": "another"},
        {"configSha256": "0" * 64},
        {"artifacts": {"uri": "s3://bucket/out"}},
        *({"artifacts": {"uri": "s3://bucket/out", "manifestSha256": text}} for text in ("", "x", "AB" * 32, "a" * 65)),
        {"metrics": {"evalLoss": "NaN"}},
        {"outcome": "Validated"},
    ],
)
def test_a_report_that_does_not_prove_this_jobs_result_is_no_success(scene: Any, forged: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    artifacts = {"uri": "s3://bucket/out", "manifestSha256": "ab" * 32}
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


def test_children_of_a_dead_uid_are_waited_out(scene: Any) -> None:
    one = scene()
    one.settle()
    one.object["metadata"]["uid"] = "second-uid"
    one.object["status"] = {"observedGeneration": -1}
    decision = one.look()
    assert (decision.create, decision.requeue_after) == (None, 2.0)
    one.children.clear()
    assert one.look().create is not None


@pytest.mark.parametrize(
    ("obstacle", "kind", "reason"),
    [
        (NameTaken("Job", "one-preflight"), "Accepted", "NameConflict"),
        (Denied("create", "jobs", "team"), "Accepted", "APIDenied"),
        (Refused("admission webhook says no"), "Running", "PodCreationRefused"),
    ],
)
def test_what_keeps_the_operator_from_acting_is_named_and_tried_again(
    scene: Any, obstacle: Any, kind: str, reason: str
) -> None:
    decision = scene().look(obstacle=obstacle)
    found = next(one for one in decision.status.conditions or [] if one.type == kind)
    assert (found.status, found.reason) == ("False", reason)
    assert str(obstacle) in found.message
    assert decision.create is None
    assert decision.requeue_after is not None


def test_a_right_lost_in_mid_run_does_not_look_like_a_deleted_job(scene: Any) -> None:
    one = scene().to_training()
    decision = one.look(children=(), pods=(), obstacle=Denied("list", "jobs", "team"), children_unreadable=True)
    assert decision.status.failures is None
    assert decision.status.job_ref is not None
    assert decision.status.reason == "APIDenied"


def test_a_job_that_is_no_longer_allowed_may_still_finish(scene: Any) -> None:
    one = scene().to_training()
    one.object["spec"]["trainer"] = {"serviceAccountName": "admin"}
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Succeeded"
    assert one.condition("Accepted")["reason"] == "Forbidden"


def test_a_job_that_is_no_longer_allowed_gets_no_further_attempt(scene: Any) -> None:
    one = scene().to_training()
    one.object["spec"]["trainer"] = {"serviceAccountName": "admin"}
    one.end(one.pod("one-1"), 0)
    one.complete("one-1")
    one.settle()
    assert "one-2" not in one.children
    assert one.status["failures"] == 1


def test_a_status_that_cannot_be_read_is_left_alone(scene: Any) -> None:
    one = scene()
    one.object["status"] = {"phase": "Succeeded", "runs": "many", "conditions": "none"}
    decision = one.look()
    assert "runs" in one.job.status_error
    assert (decision.create, decision.delete, decision.requeue_after) == (None, None, None)
    assert decision.status == one.job.status


def test_a_spec_of_another_version_is_said_and_not_guessed(scene: Any) -> None:
    one = scene(objective="Telepathy")
    one.settle()
    assert one.children == {}
    assert one.condition("Accepted")["reason"] == "InvalidSpec"
    assert "objective" in one.condition("Accepted")["message"]


def test_preflight_that_was_not_seen_to_pass_is_asked_again(scene: Any) -> None:
    one = scene()
    one.settle()
    one.complete("one-preflight")
    decision = one.look()
    assert decision.delete is not None
    assert decision.delete.name == "one-preflight"


def test_an_earlier_pod_of_a_passed_preflight_is_not_its_verdict(scene: Any) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 75)
    one.complete("one-preflight")
    decision = one.look()
    assert decision.delete is not None
    assert not decision.status.is_true("Failed")


def test_a_passed_preflight_without_a_report_is_a_failure(scene: Any) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 0)
    one.complete("one-preflight")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "ResultMissing")


def test_a_failed_job_without_pods_still_gives_the_exit_tables_reason(scene: Any) -> None:
    one = scene().to_training()
    one.fail("one-1", message="Container trainer for pod team/x failed with exit code 76 matching FailJob rule")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "Diverged")


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
    report = {"jobUid": "job-uid", "heartbeat": 1, "progress": progress, "metrics": {"trainLoss": 1.5}}
    one.reading = Reading(pod["metadata"]["uid"], one.now, ProgressReport.model_validate(report))
    decision = one.settle()
    assert decision.follow is not None
    assert decision.follow.ip == "10.0.0.7"
    assert one.status["phase"] == "Publishing"
    assert one.status["metrics"] == {"trainLoss": 1.5}
    assert one.status["progress"]["lastUpdatedTime"] == "2026-03-01T12:00:00Z"


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


def test_refused_pods_are_asked_for_only_after_ten_seconds(scene: Any) -> None:
    one = scene().to_training()
    assert one.look().fetch_events_for is None
    one.now += timedelta(seconds=11)
    asked = one.look().fetch_events_for
    assert asked is not None
    assert (asked.kind, asked.uid) == ("Job", "one-1-uid")
    one.warnings = Warnings("one-1-uid", (("FailedCreate", 'pods "x" is forbidden: exceeded quota'),))
    one.settle()
    assert one.condition("Running")["reason"] == "PodCreationRefused"
    assert "exceeded quota" in one.status["message"]


def test_events_that_may_not_be_read_hide_a_cause_and_stop_nothing(scene: Any) -> None:
    one = scene().to_training()
    one.now += timedelta(seconds=11)
    assert one.look().fetch_events_for is not None
    status = one.look(obstacle=Denied("list", "events", "team")).status
    accepted, running = status.condition("Accepted"), status.condition("Running")
    assert accepted is not None
    assert accepted.status == "True"
    assert running is not None
    assert running.reason == "APIDenied"
    assert "may not list events in namespace team: grant the right" in running.message


def test_the_image_sentence_stays_while_the_kubelet_backs_off(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    image = pod["spec"]["containers"][0]["image"]
    said = []
    for reason, text in [
        ("ErrImagePull", "manifest unknown"),
        ("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: manifest unknown'),
    ]:
        waiting = {"waiting": {"reason": reason, "message": text}}
        pod["status"] = {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": waiting}]}
        one.settle()
        said.append(one.condition("Running"))
    assert said[0] == said[1]
    assert said[0]["reason"] == "ImagePullFailed"


def test_transition_times_move_only_with_the_value(scene: Any) -> None:
    one = scene()
    one.settle()
    accepted = one.condition("Accepted")["lastTransitionTime"]
    one.now += timedelta(seconds=100)
    one.to_training()
    assert one.condition("Accepted")["lastTransitionTime"] == accepted
    assert one.condition("Validated")["lastTransitionTime"] == "2026-03-01T12:01:40Z"


def test_conditions_of_others_are_kept(scene: Any) -> None:
    one = scene()
    when = "2026-01-01T00:00:00Z"
    foreign = {"type": "Audited", "status": "True", "reason": "Yes", "message": "", "lastTransitionTime": when}
    one.object["status"]["conditions"] = [foreign]
    one.settle()
    assert one.condition("Audited") == foreign


@pytest.mark.parametrize(
    ("child", "validated"), [("one-preflight", ("False", "WontFit")), ("one-1", ("True", "DatasetValid"))]
)
def test_what_will_not_fit_fails_at_once_with_the_trainers_numbers(scene: Any, child: str, validated: Any) -> None:
    one = scene(tuning={"method": "LoRA", "vramBudget": "8Gi"})
    one.settle()
    if child == "one-1":
        one.to_training()
    words = "LoRA needs 14.2 GiB of 8.0 GiB: QLoRA needs 6.1 GiB"
    one.end(one.pod(child), 71, one.report("Failed", **{"message": words, "reason": "WontFit"}))
    one.fail(child, message="Container trainer failed with exit code 71 matching FailJob rule at index 0")
    one.settle()
    assert (one.status["phase"], one.status["reason"], one.status["message"]) == ("Failed", "WontFit", words)
    shown = one.condition("Validated")
    assert (shown["status"], shown["reason"]) == validated
    assert list(one.children)[-1] == child
