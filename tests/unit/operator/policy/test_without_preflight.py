"""A job whose preflight is disabled: the trainer checks it, and the status shows what that means."""

from typing import Any

import pytest

from finetune_operator.controller.events import derive_events

OFF = {"preflight": {"enabled": False}}
ARTIFACTS = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
DATASET = {"rows": 5, "acceptedRows": 4, "rejectedRows": 1, "rejectedRowsByCode": {"BAD_JSON": 1}}


def started(scene: Any, **spec: Any) -> Any:
    one = scene(**OFF | spec)
    one.settle()
    return one


def test_the_first_job_is_a_trainer_and_the_status_names_what_is_not_checked_before(scene: Any) -> None:
    one = started(scene)
    assert list(one.children) == ["one-1"]
    shown = one.condition("Validated")
    assert (shown["status"], shown["reason"]) == ("Unknown", "PreflightDisabled")
    assert "Nothing is checked before a GPU is held" in shown["message"]
    assert (one.status["phase"], one.status["reason"]) == ("Starting", "PodsStarting")
    one.run(one.pod("one-1"))
    one.settle()
    assert one.status["phase"] == "Training"


def test_its_rows_are_valid_once_the_trainer_has_published(scene: Any) -> None:
    one = started(scene)
    one.end(one.pod("one-1"), 0, one.report("Published", artifacts=ARTIFACTS, dataset=DATASET))
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Succeeded"
    assert one.condition("Complete")["reason"] == "Succeeded"
    assert (one.condition("Validated")["status"], one.condition("Validated")["reason"]) == ("True", "DatasetValid")
    assert one.condition("Validated")["message"] == "4 of 5 rows can be trained on; 1 rejected (BAD_JSON 1)."
    assert one.status["dataset"]["acceptedRows"] == 4


def test_a_result_of_an_earlier_job_is_adopted(scene: Any) -> None:
    one = started(scene)
    one.end(one.pod("one-1"), 0, one.report("Adopted", artifacts=ARTIFACTS))
    one.complete("one-1")
    one.settle()
    assert (one.status["phase"], one.condition("Complete")["reason"]) == ("Succeeded", "Adopted")


@pytest.mark.parametrize(("code", "reason"), [(65, "DatasetUnusable"), (73, "OutputConflict"), (77, "StorageDenied")])
def test_what_preflight_would_have_found_fails_the_job_with_the_counts_of_its_rows(
    scene: Any, code: int, reason: str
) -> None:
    one = started(scene)
    one.end(one.pod("one-1"), code, one.report("Failed", dataset=DATASET, **{"reason": reason}))
    one.fail("one-1")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", reason)
    assert one.status["dataset"]["rejectedRows"] == 1
    assert one.condition("Validated")["message"] == "The job ended before the trainer had reported what it checked."


def test_after_a_preemption_and_a_deleted_job_a_trainer_is_started_and_no_preflight(scene: Any) -> None:
    one = started(scene)
    one.end(one.pod("one-1"), 75, one.report("Preempted"))
    one.settle()
    running = one.pod("one-1")
    one.run(running)
    one.settle()
    del one.children["one-1"]
    one.end(running, 75)
    before = one.job.status
    one.settle()
    assert "PreflightStarted" not in {event.reason for event in derive_events(before, one.job.status)}
    assert list(one.children) == ["one-2"]


def test_a_suspended_job_without_preflight_waits(scene: Any) -> None:
    one = started(scene, suspend=True)
    assert one.children == {}
    assert one.status["phase"] == "Suspended"
    one.object["spec"]["suspend"] = False
    one.settle()
    assert list(one.children) == ["one-1"]
