"""A cluster that is restored: jobs that had ended do not train again unless a user asks for it."""

from datetime import timedelta
from typing import Any

import pytest


def restored(one: Any, *, with_status: bool, **spec: Any) -> Any:
    """The same object in a new cluster: another UID, generation 1, and none of its Jobs."""
    one.object["metadata"] |= {"uid": "new-uid", "generation": 1, "resourceVersion": "1"}
    one.object["spec"] = one.object["spec"] | spec
    if not with_status:
        one.object["status"] = {"observedGeneration": -1}
    one.children, one.pods = {}, {}
    return one


def failed(one: Any) -> Any:
    one.to_training()
    one.end(one.pod("one-1"), 65, one.report("NoValidExamples"))
    one.fail("one-1")
    one.settle()
    assert one.status["phase"] == "Failed"
    return one


def complete(one: Any) -> Any:
    one.to_training()
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Succeeded"
    return one


@pytest.mark.parametrize("ended", [failed, complete])
def test_an_ended_job_that_is_restored_with_its_status_stays_as_it_ended(scene: Any, ended: Any) -> None:
    one = ended(scene())
    one.object["metadata"]["generation"] = 3
    before = one.status | {}
    one = restored(one, with_status=True)
    decision = one.look()
    assert decision.create is None
    assert decision.status.to_wire() == before


def test_a_failed_job_that_is_restored_suspended_without_its_status_starts_when_it_is_resumed(scene: Any) -> None:
    one = restored(failed(scene()), with_status=False, suspend=True)
    one.settle()
    assert one.children == {}
    assert one.status["phase"] == "Suspended"
    one.object["spec"]["suspend"] = False
    one.settle()
    assert list(one.children) == ["one-preflight"]


def a_day_later(one: Any) -> Any:
    """The job in a new cluster, which has the status of the backup."""
    one = restored(one, with_status=True)
    one.now += timedelta(days=1)
    one.object["metadata"]["creationTimestamp"] = one.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    one.settle()
    return one


def test_the_run_of_a_restored_job_and_the_day_since_the_backup_do_not_count(scene: Any) -> None:
    one = scene(backoffLimit=0, activeDeadlineSeconds=7200).to_training()
    one.run(one.pod("one-1"))
    one.settle()
    one = a_day_later(one)
    assert (one.status["phase"], list(one.children)) == ("Preflight", ["one-preflight"])
    (run,) = one.status["history"]
    assert (run["result"], run["reason"]) == ("Preempted", "Restored")
    assert (one.status.get("failures"), one.status["runs"], one.status["activeSeconds"]) == (None, 1, 0)
    assert one.status["startTime"] == run["startTime"]
    one.end(one.pod("one-preflight"), 0, one.report("Validated", dataset={"rows": 5, "acceptedRows": 5}))
    one.complete("one-preflight")
    one.settle()
    assert list(one.children) == ["one-preflight", "one-2"]
    del one.children["one-2"]
    one.settle()
    assert one.status["failuresByReason"] == {"JobDeleted": 1}


def test_a_restored_attempt_that_had_not_started_does_not_count_and_has_its_whole_time_to_start(scene: Any) -> None:
    one = scene(backoffLimit=0, startDeadlineSeconds=60).to_training()
    one = a_day_later(one)
    assert (one.status["phase"], list(one.children)) == ("Preflight", ["one-preflight"])
    assert one.status.get("failures") is None
    assert one.status["eligibleTime"] == one.object["metadata"]["creationTimestamp"]
    assert one.look().status.to_wire() == one.status
