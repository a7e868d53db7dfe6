"""`status.internal`: what the operator remembers from one reconcile to the next, and when it forgets it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport
from finetune_operator.kube.observed import Reading

Build = Callable[..., Any]


def training(scene: Build, **spec: Any) -> tuple[Any, Any]:
    """A job whose trainer has reported heartbeat 7."""
    one = scene(**spec).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    report = ProgressReport.model_validate({"jobUID": "job-uid", "heartbeat": 7, "progress": {"step": 3}})
    one.settle()
    one.extra["reading"] = Reading(pod["metadata"]["uid"], one.now, report)
    one.settle()
    return one, pod


def test_the_heartbeat_ends_with_the_run_and_the_failure_stays_with_its_job(scene: Build) -> None:
    one, pod = training(scene)
    assert one.status["internal"] == {"heartbeat": 7}
    one.end(pod, 137, reason="OOMKilled")
    one.settle()
    assert one.status["internal"] == {"countedJobFailures": 1}


def test_a_pod_that_is_missing_is_remembered_until_it_is_found(scene: Build) -> None:
    one, pod = training(scene)
    name = pod["metadata"]["name"]
    del one.pods[name]
    one.settle()
    since = one.status["internal"]["podMissingSinceTime"]
    one.now += timedelta(seconds=2)
    one.settle()
    assert one.status["internal"]["podMissingSinceTime"] == since
    one.pods[name] = pod
    one.settle()
    assert one.status["internal"] == {"heartbeat": 7}


@pytest.mark.parametrize("code", [0, 76])
def test_an_ended_job_has_no_bookkeeping(scene: Build, code: int) -> None:
    one, pod = training(scene)
    one.end(pod, code, one.published() if code == 0 else one.report("Failed"))
    one.complete("one-1") if code == 0 else one.fail("one-1")
    one.settle()
    assert one.status["phase"] in {"Succeeded", "Failed"}
    assert "internal" not in one.status
