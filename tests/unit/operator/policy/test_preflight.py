"""The preflight Job: its result, its preemptions, and a result that was published before."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.kube.errors import Denied, RetryLater

Build = Callable[..., Any]
ARTIFACTS = {"uri": "s3://bucket/out", "adapterURI": "s3://bucket/out/adapter", "manifestSHA256": "ab" * 32}


def test_preflight_whose_success_was_not_observed_runs_again(scene: Any) -> None:
    one = scene()
    one.settle()
    one.complete("one-preflight")
    decision = one.look()
    assert decision.delete is not None
    assert decision.delete.name == "one-preflight"


def test_preflight_whose_pods_are_removed_before_they_are_read_runs_four_times_at_most(scene: Any) -> None:
    one = scene()
    one.settle()
    for _ in range(3):
        one.complete("one-preflight")
        one.settle()
        assert one.children["one-preflight"]["status"] == {}
    one.complete("one-preflight")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "ResultMissing")
    for words in ("Job one-preflight", "4 times", "removed before", "label"):
        assert words in one.status["message"]


def test_only_preflights_in_succession_are_limited(scene: Any) -> None:
    one = scene()
    one.settle()
    for _ in range(3):
        one.complete("one-preflight")
        one.settle()
    one.end(one.pod("one-preflight"), 0, one.report("Validated"))
    one.complete("one-preflight")
    one.settle()
    assert "unreadPreflightRuns" not in one.status.get("internal", {})


def test_a_preflight_that_cannot_be_deleted_is_not_counted_yet(scene: Any) -> None:
    one = scene()
    one.settle()
    one.complete("one-preflight")
    assert one.look(obstacle=RetryLater("no answer")).status.internal is None
    assert one.look().status.internal.unread_preflight_runs == 1


def test_the_trainer_is_created_as_soon_as_preflight_has_passed(scene: Any) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 0, one.report("Validated"))
    decision = one.look()
    assert decision.create is not None
    assert decision.create.name == "one-1"


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


def test_preflight_may_be_preempted_as_often_as_training(scene: Any) -> None:
    one = scene(maxPreemptions=2)
    one.settle()
    for _ in range(2):
        one.end(one.pod("one-preflight"), 143, disruption="EvictionByEvictionAPI")
    one.settle()
    assert one.status["phase"] == "Preflight"
    one.end(one.pod("one-preflight"), 143, disruption="EvictionByEvictionAPI")
    one.pod("one-preflight")
    assert not one.look(obstacle=Denied("delete", "jobs", "team")).status.is_true("Failed")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")
    assert one.condition("Validated")["reason"] == "TooManyPreemptions"
    assert one.children == {}


def test_the_last_preemption_of_preflight_is_written_before_its_job_is_removed(scene: Any) -> None:
    one = scene(maxPreemptions=1)
    one.settle()
    for _ in range(2):
        one.end(one.pod("one-preflight"), 75)
    first = one.look()
    assert (first.delete, first.requeue_after) == (None, 0)
    one.object["status"] = first.status.to_wire()
    assert one.look().delete is not None
    assert not one.look(obstacle=Denied("delete", "jobs", "team")).status.is_true("Failed")


def test_no_preemption_of_preflight_is_survived_with_a_limit_of_zero(scene: Any) -> None:
    one = scene(maxPreemptions=0)
    one.settle()
    assert one.status["phase"] == "Preflight"
    one.end(one.pod("one-preflight"), 75)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")


def test_preflight_with_a_high_limit_is_preempted_many_times(scene: Any) -> None:
    one = scene(maxPreemptions=1000)
    one.settle()
    for _ in range(30):
        one.end(one.pod("one-preflight"), 75)
    one.settle()
    assert one.status["phase"] == "Preflight"


def test_such_a_result_of_this_very_job_is_found_again_as_what_it_was(scene: Build) -> None:
    one = scene()
    one.settle()
    report = one.report("GateNotMet", message="the loss is 3", artifacts=ARTIFACTS, evaluation={"gate": "NotMet"})
    one.end(one.pod("one-preflight"), 78, report)
    one.fail("one-preflight")
    one.settle()
    assert one.condition("Validated")["reason"] == "Adopted"
    assert one.condition("Failed")["reason"] == "GateNotMet"
    assert one.condition("Published")["status"] == "True"
    assert one.status["artifacts"] == ARTIFACTS


def test_a_result_from_before_the_first_attempt_is_adopted_at_the_end_of_its_preflight(scene: Build) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 0, one.report("Adopted", artifacts=ARTIFACTS))
    one.complete("one-preflight")
    one.settle()
    assert (one.status["phase"], one.condition("Complete")["reason"]) == ("Succeeded", "Adopted")
    assert one.status["completionTime"] == one.children["one-preflight"]["status"]["completionTime"]


@pytest.mark.parametrize("artifacts", [{}, {"artifacts": {"uri": "s3://bucket/out"}}])
def test_an_adopted_result_without_a_manifest_digest_is_never_complete(scene: Build, artifacts: Any) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 0, one.report("Adopted", **artifacts))
    one.complete("one-preflight")
    one.settle()
    assert (one.condition("Failed")["status"], one.condition("Failed")["reason"]) == ("True", "ResultMissing")
    assert one.condition("Validated")["status"] == one.condition("Published")["status"] == "False"
    assert one.condition("Complete")["status"] == "False"


def test_a_preflight_that_a_deadline_of_another_client_ended_was_not_preempted(scene: Any) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 75, one.report("Preempted"))
    one.fail("one-preflight", "DeadlineExceeded", "Job was active longer than specified deadline", failed=0)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "PreflightFailed")
    assert "the activeDeadlineSeconds of Job one-preflight, which another client has set" in one.status["message"]


def test_a_preflight_that_is_tried_again_shows_why_its_pods_have_failed(scene: Any) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 69, one.report("Failed", message="no route to the bucket"))
    one.settle()
    again = "Preflight is checking dataset, model and storage."
    first = f"A pod of preflight failed: StorageUnavailable: no route to the bucket. {again}"
    assert (one.condition("Validated")["message"], one.status["message"]) == (first, first)
    one.end(one.pod("one-preflight"), 70, one.report("Failed", message="boom."))
    one.run(one.pod("one-preflight"))
    one.settle()
    assert one.status["message"] == f"2 pods of preflight failed, the last: InternalError: boom. {again}"
    assert one.status["reason"] == "PreflightRunning"
