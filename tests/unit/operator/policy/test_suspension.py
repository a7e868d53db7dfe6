"""Suspend and resume: written before it is done, never two trainers, and no counter moves."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.controller.events import derive_events
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.kube.errors import Denied, Refused
from finetune_operator.kube.pod import Pod


def running(scene: Any, **spec: Any) -> tuple[Any, Any]:
    """A job in training, and its pod."""
    one = scene(**spec).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    return one, pod


def stop(one: Any, pod: Any, code: int = 75) -> None:
    """What Job controller and kubelet do with the pod of a suspended Job."""
    one.delete_pod(pod)
    one.end(pod, code, one.report("Preempted", lastStep=40) if code == 75 else "")


def test_a_job_created_suspended_creates_nothing_until_it_may(scene: Any) -> None:
    one = scene(suspend=True)
    one.settle()
    assert one.children == {}
    assert (one.status["phase"], one.status["reason"]) == ("Suspended", "UserRequested")
    assert "set spec.suspend to false" in one.status["message"]
    assert one.condition("Validated")["reason"] == "Pending"
    one.object["spec"]["suspend"] = False
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert (one.status["phase"], one.condition("Suspended")["status"]) == ("Preflight", "False")


def test_preflight_is_shown_as_pending_until_it_is_created_and_as_running_though_it_is_suspended(scene: Any) -> None:
    one = scene(suspend=True)
    shown = []
    for is_suspended in (True, False, True):
        one.object["spec"]["suspend"] = is_suspended
        one.settle()
        shown.append(one.condition("Validated")["reason"])
    assert shown == ["Pending", "PreflightRunning", "PreflightRunning"]


def test_the_request_is_written_before_the_job_is_suspended(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    first = one.look()
    assert (first.suspend, first.requeue_after) == (None, 0)
    one.object["status"] = first.status.to_wire()
    second = one.look()
    assert second.suspend is not None
    assert second.suspend.name == "one-1"
    assert second.status.current_run is not None
    assert second.status.current_run.pod_uid == pod["metadata"]["uid"]
    assert second.status.current_run.stopping_reason == "UserRequested"


@pytest.mark.parametrize("code", [75, 137, 143, 1])
def test_a_suspended_run_counts_as_nothing_however_it_ends(scene: Any, code: int) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is True
    assert one.condition("Running")["reason"] == "Stopping"
    stop(one, pod, code)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"], run["exitCode"]) == ("Suspended", "UserRequested", code)
    assert (one.status["runs"], one.status.get("failures", 0), one.status.get("preemptions", 0)) == (1, 0, 0)
    assert (one.status["phase"], one.condition("Running")["reason"]) == ("Suspended", "NotStarted")
    assert "currentRun" not in one.status


def test_a_run_that_ended_by_itself_just_before_is_counted_as_what_it_was(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    one.end(pod, 70)
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    assert (one.status["failures"], one.status["history"][0]["reason"]) == (1, "InternalError")


def test_a_run_that_started_in_the_moment_of_the_suspension_counts_as_nothing(scene: Any) -> None:
    one = scene().to_training()
    one.object["spec"]["suspend"] = True
    one.settle()
    pod = one.pod("one-1")
    stop(one, pod, 143)
    one.settle()
    assert one.status["history"][0]["result"] == "Suspended"


def test_a_suspended_run_whose_end_was_not_observed_counts_as_nothing(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    del one.pods[pod["metadata"]["name"]]
    one.settle()
    one.now += timedelta(seconds=6)
    one.settle()
    assert one.status["history"][0]["result"] == "Suspended"
    assert (one.status["runs"], one.status.get("preemptions", 0)) == (1, 0)


def test_an_unobserved_suspended_run_counts_nothing_after_the_resumption_either(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    one.delete_pod(pod)
    one.object["spec"]["suspend"] = False
    one.settle()
    one.pods.clear()
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is False
    one.run(one.pod("one-1", "second"))
    one.settle()
    assert [run["result"] for run in one.status["history"]] == ["Suspended"]
    assert one.status.get("preemptions", 0) == 0


def test_a_resumed_job_continues_in_the_same_job_once_the_old_pod_is_gone(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    one.delete_pod(pod)
    one.object["spec"]["suspend"] = False
    decision = one.settle()
    assert decision.requeue_after == 20.0
    assert one.children["one-1"]["spec"]["suspend"] is True
    assert one.condition("Running")["reason"] == "BackingOff"
    stop(one, pod)
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is False
    assert list(one.children) == ["one-preflight", "one-1"]
    one.run(one.pod("one-1"))
    one.settle()
    assert (one.status["phase"], one.status["attempts"]) == ("Training", 1)


def test_the_resumption_is_written_before_the_job_runs(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    stop(one, pod)
    one.settle()
    one.object["spec"]["suspend"] = False
    first = one.look()
    assert (first.resume, first.requeue_after) == (None, 0)
    one.object["status"] = first.status.to_wire()
    assert one.look().resume is not None


def test_a_suspension_that_is_withdrawn_at_once_leaves_nothing_behind(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.object["status"] = one.look().status.to_wire()
    one.object["spec"]["suspend"] = False
    one.settle()
    assert one.children["one-1"]["spec"].get("suspend", False) is False
    assert "stoppingReason" not in one.status["currentRun"]
    one.delete_pod(pod)
    one.end(pod, 75)
    one.settle()
    assert one.status["preemptions"] == 1


def test_twelve_suspensions_move_no_counter_and_leave_the_history_bounded(scene: Any) -> None:
    one = scene().to_training()
    for _ in range(12):
        pod = one.pod("one-1")
        one.run(pod)
        one.settle()
        one.object["spec"]["suspend"] = True
        one.settle()
        stop(one, pod)
        one.now += timedelta(seconds=20)
        one.settle()
        one.object["spec"]["suspend"] = False
        one.settle()
    assert (one.status["runs"], one.status["attempts"], len(one.status["history"])) == (12, 1, 10)
    assert (one.status.get("failures", 0), one.status.get("preemptions", 0)) == (0, 0)


def test_preflight_is_suspended_and_resumes(scene: Any) -> None:
    one = scene()
    one.settle()
    pod = one.pod("one-preflight")
    one.run(pod)
    one.object["spec"]["suspend"] = True
    one.settle()
    assert one.children["one-preflight"]["spec"]["suspend"] is True
    assert one.status["phase"] == "Suspended"
    stop(one, pod, 143)
    one.settle()
    assert "preflight" not in one.status
    one.object["spec"]["suspend"] = False
    one.to_training()
    assert list(one.children) == ["one-preflight", "one-1"]


def test_a_preflight_that_passed_while_it_was_stopped_has_passed(scene: Any) -> None:
    one = scene()
    one.settle()
    pod = one.pod("one-preflight")
    one.object["spec"]["suspend"] = True
    one.settle()
    one.delete_pod(pod)
    one.end(pod, 0, one.report("Validated"))
    one.settle()
    assert one.condition("Validated")["status"] == "True"
    assert list(one.children) == ["one-preflight"]
    one.object["spec"]["suspend"] = False
    one.settle()
    assert list(one.children) == ["one-preflight", "one-1"]


def test_a_job_suspended_by_another_controller_is_not_resumed(scene: Any) -> None:
    one, pod = running(scene)
    one.suspend("one-1")
    one.delete_pod(pod)
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is True
    queued = one.condition("Queued")
    assert (queued["status"], queued["reason"], one.status["phase"]) == ("True", "JobSuspended", "Queued")
    assert one.condition("Suspended")["status"] == "False"  # spec.suspend is false
    assert "Job one-1 was suspended by another controller or user" in one.status["message"]
    one.end(pod, 137)
    one.settle()
    assert (one.status["preemptions"], one.status.get("failures", 0)) == (1, 0)
    one.suspend("one-1", is_suspended=False)
    one.settle()
    assert one.condition("Queued")["status"] == "False"


def test_a_run_that_ends_before_a_foreign_suspension_is_seen_is_a_preemption(scene: Any) -> None:
    one, pod = running(scene)
    one.suspend("one-1")
    stop(one, pod, 143)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"], one.status["preemptions"]) == ("Preempted", "JobSuspended", 1)


def test_a_suspended_pod_on_a_lost_node_is_named_with_what_frees_it(scene: Any) -> None:
    one, pod = running(scene)
    pod["spec"] = pod["spec"] | {"nodeName": "node-7"}
    one.object["spec"]["suspend"] = True
    one.settle()
    one.delete_pod(pod, grace=60)
    one.now += timedelta(seconds=100)
    one.settle()
    assert one.status["reason"] == "NodeLost"
    assert "kubectl delete node node-7" in one.status["message"]
    one.object["spec"]["suspend"] = False
    assert one.settle().requeue_after == 20.0
    assert one.children["one-1"]["spec"]["suspend"] is True


@pytest.mark.parametrize(
    ("obstacle", "kind", "reason"),
    [
        (Denied("patch", "jobs", "team"), "Accepted", "APIDenied"),
        (Refused("a webhook denies it"), "Running", "StopRefused"),
    ],
)
def test_a_failed_suspension_is_reported_and_retried(scene: Any, obstacle: Any, kind: str, reason: str) -> None:
    one, _ = running(scene)
    one.object["spec"]["suspend"] = True
    one.object["status"] = one.look().status.to_wire()
    decision = one.look(obstacle=obstacle)
    found = next(one for one in decision.status.conditions or [] if one.type == kind)
    assert (found.reason, decision.requeue_after, decision.follow) == (reason, 20.0, None)


def test_a_job_whose_pods_run_on_because_their_stop_is_refused_is_not_ready(scene: Any) -> None:
    one, _ = running(scene)
    one.object["spec"]["suspend"] = True
    one.object["status"] = one.look().status.to_wire()
    before = FineTuneJobStatus.model_validate(one.object["status"])
    after = one.look(obstacle=Refused("a webhook denies it")).status
    events = derive_events(before, after)
    assert [(event.reason, event.is_warning) for event in events if event.is_warning] == [("StopRefused", True)]
    assert derive_events(after, after) == []
    one.object["status"] = after.to_wire()
    assert (one.condition("Ready")["status"], one.condition("Reconciling")["status"]) == ("Unknown", "True")
    assert one.condition("Running")["status"] == "True"
    assert one.status["reason"] == "StopRefused"
    assert "The Job is not stopped, because the API server refuses it: a webhook denies it" in one.status["message"]


@pytest.mark.parametrize("clears", [("one-1",), ("one-preflight", "one-1")])
def test_the_run_of_a_suspended_job_whose_jobs_were_deleted_ends(scene: Any, clears: tuple[str, ...]) -> None:
    """Otherwise its time goes on, in GPU seconds and for activeDeadlineSeconds."""
    one, _ = running(scene, activeDeadlineSeconds=3600)
    one.object["spec"]["suspend"] = True
    one.settle()
    for name in clears:
        del one.children[name]
    one.pods.clear()
    for _ in range(2):
        one.now += timedelta(seconds=60)
        one.settle()
    assert "currentRun" not in one.status
    seconds = one.status["activeSeconds"]
    one.now += timedelta(hours=10)
    one.settle()
    assert (one.status["phase"], one.status["activeSeconds"]) == ("Suspended", seconds)
    assert seconds < 300


def test_a_preflight_that_is_suspended_and_resumed_while_its_pod_ends_is_no_preemption(scene: Any) -> None:
    one = scene(maxPreemptions=0)
    one.settle()
    pod = one.pod("one-preflight")
    one.run(pod)
    one.object["spec"]["suspend"] = True
    one.settle()
    one.now += timedelta(seconds=1)
    one.delete_pod(pod)
    one.object["spec"]["suspend"] = False
    one.now += timedelta(seconds=2)
    one.settle()
    one.end(pod, 75, one.report("Preempted"))
    one.now += timedelta(seconds=2)
    one.settle()
    assert one.status.get("preflight", {}).get("preemptions", 0) == 0
    assert one.status["phase"] != "Failed"


def test_a_job_that_is_no_longer_allowed_is_not_resumed(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    stop(one, pod)
    one.settle()
    one.object["spec"] |= {"suspend": False, "trainer": {"serviceAccountName": "admin"}}
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is True
    assert one.status["reason"] == "Forbidden"


def test_a_refused_resumption_is_shown_with_its_fix(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    stop(one, pod)
    one.settle()
    one.object["spec"]["suspend"] = False
    one.object["status"] = one.look().status.to_wire()
    assert one.look().resume is not None
    before = one.job.status
    decision = one.look(obstacle=Refused('admission webhook "policy.example" denied the request: image not signed'))
    one.object["status"] = decision.status.to_wire()
    assert (one.status["phase"], one.status["reason"]) == ("Starting", "PodCreationRefused")
    assert "Job one-1 is not changed" in one.status["message"]
    assert "image not signed: change what it names, or ask its owner for an exception" in one.status["message"]
    assert decision.requeue_after == 20.0
    shown = [event.reason for event in derive_events(before, decision.status) if event.is_warning]
    assert shown == ["PodCreationRefused"]
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is False
    assert "not signed" not in one.status["message"]


def test_a_result_published_in_the_moment_of_the_suspension_is_found_by_the_next_run(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    one.delete_pod(pod)
    one.end(pod, 0, one.published())
    cache = WatchCache()
    cache.keep_ended_pod(one.job.key, Pod.from_object(pod, gone=True))
    one.settle()
    assert one.status["history"][0]["result"] == "Succeeded"
    assert one.condition("Complete")["status"] == "False"
    one.object["spec"]["suspend"] = False
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is False


def test_a_trainer_that_is_suspended_together_with_a_finished_preflight_is_shown_as_held(scene: Any) -> None:
    one = scene().to_training()
    for name in one.children:  # kubectl patch job --all
        one.suspend(name)
    one.settle()
    queued = one.condition("Queued")
    assert (one.status["phase"], queued["status"], queued["reason"]) == ("Queued", "True", "JobSuspended")
    assert "Job one-1 was suspended by another controller or user" in queued["message"]
