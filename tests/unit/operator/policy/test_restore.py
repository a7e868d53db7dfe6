"""A cluster that is restored: jobs that had ended do not train again unless a user asks for it."""

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
