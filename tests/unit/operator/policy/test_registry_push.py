"""What a job with `output.oci` shows of its push: a failed one leaves the result and the job's success as they are."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller import events

Build = Callable[..., Any]
PUBLISHED = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
REPOSITORY = "r.example/helpdesk"
SPEC: dict[str, Any] = {"output": {"uri": "s3://bucket/out", "oci": {"repository": REPOSITORY}}}
BOTH: dict[str, Any] = {"output": SPEC["output"] | {"hub": {"repo": "acme/helpdesk"}}}
REFERENCE = f"{REPOSITORY}@sha256:{'a' * 64}"
PUSHED = {"repository": REPOSITORY, "tag": "one", "reference": REFERENCE}
REFUSED = {"repository": REPOSITORY, "tag": "one", "message": "oci://r.example/helpdesk: the push is forbidden (403)."}


def ended(one: Any, push: dict[str, Any] | None) -> Any:
    one.to_training()
    artifacts = PUBLISHED | ({"oci": push} if push else {})
    one.end(one.pod("one-1"), 0, one.report("Published", artifacts=artifacts))
    one.complete("one-1")
    return one


@pytest.mark.parametrize(
    ("push", "status", "reason", "words"),
    [
        (PUSHED, "True", "Pushed", f"The result is {REFERENCE}."),
        (REFUSED, "False", "PushFailed", "The result is published, but not pushed: oci://r.example/helpdesk: the push"),
        (None, "False", "PushFailed", "use a trainer image of the operator's version, and recreate the job"),
    ],
)
def test_a_job_that_asks_for_a_push_succeeds_and_shows_how_it_went(
    scene: Build, push: Any, status: str, reason: str, words: str
) -> None:
    one = ended(scene(**SPEC), push)
    before = FineTuneJobStatus.model_validate(one.status)
    one.settle()
    found = one.condition("RegistryPushed")
    assert (found["status"], found["reason"]) == (status, reason)
    assert words in found["message"]
    assert one.status["phase"] == "Succeeded"
    assert one.status["artifacts"].get("oci") == push
    assert "HubPushed" not in [condition["type"] for condition in one.status["conditions"]]
    after = FineTuneJobStatus.model_validate(one.status)
    warned = [event for event in events.derive_events(before, after) if event.reason == "RegistryPushFailed"]
    assert [event.is_warning for event in warned] == [True] * (push is not PUSHED)


def test_two_pushes_have_a_condition_each(scene: Build) -> None:
    one = ended(scene(**BOTH), PUSHED)
    one.settle()
    assert (one.condition("RegistryPushed")["status"], one.condition("HubPushed")["status"]) == ("True", "False")


def test_a_result_that_did_not_meet_its_gate_is_not_pushed(scene: Build) -> None:
    one = scene(**SPEC).to_training()
    one.end(one.pod("one-1"), 78, one.report("GateNotMet", artifacts=PUBLISHED))
    one.fail("one-1")
    one.settle()
    assert one.condition("RegistryPushed")["reason"] == "GateNotMet"
