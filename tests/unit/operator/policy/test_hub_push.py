"""What a job with `output.hub` shows of its push: a failed one leaves the result and the job's success as they are."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller import events

Build = Callable[..., Any]
PUBLISHED = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
SPEC: dict[str, Any] = {"output": {"uri": "s3://bucket/out", "hub": {"repo": "acme/helpdesk"}}}
COMMIT = "c" * 40
PUSHED = {"repo": "acme/helpdesk", "revision": "main", "commit": COMMIT, "url": f"https://hub/a/b/tree/{COMMIT}"}
REFUSED = {"repo": "acme/helpdesk", "revision": "main", "message": "hf://acme/helpdesk: the push is forbidden (403)."}


def ended(one: Any, push: dict[str, Any] | None) -> Any:
    one.to_training()
    artifacts = PUBLISHED | ({"hub": push} if push else {})
    one.end(one.pod("one-1"), 0, one.report("Published", artifacts=artifacts))
    one.complete("one-1")
    return one


@pytest.mark.parametrize(
    ("push", "status", "reason", "words"),
    [
        (PUSHED, "True", "Pushed", f"acme/helpdesk has the result at commit {COMMIT}."),
        (REFUSED, "False", "PushFailed", "The result is published, but not pushed: hf://acme/helpdesk: the push is"),
        (None, "False", "PushFailed", "use a trainer image of the operator's version, and recreate the job"),
    ],
)
def test_a_job_that_asks_for_a_push_succeeds_and_shows_how_it_went(
    scene: Build, push: Any, status: str, reason: str, words: str
) -> None:
    one = ended(scene(**SPEC), push)
    one.settle()
    found = one.condition("HubPushed")
    assert (found["status"], found["reason"]) == (status, reason)
    assert words in found["message"]
    assert one.status["phase"] == "Succeeded"
    assert one.status["artifacts"].get("hub") == push


def test_only_a_job_with_a_hub_has_the_condition_and_only_once_it_is_published(scene: Build) -> None:
    one = scene(**SPEC).to_training()
    plain = ended(scene(), None)
    plain.settle()
    for job in (one, plain):
        assert "HubPushed" not in [found["type"] for found in job.status["conditions"]]


def test_a_result_that_did_not_meet_its_gate_is_not_pushed(scene: Build) -> None:
    one = scene(**SPEC).to_training()
    one.end(one.pod("one-1"), 78, one.report("GateNotMet", artifacts=PUBLISHED))
    one.fail("one-1")
    one.settle()
    assert one.condition("HubPushed")["reason"] == "GateNotMet"


@pytest.mark.parametrize(("push", "warned"), [(PUSHED, False), (REFUSED, True)])
def test_a_failed_push_is_a_warning_event(scene: Build, push: Any, warned: bool) -> None:
    one = ended(scene(**SPEC), push)
    before = FineTuneJobStatus.model_validate(one.status)
    one.settle()
    after = FineTuneJobStatus.model_validate(one.status)
    found = [event for event in events.derive_events(before, after) if event.reason == "HubPushFailed"]
    assert [event.is_warning for event in found] == [True] * warned
