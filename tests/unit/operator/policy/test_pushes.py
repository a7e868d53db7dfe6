"""What a job with `output.hub` or `output.oci` shows of its push: a failed one leaves its result and success."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller import events

Build = Callable[..., Any]
PUBLISHED = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
COMMIT = "c" * 40
IN_HUB = {"repo": "acme/helpdesk", "revision": "main"}
IN_REGISTRY = {"repository": "r.example/helpdesk", "tag": "one"}
REFERENCE = f"r.example/helpdesk@sha256:{'a' * 64}"
OUTPUTS = {"hub": {"repo": "acme/helpdesk"}, "oci": {"repository": "r.example/helpdesk"}}
CONDITIONS = {"hub": "HubPushed", "oci": "RegistryPushed"}
PUSHED = {
    "hub": IN_HUB | {"commit": COMMIT, "url": f"https://hub/a/b/tree/{COMMIT}"},
    "oci": IN_REGISTRY | {"reference": REFERENCE},
}
EITHER = pytest.mark.parametrize("kind", ["hub", "oci"])


def spec_of(*kinds: str) -> dict[str, Any]:
    return {"output": {"uri": "s3://bucket/out"} | {kind: OUTPUTS[kind] for kind in kinds}}


def ended(one: Any, **pushes: dict[str, Any]) -> Any:
    one.to_training()
    one.end(one.pod("one-1"), 0, one.report("Published", artifacts=PUBLISHED | pushes))
    one.complete("one-1")
    return one


@pytest.mark.parametrize(
    ("kind", "push", "reason", "words"),
    [
        ("hub", PUSHED["hub"], "Pushed", f"acme/helpdesk has the result at commit {COMMIT}."),
        ("oci", PUSHED["oci"], "Pushed", f"The result is {REFERENCE}."),
        ("hub", IN_HUB | {"message": "hf://acme: 403."}, "PushFailed", "published, but not pushed: hf://acme"),
        (
            "oci",
            IN_REGISTRY | {"message": "oci://r: 403."},
            "PushFailed",
            "published, but not pushed: oci://r",
        ),
        ("hub", None, "PushFailed", "use a trainer image of the operator's version, and recreate the job"),
        ("oci", None, "PushFailed", "use a trainer image of the operator's version, and recreate the job"),
    ],
)
def test_a_job_that_asks_for_a_push_succeeds_and_shows_how_it_went(
    scene: Build, kind: str, push: Any, reason: str, words: str
) -> None:
    one = ended(scene(**spec_of(kind)), **({kind: push} if push else {}))
    before = FineTuneJobStatus.model_validate(one.status)
    one.settle()
    found = one.condition(CONDITIONS[kind])
    assert (found["status"], found["reason"]) == ("True" if reason == "Pushed" else "False", reason)
    assert words in found["message"]
    assert one.status["phase"] == "Succeeded"
    assert one.status["artifacts"].get(kind) == push
    after = FineTuneJobStatus.model_validate(one.status)
    reasons = {"HubPushFailed", "RegistryPushFailed"}
    warned = [event for event in events.derive_events(before, after) if event.reason in reasons]
    assert [event.is_warning for event in warned] == [True] * (reason == "PushFailed")


@EITHER
def test_only_a_job_with_a_push_has_its_condition_and_only_once_it_is_published(scene: Build, kind: str) -> None:
    training, other = scene(**spec_of(kind)).to_training(), next(one for one in OUTPUTS if one != kind)
    plain = ended(scene(**spec_of(other)))
    plain.settle()
    for job in (training, plain):
        assert CONDITIONS[kind] not in [found["type"] for found in job.status["conditions"]]


def test_two_pushes_have_a_condition_each(scene: Build) -> None:
    one = ended(scene(**spec_of("hub", "oci")), oci=PUSHED["oci"])
    one.settle()
    assert (one.condition("RegistryPushed")["status"], one.condition("HubPushed")["status"]) == ("True", "False")


@EITHER
def test_a_result_that_did_not_meet_its_gate_is_not_pushed(scene: Build, kind: str) -> None:
    one = scene(**spec_of(kind)).to_training()
    one.end(one.pod("one-1"), 78, one.report("GateNotMet", artifacts=PUBLISHED))
    one.fail("one-1")
    one.settle()
    assert one.condition(CONDITIONS[kind])["reason"] == "GateNotMet"
