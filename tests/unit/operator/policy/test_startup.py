"""What condition Running shows while a pod does not run yet."""

from datetime import timedelta
from typing import Any

from finetune_operator.kube.errors import Denied
from finetune_operator.kube.observed import WarningEvent, Warnings


def test_events_of_refused_pods_are_read_only_after_ten_seconds(scene: Any) -> None:
    one = scene().to_training()
    assert one.look().fetch_events_for is None
    one.now += timedelta(seconds=11)
    asked = one.look().fetch_events_for
    assert asked is not None
    assert (asked.kind, asked.uid) == ("Job", "one-1-uid")
    one.settle()
    assert one.condition("Running")["reason"] == "PodsStarting"
    one.warnings = Warnings("one-1-uid", (WarningEvent("FailedCreate", 'pods "x" is forbidden: exceeded quota'),))
    one.settle()
    assert one.condition("Running")["reason"] == "PodCreationRefused"
    assert "exceeded quota" in one.status["message"]


def test_events_that_may_not_be_read_hide_a_cause_and_stop_nothing(scene: Any) -> None:
    one = scene().to_training()
    early = one.look(obstacle=Denied("list", "events", "team")).status.condition("Running")
    assert early is not None
    assert early.reason == "PodsStarting"
    one.now += timedelta(seconds=11)
    assert one.look().fetch_events_for is not None
    status = one.look(obstacle=Denied("list", "events", "team")).status
    accepted, running = status.condition("Accepted"), status.condition("Running")
    assert accepted is not None
    assert accepted.status == "True"
    assert running is not None
    assert running.reason == "APIDenied"
    assert "may not list events in namespace team: grant the right" in running.message


def test_the_image_sentence_stays_while_the_kubelet_backs_off(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    image = pod["spec"]["containers"][0]["image"]
    said = []
    for reason, text in [
        ("ErrImagePull", "manifest unknown"),
        ("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: manifest unknown'),
    ]:
        waiting = {"waiting": {"reason": reason, "message": text}}
        pod["status"] = {"phase": "Pending", "containerStatuses": [{"name": "trainer", "state": waiting}]}
        one.settle()
        said.append(one.condition("Running"))
    assert said[0] == said[1]
    assert said[0]["reason"] == "ImagePullFailed"


def test_between_two_runs_the_end_of_the_last_one_is_shown_until_the_next_pod_exists(scene: Any) -> None:
    one = scene().to_training()
    one.settle()
    assert one.condition("Running")["reason"] == "PodsStarting"
    one.end(one.pod("one-1"), 70, "CUDA error: device lost")
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    found = one.condition("Running")
    assert (found["status"], found["reason"]) == ("False", "BackingOff")
    assert "InternalError: CUDA error: device lost" in found["message"]
    one.pod("one-1")
    one.settle()
    assert one.condition("Running")["reason"] == "PodsStarting"


def test_preflight_that_starts_or_starts_again_is_no_trainer_that_starts(scene: Any) -> None:
    one = scene()
    one.settle()
    assert one.condition("Running")["reason"] == "NotStarted"
    one.end(one.pod("one-preflight"), 75)
    one.settle()
    one.run(one.pod("one-preflight"))
    one.settle()
    assert one.condition("Running")["reason"] == "NotStarted"


def test_of_several_pods_the_failed_one_is_shown_and_not_that_it_is_missing(scene: Any) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 70, "CUDA error: device lost")
    one.children["one-1"]["status"] = {"failed": 1}
    one.delete_pod(first)
    one.settle()
    shown = one.condition("Running")
    assert (shown["status"], shown["reason"]) == ("False", "BackingOff")
    assert "a pod has failed, and the others are being stopped" in shown["message"]
    one.now += timedelta(seconds=200)
    one.settle()
    assert (one.condition("Running")["status"], one.condition("Running")["reason"]) == ("Unknown", "NodeLost")
