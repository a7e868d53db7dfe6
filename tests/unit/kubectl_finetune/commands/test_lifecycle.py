from collections.abc import Callable
from typing import Any

from plugin_world import ENDED

Finetune = Callable[..., Any]
JOB = "/apis/finetune.dev/v1alpha1/namespaces/team-a/finetunejobs/one"


def changes(front: Any) -> list[Any]:
    return [one for one in front.requests if one[0] != "GET"]


def test_suspend_and_resume_set_the_field_and_name_the_step(front: Any, finetune: Finetune, job: Any) -> None:
    front.answers["one"] = [(200, job().raw)]
    assert finetune("suspend", "one", "--context", "lab").out == "one suspended\n"
    front.answers["one"] = [(200, job("one", {"suspend": True}).raw)]
    assert finetune("resume", "one", "--context", "lab").out == "one resumed from step 40\n"
    front.answers["one"] = [(200, job("one", {"suspend": True}, checkpoint=None).raw)]
    assert finetune("resume", "one", "--context", "lab").out == "one resumed\n"
    assert changes(front) == [("PATCH", JOB, {"spec": {"suspend": value}}) for value in (True, False, False)]


def test_a_job_in_the_requested_state_is_not_changed(front: Any, finetune: Finetune, job: Any) -> None:
    front.answers["one"] = [(200, job().raw)]
    front.answers["two"] = [(200, job("two", {"suspend": True}).raw)]
    assert finetune("resume", "one", "--context", "lab").out == "one is not suspended\n"
    assert finetune("suspend", "two", "one", "--context", "lab").out == "two is already suspended\none suspended\n"
    assert changes(front) == [("PATCH", JOB, {"spec": {"suspend": True}})]


def test_no_job_is_changed_when_one_has_ended(front: Any, finetune: Finetune, job: Any) -> None:
    front.answers["one"] = [(200, job().raw)]
    front.answers["done"] = [(200, job("done", phase="Succeeded", conditions=ENDED).raw)]
    for command in ("suspend", "resume", "cancel"):
        done = finetune(command, "one", "done", "--context", "lab")
        assert (done.code, done.out) == (1, "")
        assert f"done has ended (Succeeded): there is nothing to {command}" in done.err
        assert "to remove its record: kubectl delete finetunejob done -n team-a" in done.err
    assert changes(front) == []


def test_cancel_deletes_exactly_the_job_that_was_seen(front: Any, finetune: Finetune, job: Any) -> None:
    front.answers["one"] = [(200, job().raw)]
    done = finetune("cancel", "one", "--yes", "--context", "lab")
    assert (done.code, "s3://b/out" in done.out) == (0, True)
    body = {"propagationPolicy": "Background", "preconditions": {"uid": "uid-one"}}
    assert changes(front) == [("DELETE", JOB, body)]


def test_cancel_asks_with_the_phase_and_the_progress(front: Any, finetune: Finetune, job: Any) -> None:
    loading = {"display": "Loading 45%", "stage": "Loading"}
    for progress, shown in (
        ({"display": "42%", "percent": 42}, "42% done"),
        ({}, "nothing done"),
        (loading, "nothing done"),
    ):
        front.answers["one"] = [(200, job(progress=progress).raw)]
        done = finetune("cancel", "one", "--context", "lab", stdin="n\n")
        assert f"Cancel one in team-a (Training, {shown})?" in done.err
        assert done.out.strip() == "one not cancelled"
    assert changes(front) == []
    assert finetune("cancel", "one", "--context", "lab", stdin="y\n").code == 0
    assert len(changes(front)) == 1


def test_cancel_without_an_answer_names_the_option_that_needs_none(front: Any, finetune: Finetune, job: Any) -> None:
    front.answers["one"] = [(200, job().raw)]
    done = finetune("cancel", "one", "--context", "lab", stdin="")
    assert (done.code, "add --yes" in done.err, changes(front)) == (2, True, [])


def test_a_job_that_ends_while_cancel_asks_is_not_deleted(front: Any, finetune: Finetune, job: Any) -> None:
    front.answers["one"] = [(200, job().raw), (200, job(phase="Succeeded", conditions=ENDED).raw)]
    done = finetune("cancel", "one", "--context", "lab", stdin="y\n")
    assert (done.code, changes(front)) == (1, [])
    assert "one has ended (Succeeded): there is nothing to cancel" in done.err


def test_a_name_that_is_given_twice_counts_once(front: Any, finetune: Finetune, job: Any) -> None:
    front.answers["one"] = [(200, job().raw)]
    assert finetune("cancel", "one", "one", "--yes", "--context", "lab").code == 0
    assert len(changes(front)) == 1


def test_a_status_that_is_unreadable_in_part_prevents_neither_suspension_nor_deletion(
    front: Any, finetune: Finetune, job: Any
) -> None:
    raw = job(conditions=[ENDED[0] | {"status": "False"}]).raw
    front.answers["one"] = [(200, raw | {"status": raw["status"] | {"progress": {"step": "many"}}})]
    assert finetune("suspend", "one", "--context", "lab").out == "one suspended\n"
    assert finetune("cancel", "one", "--yes", "--context", "lab").code == 0
    assert [one[0] for one in changes(front)] == ["PATCH", "DELETE"]


def test_a_job_of_which_is_unknown_whether_it_has_ended_is_not_changed(
    front: Any, finetune: Finetune, job: Any
) -> None:
    raw = job().raw
    front.answers["one"] = [(200, raw | {"status": raw["status"] | {"conditions": "all"}})]
    for command in (("suspend", "one"), ("cancel", "one", "--yes")):
        done = finetune(*command, "--context", "lab")
        assert (done.code, "status.conditions" in done.err) == (1, True)
    assert changes(front) == []
