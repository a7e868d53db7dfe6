"""A trainer Job that another controller removes after its end, for example by a TTL: its result is not lost."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.kube.errors import Refused

Build = Callable[..., Any]
ARTIFACTS = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}


def lose_job(scene: Build, **spec: Any) -> Any:
    """Return a job whose trainer Job and pod were removed while the operator was down."""
    one = scene(**spec).to_training()
    one.run(one.pod("one-1"))
    one.settle()
    one.pods.clear()
    del one.children["one-1"]
    one.settle()
    one.now += timedelta(seconds=10)
    one.settle()
    return one


def remove_ended_job(scene: Build, code: int, message: Callable[[Any], str], **spec: Any) -> Any:
    """Return a job whose trainer Job was removed, but not before the watch had shown the end of its pod."""
    one = scene(**spec).to_training()
    one.pods.clear()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.end(pod, code, message(one))
    del one.children["one-1"]
    one.settle()
    return one


@pytest.mark.parametrize("limit", [0, 3])
def test_the_published_result_of_a_removed_job_is_adopted_by_another_preflight(scene: Build, limit: int) -> None:
    one = lose_job(scene, backoffLimit=limit)
    assert list(one.children) == ["one-preflight"]
    assert one.children["one-preflight"]["status"] == {}
    assert (one.condition("Validated")["status"], one.status["phase"]) == ("Unknown", "Preflight")
    one.end(one.pod("one-preflight"), 0, one.report("Adopted", artifacts=ARTIFACTS))
    one.complete("one-preflight")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Succeeded", "Succeeded")
    assert one.status["artifacts"]["manifestSHA256"] == "ab" * 32
    assert list(one.children) == ["one-preflight"]


def pass_again(one: Any) -> None:
    one.end(one.pod("one-preflight"), 0, one.report("Validated"))
    one.complete("one-preflight")
    one.settle()


def test_a_removed_job_without_a_result_is_followed_by_another_attempt(scene: Build) -> None:
    one = lose_job(scene)
    pass_again(one)
    assert list(one.children) == ["one-preflight", "one-2"]
    assert (one.status["failures"], one.status["failuresByReason"]) == (1, {"JobDeleted": 1})


def test_a_removed_job_without_a_result_ends_a_job_that_has_no_retry_left(scene: Build) -> None:
    one = lose_job(scene, backoffLimit=0)
    pass_again(one)
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "JobDeleted" in one.status["message"]


def test_a_job_removed_before_any_pod_was_observed_is_checked_for_a_result_too(scene: Build) -> None:
    one = scene(backoffLimit=0).to_training()
    one.pods.clear()
    del one.children["one-1"]
    one.settle()
    assert one.condition("Validated")["status"] == "Unknown"
    pass_again(one)
    assert one.status["reason"] == "BackoffLimitExceeded"
    assert "JobDeleted: the trainer Job was deleted" in one.status["message"]


@pytest.mark.parametrize("limit", [0, 3])
def test_a_reported_result_counts_although_its_job_is_removed(scene: Build, limit: int) -> None:
    one = remove_ended_job(scene, 0, lambda one: one.published(), backoffLimit=limit)
    assert (one.status["phase"], one.status["reason"]) == ("Succeeded", "Succeeded")
    assert one.status.get("failures") is None
    assert one.status["history"][0]["result"] == "Succeeded"
    assert one.status["completionTime"] == one.status["history"][0]["endTime"]
    assert list(one.children) == ["one-preflight"]


def test_a_reported_training_is_merged_although_its_job_is_removed(scene: Build) -> None:
    stored = {
        "uri": "s3://bucket/out/checkpoints/trained",
        "step": 6,
        "sha256": "cd" * 32,
        "savedTime": "2026-03-01T12:00:02Z",
    }
    spec = {"resources": {"merge": {}}, "output": {"uri": "s3://bucket/out", "merge": "BF16"}}
    one = remove_ended_job(scene, 0, lambda one: one.report("Trained", checkpoint=stored), **spec)
    assert "one-2-merge" in one.children
    assert one.status.get("failures") is None


def test_a_result_that_missed_its_gate_is_final_although_its_job_is_removed(scene: Build) -> None:
    one = remove_ended_job(scene, 78, lambda one: one.report("GateNotMet", message="too high", artifacts=ARTIFACTS))
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "GateNotMet")
    assert one.condition("Published")["status"] == "True"


def test_a_forged_report_of_a_removed_job_is_not_a_result(scene: Build) -> None:
    one = remove_ended_job(scene, 0, lambda one: one.published().replace("job-uid", "another"))
    assert one.status["phase"] == "Preflight"
    assert one.status["failuresByReason"] == {"JobDeleted": 1}


def test_a_refused_removal_of_the_preflight_that_has_passed_is_shown(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    del one.children["one-1"]
    one.pods.pop(pod["metadata"]["name"])
    one.settle()
    one.now += timedelta(seconds=6)
    assert one.look().delete.name == "one-preflight"
    one.object["status"] = one.look(obstacle=Refused("a policy denies it")).status.to_wire()
    assert one.status["reason"] == "StopRefused"
    assert "a policy denies it: change what is refused" in one.status["message"]
