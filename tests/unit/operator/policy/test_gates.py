"""A result that meets no gate: the job has failed, and what is published is still shown."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.controller import events

Build = Callable[..., Any]
ARTIFACTS = {"uri": "s3://bucket/out", "adapterUri": "s3://bucket/out/adapter", "manifestSha256": "ab" * 32}


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
def test_a_gate_that_is_not_met_fails_the_job_and_says_what_is_published(
    scene: Build, merged: str, reason: str
) -> None:
    one = ended(scene, gate="NotMet", merged=merged)
    failed, published = one.condition("Failed"), one.condition("Published")
    assert (failed["status"], failed["reason"], failed["message"]) == ("True", "GateNotMet", "the loss is 3")
    assert (published["status"], published["reason"]) == ("True", reason)
    assert "s3://bucket/out" in published["message"]
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "GateNotMet")
    assert one.status["artifacts"] == ARTIFACTS
    assert one.status["evaluation"] == {"gate": "NotMet", "merged": merged}
    assert one.status["failures"] == 1
    assert list(one.children) == ["one-preflight", "one-1"]
    assert one.condition("Stalled")["status"] == "True"


def test_a_job_that_stopped_early_and_met_no_gate_says_both(scene: Build) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    early = {"stopped": True, "step": 60, "bestStep": 40, "patience": 2}
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
