"""Nodes whose clock differs from the API server's: every run is counted once, in the order of the API server."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport
from finetune_operator.kube.observed import Reading

Build = Callable[..., Any]
HOUR = timedelta(hours=1)


def at(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def run_and_preempt(one: Any, node: timedelta, *, is_seen: bool = True) -> Any:
    """Run a pod for 30 s on a node whose clock differs by that much, until it is preempted."""
    pod = one.pod("one-1")
    pod["metadata"]["creationTimestamp"] = at(one.now)
    started = one.now + timedelta(seconds=5)
    one.run(pod)
    pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = at(started + node)
    one.now += timedelta(seconds=10)
    if is_seen:
        one.settle()
    one.now += timedelta(seconds=25)
    one.end(pod, 75, one.report("Preempted"))
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    ended |= {"startedAt": at(started + node), "finishedAt": at(started + node + timedelta(seconds=30))}
    one.now += timedelta(seconds=1)
    return pod


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_every_preemption_counts_after_many_on_a_node_with_another_clock(scene: Build, hours: int) -> None:
    one = scene(maxPreemptions=14).to_training()
    for number in range(15):
        run_and_preempt(one, hours * HOUR if number < 10 else timedelta(0))
        one.settle()
        assert (one.status["preemptions"], one.status["runs"]) == (number + 1, number + 1)
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")


@pytest.mark.parametrize("hours", [-1, 1])
def test_runs_that_are_observed_together_count_once_each_and_in_order(scene: Build, hours: int) -> None:
    one = scene(maxPreemptions=50).to_training()
    pods = [run_and_preempt(one, hours * HOUR if number % 2 else timedelta(0), is_seen=False) for number in range(15)]
    one.settle()
    assert (one.status["preemptions"], one.status["runs"]) == (15, 15)
    assert [run["podName"] for run in one.status["history"]] == [pod["metadata"]["name"] for pod in pods[-10:]]
    for name in list(one.pods)[8:]:
        del one.pods[name]
    one.settle()
    assert (one.status["preemptions"], one.status["runs"]) == (15, 15)


@pytest.mark.parametrize("hours", [-1, 1])
def test_no_run_begins_before_its_pod_or_ends_after_now(scene: Build, hours: int) -> None:
    one = scene().to_training()
    pod = run_and_preempt(one, hours * HOUR)
    one.settle()
    run = one.status["history"][0]
    assert pod["metadata"]["creationTimestamp"] <= run["startTime"] <= run["endTime"] <= at(one.now)
    assert 25 <= one.status["activeSeconds"] <= 36


@pytest.mark.parametrize(("start", "end"), [(0, -1), (1, 0), (1, -1), (0, 1), (-1, 1)])
def test_no_run_ends_before_it_begins_if_the_clock_was_set_in_between(scene: Build, start: int, end: int) -> None:
    one = scene().to_training()
    pod = run_and_preempt(one, start * HOUR)
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    ended["finishedAt"] = at(one.now + end * HOUR)
    one.settle()
    run = one.status["history"][0]
    assert pod["metadata"]["creationTimestamp"] <= run["startTime"] <= run["endTime"] <= at(one.now)
    length = datetime.fromisoformat(run["endTime"]) - datetime.fromisoformat(run["startTime"])
    assert one.status["activeSeconds"] == length.total_seconds()


def report_interrupted(one: Any, ended: datetime) -> Any:
    """Let the running trainer report a run that was interrupted while the operator was down."""
    pod = next(reversed(one.pods.values()))
    start = at(ended - timedelta(seconds=30))
    stopped = {"attempt": 1, "podName": "before", "podUID": "before-uid", "startTime": start, "endTime": at(ended)}
    body = {"jobUID": "job-uid", "heartbeat": 1, "progress": {"step": 1}, "stoppedRuns": [stopped]}
    one.reading = Reading(pod["metadata"]["uid"], one.now, ProgressReport.model_validate(body))
    one.settle()
    return one.status.get("preemptions", 0)


def test_an_interrupted_run_outside_the_jobs_life_is_not_counted(scene: Build) -> None:
    one = scene()
    one.object["metadata"]["creationTimestamp"] = at(one.now)
    one.to_training()
    one.run(one.pod("one-1"))
    one.now += timedelta(minutes=10)
    assert report_interrupted(one, one.now - HOUR) == 0
    assert report_interrupted(one, one.now + HOUR) == 0
    assert report_interrupted(one, one.now - timedelta(minutes=5)) == 1


def test_a_missing_pod_is_explained_although_the_last_one_ended_on_a_node_that_is_ahead(scene: Build) -> None:
    one = scene().to_training()
    run_and_preempt(one, HOUR)
    one.settle()
    one.now += timedelta(seconds=30)
    decision = one.look()
    assert decision.fetch_events_for is not None
    assert decision.fetch_events_for.kind == "Job"


def test_a_run_that_a_deadline_ends_keeps_its_hours_on_a_node_that_is_some_seconds_behind(scene: Build) -> None:
    one = scene(activeDeadlineSeconds=7200).to_training()
    one.now += HOUR
    pod = one.pod("one-1")
    one.run(pod)
    started = at(one.now - timedelta(seconds=3))  # before its creation, by the clock of the node
    pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = started
    one.settle()
    one.now += 2 * HOUR
    one.settle()
    assert one.status["reason"] == "DeadlineExceeded"
    assert 7195 <= one.status["activeSeconds"] <= 7205
