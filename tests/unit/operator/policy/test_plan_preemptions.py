"""The end of a job that is preempted too often: neither a GPU nor a second attempt is left behind."""

from typing import Any

import pytest

from finetune_operator.kube.errors import Denied, Refused


def preempt(one: Any, times: int) -> None:
    """Ends that many runs with a preemption, and writes each."""
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


@pytest.mark.parametrize("obstacle", [Denied("delete", "jobs", "team"), Refused("a webhook says no")])
def test_a_job_whose_trainer_cannot_be_removed_is_not_failed_and_tried_again(scene: Any, obstacle: Any) -> None:
    one = scene(maxPreemptions=1).to_training()
    preempt(one, 2)
    assert one.look().delete is not None
    decision = one.look(obstacle=obstacle)
    assert not decision.status.is_true("Failed")
    assert decision.status.completion_time is None
    assert decision.requeue_after is not None


def test_a_removal_that_was_not_written_is_no_deleted_job_and_no_second_attempt(scene: Any) -> None:
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


def test_preflight_without_a_limit_is_preempted_any_number_of_times(scene: Any) -> None:
    one = scene(maxPreemptions=0)
    one.settle()
    for _ in range(30):
        one.end(one.pod("one-preflight"), 75)
    one.settle()
    assert one.status["phase"] == "Preflight"
