"""An edit of the spec: at once on what does not run yet, with the next attempt on what does."""

from typing import Any

import pytest

from finetune_api.names import ANNOTATION_SETTINGS_SHA256
from finetune_operator.kube.errors import Denied, Refused

LATER = "takes effect with the next attempt"
TOKEN = {"model": {"uri": "hf://owner/model", "credentialsSecretRef": {"name": "tokne"}}}


def edit(one: Any, **spec: Any) -> None:
    one.object["spec"] |= spec
    one.object["metadata"]["generation"] += 1


def tokens(one: Any, job: str) -> list[str]:
    """The Secrets of a Job's tokens."""
    volumes = one.children[job]["spec"]["template"]["spec"]["volumes"]
    (sources,) = (volume["projected"]["sources"] for volume in volumes if volume["name"] == "hub-tokens")
    return [source["secret"]["name"] for source in sources]


def test_a_misspelt_secret_of_preflight_is_corrected_by_an_edit(scene: Any) -> None:
    one = scene(**TOKEN)
    one.settle()
    one.pod("one-preflight")
    assert tokens(one, "one-preflight") == ["tokne"]
    edit(one, model=TOKEN["model"] | {"credentialsSecretRef": {"name": "token"}})
    removal = one.look()
    assert removal.delete.name == "one-preflight"
    del one.children["one-preflight"]
    waiting = one.look()
    assert waiting.create is None  # until its pod is gone
    one.pods.clear()
    one.settle()
    assert tokens(one, "one-preflight") == ["token"]
    assert (one.status.get("failures", 0), one.status.get("preemptions", 0)) == (0, 0)
    one.to_training()
    assert tokens(one, "one-1") == ["token"]


def test_an_edited_job_that_has_published_is_not_trained_again(scene: Any) -> None:
    """Its Job completes a moment after its pod."""
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    edit(one, storage={"endpoint": "http://minio:9000"})
    one.settle()
    one.end(pod, 0, one.published())
    one.settle()
    assert set(one.children) == {"one-preflight", "one-1"}
    one.complete("one-1")
    one.settle()
    assert (one.status["phase"], one.status["attempts"]) == ("Succeeded", 1)


def test_a_misspelt_secret_of_a_waiting_trainer_is_corrected_by_an_edit_and_nothing_counts(scene: Any) -> None:
    one = scene().to_training()
    stuck = one.pod("one-1")
    edit(one, storage={"endpoint": "http://minio:9000"})
    closing = one.look()
    assert (closing.delete, closing.status.job_ref) == (None, None)  # written before the Job is removed
    one.object["status"] = closing.status.to_wire()
    assert one.look().delete.name == "one-1"
    one.settle()
    assert "one-2" not in one.children
    assert f"waiting until {stuck['metadata']['name']}" in one.condition("Running")["message"]
    one.pods.clear()
    one.settle()
    assert set(one.children) == {"one-preflight", "one-2"}
    assert (one.status.get("failures", 0), one.status.get("preemptions", 0), one.status.get("runs", 0)) == (0, 0, 0)
    assert one.status["attempts"] == 2


def test_a_running_trainer_is_not_interrupted_and_its_next_attempt_has_the_edit(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    edit(one, checkpoint={"steps": 7})
    one.settle()
    assert set(one.children) == {"one-preflight", "one-1"}
    assert LATER in one.condition("Accepted")["message"]
    one.end(pod, 75, one.report("Preempted"))
    one.settle()
    assert (one.status["attempts"], one.status["preemptions"], one.status.get("failures", 0)) == (2, 1, 0)
    assert LATER not in one.condition("Accepted")["message"]


def test_a_running_preflight_is_not_interrupted(scene: Any) -> None:
    one = scene()
    one.settle()
    pod = one.pod("one-preflight")
    one.run(pod)
    edit(one, storage={"endpoint": "http://minio:9000"})
    one.settle()
    assert LATER in one.condition("Accepted")["message"]
    one.end(pod, 69)
    assert one.look().delete.name == "one-preflight"  # the next pod of the old Job would fail again


@pytest.mark.parametrize(
    "change",
    [
        {"suspend": False},
        {"backoffLimit": 9},
        {"maxPreemptions": 9},
        {"startDeadlineSeconds": 900},
        {"activeDeadlineSeconds": 900},
        {"stallTimeoutSeconds": 900},
        {"ttlSecondsAfterFinished": 900},
        {"scheduling": {}},
        {"checkpoint": {"saveTotalLimit": 2}},
        {"preflight": {}},
        {"scheduling": {"queueName": "other"}},
    ],
)
def test_a_limit_a_queue_or_a_written_default_replaces_no_job(scene: Any, change: Any) -> None:
    one = scene().to_training()
    one.pod("one-1")
    edit(one, **change)
    one.settle()
    assert set(one.children) == {"one-preflight", "one-1"}
    assert LATER not in one.condition("Accepted")["message"]


def test_an_edit_of_a_suspended_job_takes_effect_when_it_is_resumed(scene: Any) -> None:
    one = scene().to_training()
    edit(one, suspend=True)
    one.settle()
    edit(one, checkpoint={"steps": 7})
    one.settle()
    assert "one-1" in one.children
    edit(one, suspend=False)
    one.settle()
    assert set(one.children) == {"one-preflight", "one-2"}


def test_an_edit_that_is_not_allowed_removes_nothing(scene: Any) -> None:
    one = scene().to_training()
    one.pod("one-1")
    edit(one, trainer={"image": "evil.example/trainer:1"})
    one.settle()
    assert set(one.children) == {"one-preflight", "one-1"}
    assert one.condition("Accepted")["status"] == "False"


def test_a_job_of_an_earlier_version_of_the_operator_is_kept(scene: Any) -> None:
    one = scene().to_training()
    del one.children["one-1"]["metadata"]["annotations"][ANNOTATION_SETTINGS_SHA256]
    edit(one, checkpoint={"steps": 7})
    one.settle()
    assert set(one.children) == {"one-preflight", "one-1"}


def test_without_the_right_to_delete_jobs_the_edit_waits(scene: Any) -> None:
    one = scene().to_training()
    edit(one, checkpoint={"steps": 7})
    decision = one.look(obstacle=Denied("delete", "jobs", "team"))
    assert decision.delete is None
    assert decision.status.job_ref is not None


@pytest.mark.parametrize("kind", ["preflight", "1"])
def test_a_refused_replacement_of_an_edited_job_is_shown(scene: Any, kind: str) -> None:
    one = scene()
    one.settle()
    if kind == "1":
        one.to_training()
    one.pod(f"one-{kind}")
    edit(one, storage={"endpoint": "http://minio:9000"})
    if kind == "1":
        one.object["status"] = one.look().status.to_wire()  # the attempt is closed before its Job is removed
    assert one.look().delete.name == f"one-{kind}"
    one.object["status"] = one.look(obstacle=Refused("a policy denies it")).status.to_wire()
    assert (one.status["reason"], one.condition("Running")["status"]) == ("StopRefused", "False")
    assert "a policy denies it: change what is refused" in one.status["message"]
