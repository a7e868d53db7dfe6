"""Pods in which a container of others, such as the proxy of a service mesh, runs on after the trainer's has ended."""

from datetime import timedelta
from typing import Any

import pytest

AN_HOUR = timedelta(hours=1)


def test_a_published_result_completes_the_job_and_its_pod_is_removed(scene: Any) -> None:
    one = scene().to_training()
    one.linger(one.pod("one-1"), 0, one.published())
    one.settle()
    assert (one.status["phase"], one.condition("Complete")["status"]) == ("Publishing", "False")
    assert 0 < one.look().requeue_after <= 60
    one.now += AN_HOUR
    decision = one.look()
    assert decision.delete.name == "one-1"
    one.settle()
    assert one.condition("Complete")["status"] == "True"
    assert "one-1" not in one.children


@pytest.mark.parametrize(("code", "failures", "preemptions"), [(1, 1, 0), (75, 0, 1)])
def test_the_next_attempt_follows_one_that_only_a_proxy_keeps_open(
    scene: Any, code: int, failures: int, preemptions: int
) -> None:
    one = scene().to_training()
    one.linger(one.pod("one-1"), code, one.report("Failed"))
    one.settle()
    assert list(one.children) == ["one-preflight", "one-1"]
    one.now += AN_HOUR
    shown = [one.look()]
    one.object["status"] = shown[-1].status.to_wire()
    assert "container istio-proxy of pod one-1-1 ran on after the trainer's" in one.condition("Running")["message"]
    one.settle()
    assert list(one.children) == ["one-preflight", "one-2"]
    assert (one.status.get("failures", 0), one.status.get("preemptions", 0)) == (failures, preemptions)
    assert one.status["runs"] == 1


def test_a_failure_that_no_retry_fixes_ends_the_job_and_removes_the_pod(scene: Any) -> None:
    one = scene().to_training()
    one.linger(one.pod("one-1"), 76, one.report("Failed"))
    one.settle()
    one.now += AN_HOUR
    one.settle()
    assert one.condition("Failed")["reason"] == "Diverged"
    assert "one-1" not in one.children


def test_the_last_failure_that_backofflimit_allows_ends_the_job(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    one.linger(one.pod("one-1"), 1)
    one.settle()
    one.now += AN_HOUR
    one.settle()
    assert one.condition("Failed")["reason"] == "BackoffLimitExceeded"
    assert "one-1" not in one.children


def test_a_pod_of_several_that_still_trains_is_waited_for(scene: Any) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    one.linger(second, 0)
    one.now += AN_HOUR
    one.settle()
    assert list(one.children) == ["one-preflight", "one-1"]
    one.linger(first, 0, one.published())
    one.now += AN_HOUR
    one.settle()
    assert one.condition("Complete")["status"] == "True"
    assert "one-1" not in one.children


def test_a_suspended_job_is_stopped_as_usual(scene: Any) -> None:
    one = scene().to_training()
    one.linger(one.pod("one-1"), 75, one.report("Failed"))
    one.object["spec"]["suspend"] = True
    one.now += AN_HOUR
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is True


def test_a_preflight_that_has_passed_is_removed_while_the_training_begins(scene: Any) -> None:
    one = scene()
    one.settle()
    one.linger(one.pod("one-preflight"), 0, one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
    one.settle()
    assert list(one.children) == ["one-preflight", "one-1"]
    one.now += AN_HOUR
    one.settle()
    assert list(one.children) == ["one-1"]


def test_a_preflight_that_has_failed_fails_the_job(scene: Any) -> None:
    one = scene()
    one.settle()
    one.linger(one.pod("one-preflight"), 66, one.report("Failed"))
    one.settle()
    assert one.condition("Failed")["status"] == "False"
    one.now += AN_HOUR
    one.settle()
    assert one.condition("Failed")["reason"] == "ModelUnavailable"
    assert one.children == {}


def test_a_preflight_that_was_preempted_is_run_again(scene: Any) -> None:
    one = scene()
    one.settle()
    one.linger(one.pod("one-preflight"), 75, one.report("Failed"))
    one.settle()
    one.now += AN_HOUR
    decision = one.look()
    assert decision.delete.name == "one-preflight"
    assert "istio-proxy" in next(change.detail for change in decision.conditions if change.reason == "BackingOff")
    one.children.clear()
    one.pods.clear()
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert one.status["preflight"]["preemptions"] == 1
