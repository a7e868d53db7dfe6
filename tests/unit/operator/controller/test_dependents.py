"""Which waiting jobs a change returns."""

from typing import Any

import pytest

from finetune_operator.controller.dependents import MAX_JOBS, Dependents
from finetune_operator.kube.objects import Key

ONE, SFT = Key("team", "one"), Key("team", "sft")
PINNED = {"name": "sft", "uid": "u", "objective": "Chat", "outputURI": "s3://b/x", "manifestSHA256": "0" * 64}


@pytest.fixture
def job(scene: Any) -> Any:
    def build(name: str, parent: str = "", **status: Any) -> Any:
        one = scene(name, **({"lineage": {"parentRef": {"name": parent}}} if parent else {}))
        one.object["status"] = status
        return one.job

    return build


def test_a_change_of_phase_returns_the_waiting_jobs_and_progress_does_not(job: Any) -> None:
    dependents = Dependents()
    dependents.update(job("one", "sft"))
    assert dependents.update(job("sft", phase="Training")) == {ONE}
    assert dependents.update(job("sft", phase="Training", progress={"step": 7})) == frozenset()
    assert dependents.update(job("sft", phase="Succeeded")) == {ONE}


def test_a_job_that_is_created_or_deleted_returns_the_waiting_jobs(job: Any) -> None:
    dependents = Dependents()
    dependents.update(job("sft", phase="Training"))
    dependents.update(job("one", "sft"))
    assert dependents.remove(SFT) == {ONE}
    assert dependents.update(job("sft")) == {ONE}


def test_a_job_of_another_namespace_is_not_returned(job: Any) -> None:
    dependents = Dependents()
    dependents.update(job("one", "sft"))
    assert dependents.remove(Key("other", "sft")) == frozenset()


@pytest.mark.parametrize(
    "status",
    [
        {"lineage": {"parent": PINNED}},
        {
            "conditions": [
                {
                    "type": "Failed",
                    "status": "True",
                    "reason": "X",
                    "message": "",
                    "lastTransitionTime": "2026-03-01T12:00:00Z",
                }
            ]
        },
    ],
)
def test_a_job_that_no_longer_waits_is_neither_returned_nor_kept(job: Any, status: Any) -> None:
    dependents = Dependents()
    dependents.update(job("one", "sft"))
    dependents.update(job("sft", phase="Training"))
    dependents.update(job("one", "sft", **status))
    assert dependents.update(job("sft", phase="Succeeded")) == frozenset()
    assert len(dependents) == 0


def test_nothing_is_kept_of_deleted_jobs(job: Any) -> None:
    dependents = Dependents()
    for number in range(100):
        dependents.update(job(f"child-{number}", f"parent-{number}"))
        dependents.update(job(f"parent-{number}", phase="Training"))
    assert len(dependents) == 100
    for number in range(100):
        dependents.add_read(Key("team", f"stranger-{number}"), None)
        dependents.remove(Key("team", f"parent-{number}"))
        dependents.remove(Key("team", f"child-{number}"))
    assert (len(dependents), dependents._waiting, dependents._jobs) == (0, {}, {})


def test_the_states_of_ever_more_parents_take_a_bounded_memory(job: Any) -> None:
    dependents, parent = Dependents(), job("parent-0", phase="Training")
    for number in range(MAX_JOBS + 100):
        dependents.update(job(f"child-{number}", f"parent-{number}"))
        dependents.add_read(Key("team", f"parent-{number}"), parent)
    kept = [number for number in range(MAX_JOBS + 100) if Key("team", f"parent-{number}") in dependents]
    assert kept == list(range(100, MAX_JOBS + 100))
