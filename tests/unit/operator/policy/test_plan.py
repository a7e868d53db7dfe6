"""The order of the policies, and what stops one job or all of its actions."""

from typing import Any

import pytest

from finetune_operator.kube.errors import Denied, NameTaken, Refused


def test_a_new_job_gets_its_preflight_and_every_condition(scene: Any) -> None:
    one = scene()
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert len(one.status["conditions"]) == 13
    assert (one.status["phase"], one.status["observedGeneration"]) == ("Preflight", 1)
    assert one.condition("Ready")["status"] == "Unknown"
    assert one.condition("Reconciling")["status"] == "True"


def test_a_finished_job_is_not_changed(scene: Any) -> None:
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


def test_a_status_that_cannot_be_read_is_not_changed(scene: Any) -> None:
    one = scene()
    one.object["status"] = {"phase": "Succeeded", "runs": "many", "conditions": "none"}
    decision = one.look()
    assert "runs" in one.job.status_error
    assert (decision.create, decision.delete, decision.requeue_after) == (None, None, None)
    assert decision.status == one.job.status


def test_a_spec_of_another_version_is_reported_as_unreadable(scene: Any) -> None:
    one = scene(objective="Telepathy")
    one.settle()
    assert one.children == {}
    assert one.condition("Accepted")["reason"] == "InvalidSpec"
    assert "objective" in one.condition("Accepted")["message"]
