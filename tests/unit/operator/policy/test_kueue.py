"""Kueue: Jobs wait in the queue that the job names, and the job says why in words that help."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from job_operator import Operator
from kueue_world import QueuedWorld

from finetune_api import names
from finetune_api.text.printable import printable
from finetune_operator.cluster import Cluster
from finetune_operator.controller import events
from finetune_operator.kube.errors import Denied, Refused
from finetune_operator.kube.objects import Job
from finetune_operator.kube.workload import Workload

Build = Callable[..., Any]
QUEUE = {"scheduling": {"queueName": "team-a"}}


def workload(job: str, words: str = "", **fields: Any) -> Workload:
    """Kueue's record of the Job of that name, waiting unless the fields say otherwise."""
    known: dict[str, Any] = {
        "name": f"job-{job}",
        "uid": "workload-uid",
        "job_uid": f"{job}-uid",
        "cluster_queue": "",
        "is_active": True,
        "is_ours_to_activate": False,
        "has_quota": False,
        "is_admitted": False,
        "message": words,
        "eviction_reason": "",
        "eviction_message": "",
    }
    return Workload(**known | fields)


def waiting(scene: Build, words: str, **spec: Any) -> Any:
    """A job whose preflight waits in Kueue, for that reason."""
    one = scene(**QUEUE | spec)
    one.settle()
    one.extra["workloads"] = (workload("one-preflight", words),)
    one.settle()
    return one


def test_a_job_without_a_queue_has_nothing_to_do_with_kueue(built: Callable[..., Any]) -> None:
    job = built()
    assert names.LABEL_QUEUE not in job["metadata"]["labels"]
    assert "suspend" not in job["spec"]


def test_both_jobs_are_made_suspended_in_the_queue_that_the_job_names(built: Callable[..., Any]) -> None:
    for kind in ("preflight", "trainer"):
        job = built(kind, scheduling={"queueName": "team-a", "workloadPriorityClassName": "high"})
        assert job["metadata"]["labels"][names.LABEL_QUEUE] == "team-a"
        assert job["metadata"]["labels"][names.LABEL_QUEUE_PRIORITY] == "high"
        assert job["spec"]["suspend"] is True
        assert names.LABEL_QUEUE not in job["spec"]["template"]["metadata"]["labels"]


def test_preflight_may_wait_in_a_queue_of_its_own(built: Callable[..., Any]) -> None:
    spec = QUEUE | {"preflight": {"queueName": "small"}}
    assert built("preflight", **spec)["metadata"]["labels"][names.LABEL_QUEUE] == "small"
    assert built("trainer", **spec)["metadata"]["labels"][names.LABEL_QUEUE] == "team-a"


def test_the_label_on_the_job_is_the_queue_where_the_spec_names_none(scene: Build) -> None:
    one = scene()
    one.object["metadata"]["labels"] = {names.LABEL_QUEUE: "labelled"}
    one.settle()
    assert one.children["one-preflight"]["metadata"]["labels"][names.LABEL_QUEUE] == "labelled"


@pytest.mark.parametrize(
    ("topology", "annotation"),
    [
        ({"mode": "Required", "level": "rack"}, {"kueue.x-k8s.io/podset-required-topology": "rack"}),
        ({"mode": "Preferred", "level": "rack"}, {"kueue.x-k8s.io/podset-preferred-topology": "rack"}),
        ({"mode": "Unconstrained"}, {"kueue.x-k8s.io/podset-unconstrained-topology": "true"}),
    ],
)
def test_topology_is_requested_only_for_the_trainer_pods(
    built: Callable[..., Any], topology: dict[str, str], annotation: dict[str, str]
) -> None:
    spec = {"scheduling": {"queueName": "team-a", "topology": topology}}
    assert annotation.items() <= built("trainer", **spec)["spec"]["template"]["metadata"]["annotations"].items()
    assert not annotation.keys() & built("preflight", **spec)["spec"]["template"]["metadata"]["annotations"].keys()


@pytest.mark.parametrize(
    ("words", "reason", "helps"),
    [
        (
            "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor a, "
            "1 more needed",
            "WaitingForQuota",
            "1 more needed",
        ),
        ("", "WaitingForQuota", "not processed it"),
        (
            "couldn't assign flavors to pod set main: resource amd.com/gpu unavailable in ClusterQueue",
            "NoMatchingFlavor",
            "have amd.com/gpu added to the ClusterQueue, or change resources (gpuResourceName, requests)",
        ),
        (
            "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu in flavor a, previously "
            "considered podsets requests (0) + current podset request (3) > maximum capacity (1)",
            "NoMatchingFlavor",
            "request less in resources",
        ),
        ("LocalQueue team-a doesn't exist", "QueueNotFound", "create it in the job's namespace"),
        ("ClusterQueue all doesn't exist", "QueueNotFound", "have it created"),
        ("ClusterQueue all is inactive", "QueueStopped", "wait until it is started again"),
        ("LocalQueue team-a is stopped", "QueueStopped", "wait until it is started again"),
        (
            'couldn\'t assign flavors to pod set main: Flavor "a" does not support TopologyAwareScheduling',
            "NoMatchingTopology",
            "scheduling.topology",
        ),
        (
            'couldn\'t assign flavors to pod set main: Flavor "a" does not contain the requested level',
            "NoMatchingTopology",
            "scheduling.topology",
        ),
    ],
)
def test_kueues_message_gets_a_reason_and_what_to_change(scene: Build, words: str, reason: str, helps: str) -> None:
    one = waiting(scene, words)
    quota = one.condition("QuotaReserved")
    assert (quota["status"], quota["reason"]) == ("False", reason)
    assert helps in quota["message"]
    assert "couldn't assign" not in quota["message"]
    assert (one.status["phase"], one.status["reason"], one.status["message"]) == ("Queued", reason, quota["message"])
    assert one.condition("Queued")["reason"] == one.condition("Running")["reason"] == "QueuedByKueue"
    assert (one.condition("Queued")["status"], one.condition("Suspended")["status"]) == ("True", "False")
    assert one.status["workloadRef"] == {"name": "job-one-preflight"}


def test_a_cluster_without_kueue_is_reported_and_the_job_runs_once_it_names_no_queue(scene: Build) -> None:
    one = scene(**QUEUE)
    one.settle()
    quota = one.condition("QuotaReserved")
    assert quota["reason"] == "KueueMissing"
    assert "install Kueue, or remove scheduling.queueName" in quota["message"]
    one.object["spec"].pop("scheduling")
    child, queue = one.look().move_to_queue or (None, "")
    assert child is not None
    assert (child.name, queue) == ("one-preflight", None)


def test_a_queue_that_is_taken_away_starts_nothing_that_the_user_has_suspended(scene: Build) -> None:
    one = scene(**QUEUE)
    one.settle()
    one.object["spec"].pop("scheduling")
    one.object["spec"]["suspend"] = True
    assert one.look().move_to_queue is None


def test_a_job_that_may_not_run_here_any_more_is_not_moved_to_another_queue(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    one.object["spec"]["scheduling"] = {"queueName": "team-b"}
    assert one.look().move_to_queue is not None
    one.object["spec"]["trainer"] = {"image": "registry.example/other:1"}
    assert one.look().move_to_queue is None


def test_the_look_that_makes_a_job_does_not_take_kueue_for_missing() -> None:
    loop = asyncio.new_event_loop()
    world = QueuedWorld(**QUEUE)
    operator = Operator(world, loop)
    operator.look()
    loop.close()
    quota = world.status().condition(names.ConditionType.QUOTA_RESERVED)
    assert quota is not None
    assert quota.reason == "WaitingForQuota"


def test_the_quota_condition_is_removed_with_the_queue(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    one.suspend("one-preflight", is_suspended=False)
    one.children["one-preflight"]["metadata"]["labels"].pop(names.LABEL_QUEUE)
    one.extra["workloads"] = None
    one.settle()
    assert all(condition["type"] != "QuotaReserved" for condition in one.status["conditions"])
    assert "workloadRef" not in one.status


def test_a_right_that_is_missing_for_workloads_is_named_and_never_taken_for_no_kueue(scene: Build) -> None:
    one = scene(**QUEUE)
    one.settle()
    one.object["spec"]["suspend"] = True
    one.suspend("one-preflight", is_suspended=False)
    decision = one.look(workloads=(), obstacle=Denied("list", "workloads", "team"))
    assert decision.suspend is None
    accepted = next(one for one in decision.status.conditions or [] if one.type == "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "APIDenied")
    assert "workloads" in accepted.message


def test_a_waiting_job_moves_when_its_queue_is_changed(scene: Build) -> None:
    one = waiting(scene, "LocalQueue team-a doesn't exist")
    one.object["spec"]["scheduling"] = {"queueName": "team-b"}
    child, queue = one.look().move_to_queue or (None, "")
    assert child is not None
    assert (child.name, queue) == ("one-preflight", "team-b")
    one.extra["workloads"] = (workload("one-preflight", has_quota=True),)
    assert one.look().move_to_queue is None


def leave(one: Any) -> None:
    """Remove the queue from the spec."""
    one.object["spec"].pop("scheduling")
    one.object["metadata"]["generation"] += 1


def test_a_waiting_preflight_whose_queue_is_removed_is_made_again_without_one(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    leave(one)
    decision = one.look()
    assert (decision.move_to_queue, decision.delete and decision.delete.name) == (None, "one-preflight")
    one.settle()
    made = one.children["one-preflight"]
    assert names.LABEL_QUEUE not in made["metadata"]["labels"]
    assert "suspend" not in made["spec"]


def test_a_waiting_trainer_whose_queue_is_removed_is_made_again_without_one_and_nothing_counts(scene: Build) -> None:
    one = scene(**QUEUE)
    one.settle()
    one.suspend("one-preflight", is_suspended=False)
    one.to_training()
    one.extra["workloads"] = (workload("one-1", "insufficient unused quota"),)
    one.settle()
    leave(one)
    one.settle()
    assert set(one.children) == {"one-preflight", "one-2"}
    assert "suspend" not in one.children["one-2"]["spec"]
    assert (one.status.get("failures", 0), one.status.get("preemptions", 0), one.status.get("runs", 0)) == (0, 0, 0)


def test_a_queue_that_is_removed_while_a_trainer_runs_stays_until_its_next_attempt(scene: Build) -> None:
    one, pod = training(scene)
    admit(one)
    leave(one)
    one.settle()
    assert "takes effect with the next attempt" in one.condition("Accepted")["message"]
    preempt(one)
    one.delete_pod(pod)
    one.end(pod, 75, one.report("Preempted"))
    one.settle()
    assert set(one.children) == {"one-preflight", "one-2"}
    assert names.LABEL_QUEUE not in one.children["one-2"]["metadata"]["labels"]
    assert (one.status["preemptions"], one.status.get("failures", 0)) == (1, 0)


def test_a_job_that_is_suspended_leaves_its_queue_when_it_is_resumed(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    leave(one)
    one.object["spec"]["suspend"] = True
    assert one.look().delete is None
    one.settle()
    one.object["spec"]["suspend"] = False
    one.settle()
    assert names.LABEL_QUEUE not in one.children["one-preflight"]["metadata"]["labels"]


def test_a_queue_that_another_component_gives_the_job_is_kept(scene: Build) -> None:
    """Kueue does so where the namespace has a LocalQueue default, and would again after a replacement."""
    one = scene()
    one.settle()
    one.suspend("one-preflight")
    one.children["one-preflight"]["metadata"]["labels"][names.LABEL_QUEUE] = "default"
    one.extra["workloads"] = (workload("one-preflight", "insufficient unused quota"),)
    decision = one.look()
    assert (decision.delete, decision.move_to_queue) == (None, None)
    assert "waits in queue default" in decision.status.condition("QuotaReserved").message


@pytest.mark.parametrize(
    ("queue", "patch"),
    [
        ("team-b", {"metadata": {"annotations": {names.ANNOTATION_QUEUED_BY: names.MANAGED_BY}}}),
        (None, {"metadata": {"annotations": {names.ANNOTATION_QUEUED_BY: None}}, "spec": {"suspend": False}}),
    ],
)
async def test_a_move_notes_whether_the_operator_chose_the_queue(
    scene: Build, monkeypatch: pytest.MonkeyPatch, queue: str | None, patch: dict[str, Any]
) -> None:
    one = waiting(scene, "")
    sent = []

    async def call(_: Cluster, verb: str, path: str, *, body: dict[str, Any]) -> None:
        sent.append(body)

    monkeypatch.setattr(Cluster, "_call", call)
    child = Job.from_object(one.children["one-preflight"])
    await object.__new__(Cluster).move_to_queue(one.job, child, queue)
    patch["metadata"] |= {"uid": child.uid, "labels": {names.LABEL_QUEUE: queue}}
    assert sent == [patch]


def test_a_job_that_must_name_a_queue_shows_that(scene: Build) -> None:
    one = scene()
    one.settle()
    one.suspend("one-preflight")
    one.extra["workloads"] = (workload("one-preflight", "LocalQueue  doesn't exist"),)
    one.settle()
    assert one.condition("QuotaReserved")["reason"] == "QueueMissing"
    assert "set scheduling.queueName" in one.status["message"]


def test_an_admitted_job_shows_where_its_quota_comes_from(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    one.suspend("one-preflight", is_suspended=False)
    one.extra["workloads"] = (workload("one-preflight", has_quota=True, is_admitted=True, cluster_queue="all"),)
    one.settle()
    quota = one.condition("QuotaReserved")
    assert (quota["status"], quota["reason"]) == ("True", "Admitted")
    assert quota["message"] == "Job one-preflight has quota in ClusterQueue all."
    assert one.condition("Queued")["status"] == "False"
    assert one.status["phase"] == "Preflight"


def test_a_job_with_quota_that_waits_for_admission_checks_is_not_admitted(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    one.extra["workloads"] = (workload("one-preflight", has_quota=True, cluster_queue="all"),)
    decision = one.settle()
    quota = one.condition("QuotaReserved")
    assert (quota["status"], quota["reason"], decision.requeue_after) == ("True", "QuotaReserved", None)
    words = "Job one-preflight has quota in ClusterQueue all, and waits for its admission checks."
    assert (quota["message"], one.status["phase"]) == (words, "Queued")


def test_a_foreign_suspended_job_without_a_queue_waits_for_kueues_workload(scene: Build) -> None:
    """Its Workload may come later than the Job, with an event of its own."""
    one = scene()
    one.settle()
    one.suspend("one-preflight")
    assert one.settle().requeue_after is None
    assert one.condition("Queued")["reason"] == "JobSuspended"
    one.extra["workloads"] = (workload("one-preflight", ""),)
    one.settle()
    assert one.condition("QuotaReserved")["reason"] == "QueueMissing"


def test_quota_that_is_being_taken_back_is_not_shown_as_there(scene: Build) -> None:
    one = waiting(scene, "")
    words = {"eviction_reason": "ClusterQueueStopped", "eviction_message": "The ClusterQueue is stopped"}
    one.extra["workloads"] = (workload("one-preflight", "Quota reserved", has_quota=True, is_admitted=True, **words),)
    one.settle()
    assert one.condition("QuotaReserved")["status"] == "False"
    assert (one.status["phase"], one.status["reason"]) == ("Queued", "QueueStopped")


def test_user_suspension_goes_through_kueue_and_never_touches_the_job(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    one.object["spec"]["suspend"] = True
    one.object["metadata"]["generation"] = 2
    first = one.settle()
    assert first.suspend is None
    assert first.deactivate is not None
    assert one.status["phase"] == "Suspended"
    assert (one.condition("Suspended")["status"], one.condition("Queued")["status"]) == ("True", "False")
    off = workload("one-preflight", is_active=False, is_ours_to_activate=True)
    one.extra["workloads"] = (off,)
    assert one.settle().deactivate is None
    one.object["spec"]["suspend"] = False
    last = one.settle()
    assert last.resume is None
    assert last.activate == off


def test_a_suspended_job_waits_until_kueue_has_its_workload(scene: Build) -> None:
    one = scene(**QUEUE)
    one.settle()
    one.extra["workloads"] = ()
    one.object["spec"]["suspend"] = True
    decision = one.settle()
    assert (decision.requeue_after, decision.suspend, decision.fetch_events_for) == (None, None, None)
    assert one.condition("Running")["reason"] == "NotStarted"
    one.suspend("one-preflight", is_suspended=False)
    decision = one.settle()
    assert (decision.requeue_after, decision.suspend, one.condition("Running")["reason"]) == (2.0, None, "NotStarted")


def test_a_job_without_a_queue_is_suspended_itself_where_kueue_is_installed(scene: Build) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    one.extra["workloads"] = ()
    one.object["spec"]["suspend"] = True
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is True


def test_a_resumed_workload_is_not_activated_while_its_pod_still_runs(scene: Build) -> None:
    one = scene(**QUEUE).to_training()
    one.suspend("one-1", is_suspended=False)
    pod = one.pod("one-1")
    one.run(pod)
    off = workload("one-1", is_active=False, is_ours_to_activate=True, has_quota=True)
    one.extra["workloads"] = (off,)
    decision = one.settle()
    assert (decision.activate, decision.requeue_after) == (None, 20.0)
    assert (one.condition("Running")["status"], one.condition("Running")["reason"]) == ("False", "BackingOff")
    one.end(pod, 75, one.report("Preempted"))
    assert one.settle().activate == off


def test_a_refused_activation_is_shown_and_the_job_does_not_count_as_suspended(scene: Build) -> None:
    one = waiting(scene, "")
    one.extra["workloads"] = (workload("one-preflight", is_active=False, is_ours_to_activate=True),)
    assert one.settle().activate is not None
    assert "while the job is suspended" not in one.condition("QuotaReserved")["message"]
    one.object["status"] = one.look(obstacle=Refused("a policy denies it")).status.to_wire()
    assert (one.status["phase"], one.status["reason"]) == ("Queued", "PodCreationRefused")
    assert "a policy denies it: change what is refused" in one.status["message"]
    one.settle()
    assert one.status["reason"] == "WorkloadInactive"
    one.object["spec"]["suspend"] = True
    one.settle()
    assert "while the job is suspended" in one.condition("QuotaReserved")["message"]


def test_a_refused_move_to_another_queue_is_shown(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    one.object["spec"]["scheduling"] = {"queueName": "team-b"}
    assert one.look().move_to_queue is not None
    one.object["status"] = one.look(obstacle=Refused("a policy denies it")).status.to_wire()
    assert "a policy denies it" in one.status["message"]


def test_a_workload_deactivated_by_another_controller_is_not_activated(scene: Build) -> None:
    one = waiting(scene, "")
    one.extra["workloads"] = (workload("one-preflight", is_active=False, eviction_message="too many retries"),)
    decision = one.settle()
    assert decision.activate is None
    quota = one.condition("QuotaReserved")
    assert quota["reason"] == "WorkloadInactive"
    assert "(too many retries): set spec.active of Workload job-one-preflight to true" in quota["message"]


def test_a_job_without_a_job_that_is_to_run_has_no_workload(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota")
    assert one.status["workloadRef"]["name"] == "job-one-preflight"
    one.fail("one-preflight")
    one.look()
    one.object["status"]["conditions"] = [one.condition("Accepted")]
    status = one.look().status
    assert (status.workload_ref, status.condition("QuotaReserved")) == (None, None)


PREEMPTED = {"eviction_reason": "Preempted", "eviction_message": "Preempted to accommodate a workload"}


def training(scene: Build, **spec: Any) -> tuple[Any, Any]:
    """A job with quota, and its trainer pod."""
    one = scene(**QUEUE | spec)
    one.settle()
    one.suspend("one-preflight", is_suspended=False)
    one.to_training()
    one.suspend("one-1", is_suspended=False)
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    return one, pod


def preempt(one: Any) -> None:
    """Kueue takes the quota back."""
    one.suspend("one-1")
    one.extra["workloads"] = (workload("one-1", "Preempted to accommodate a workload", **PREEMPTED),)


def admit(one: Any) -> None:
    """Kueue gives it again."""
    one.suspend("one-1", is_suspended=False)
    one.extra["workloads"] = (workload("one-1", has_quota=True, is_admitted=True, cluster_queue="all"),)


def test_a_trainer_that_kueue_preempts_counts_as_a_preemption_with_kueues_message(scene: Build) -> None:
    one, pod = training(scene)
    preempt(one)
    one.delete_pod(pod)
    one.settle()
    assert one.condition("Running")["reason"] == "Stopping"
    one.end(pod, 75, one.report("Preempted"))
    one.settle()
    (run,) = one.status["history"]
    assert (run["result"], run["reason"]) == ("Preempted", "Preempted")
    assert run["message"] == "Kueue: Preempted to accommodate a workload"
    assert (one.status["preemptions"], one.status["phase"]) == (1, "Queued")


def test_a_message_of_the_queue_is_stored_as_text(scene: Build) -> None:
    one, _ = training(scene)
    hostile = PREEMPTED | {"eviction_message": "for\n\x1b[2J\x9b2J\u202egnp.exe" * 60}
    one.suspend("one-1")
    one.extra["workloads"] = (workload("one-1", hostile["eviction_message"], **hostile),)
    one.settle()
    stored = one.status["currentRun"]["stoppingMessage"]
    assert stored.startswith("Kueue: for\\n\\u001b[2J\\u009b2J\\u202egnp.exe")
    assert len(stored) == 1024
    text = json.dumps(one.status, ensure_ascii=False)
    assert text == printable(text)


@pytest.mark.parametrize("code", [75, 137])
def test_a_trainer_that_ends_after_its_job_has_quota_again_was_preempted_however_it_ended(
    scene: Build, code: int
) -> None:
    one, pod = training(scene)
    preempt(one)
    one.delete_pod(pod)
    one.settle()
    admit(one)
    one.settle()
    one.end(pod, code)
    one.settle()
    (run,) = one.status["history"]
    assert (run["result"], run["reason"], run["exitCode"]) == ("Preempted", "Preempted", code)
    assert run["message"] == "Kueue: Preempted to accommodate a workload"
    assert (one.status["preemptions"], one.status.get("failures", 0)) == (1, 0)


def test_a_trainer_that_ends_while_the_operator_holds_its_workload_counts_as_nothing(scene: Build) -> None:
    one, pod = training(scene)
    one.suspend("one-1")
    one.extra["workloads"] = (workload("one-1", is_active=False, is_ours_to_activate=True),)
    one.delete_pod(pod)
    one.end(pod, 143)
    one.settle()
    (run,) = one.status["history"]
    assert (run["result"], run["reason"]) == ("Suspended", "UserRequested")


def test_a_preempted_trainer_whose_end_was_not_observed_keeps_kueues_message(scene: Build) -> None:
    one, pod = training(scene)
    preempt(one)
    one.delete_pod(pod)
    one.settle()
    del one.pods[pod["metadata"]["name"]]
    admit(one)
    one.settle()
    one.now += timedelta(seconds=6)
    one.settle()
    (run,) = one.status["history"]
    assert (run["result"], run["reason"]) == ("Preempted", "Preempted")
    assert one.status["preemptions"] == 1


def test_quota_that_is_returned_before_the_pod_is_stopped_leaves_nothing_behind(scene: Build) -> None:
    one, pod = training(scene)
    preempt(one)
    one.settle()
    assert one.status["currentRun"]["stoppingReason"] == "Preempted"
    admit(one)
    one.settle()
    assert "stoppingReason" not in one.status["currentRun"]
    one.end(pod, 137)
    one.settle()
    assert one.status["failures"] == 1


def test_queueing_is_an_event_when_its_cause_changes_and_when_it_ends(scene: Build) -> None:
    one = waiting(scene, "insufficient unused quota for nvidia.com/gpu, 1 more needed")
    before = one.job.status
    one.extra["workloads"] = (workload("one-preflight", "insufficient unused quota for nvidia.com/gpu, 2 more needed"),)
    one.settle()
    assert events.derive_events(before, one.job.status) == []
    one.extra["workloads"] = (workload("one-preflight", "ClusterQueue all is stopped"),)
    one.settle()
    stopped = one.job.status
    (event,) = events.derive_events(before, stopped)
    assert (event.reason, event.is_warning) == ("Queued", True)
    one.suspend("one-preflight", is_suspended=False)
    one.extra["workloads"] = (workload("one-preflight", has_quota=True, is_admitted=True, cluster_queue="all"),)
    one.settle()
    assert [event.reason for event in events.derive_events(stopped, one.job.status)] == ["Admitted"]


def dispatch(one: Any, job: str) -> None:
    """Mark the Job as Kueue's webhook does at its creation in a queue of MultiKueue."""
    one.children[job]["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"


@pytest.mark.parametrize("is_admitted", [False, True])
def test_a_preflight_that_multikueue_would_run_elsewhere_is_deleted_and_the_job_refused_until_it_is_edited(
    scene: Build, is_admitted: bool
) -> None:
    one = waiting(scene, "")
    dispatch(one, "one-preflight")
    one.suspend("one-preflight", is_suspended=not is_admitted)
    quota = {"has_quota": is_admitted, "is_admitted": is_admitted, "cluster_queue": "all"}
    one.extra["workloads"] = (workload("one-preflight", **quota),)
    one.settle()
    accepted = one.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "MultiKueueUnsupported")
    assert "queue team-a belongs to MultiKueue" in accepted["message"]
    assert "set scheduling.queueName to a queue of this cluster" in accepted["message"]
    assert (one.children, one.status["phase"], one.status["message"]) == ({}, "Pending", accepted["message"])
    assert "QuotaReserved" not in {found["type"] for found in one.status["conditions"]}
    decision = one.settle()
    assert (decision.create, one.condition("Accepted")) == (None, accepted)
    one.object["spec"]["scheduling"] = {"queueName": "team-b"}
    one.object["metadata"]["generation"] += 1
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert one.condition("Accepted")["status"] == "True"


def test_the_queue_of_preflight_alone_is_named_with_its_own_field(scene: Build) -> None:
    one = scene(preflight={"queueName": "team-a"}, scheduling={"queueName": "team-b"})
    one.settle()
    dispatch(one, "one-preflight")
    one.settle()
    message = one.condition("Accepted")["message"]
    assert "preflight's queue team-a belongs to MultiKueue" in message
    assert "set preflight.queueName to a queue of this cluster, or create the job in the other one" in message


def rejected(job: str, expected: str = "kueue.x-k8s.io/multikueue") -> Workload:
    """Kueue's record of a Job that was in the queue before this became one of MultiKueue."""
    words = f'The owner is not managed by Kueue: Expecting spec.managedBy to be "{expected}" not ""'
    meta = {"name": f"job-{job}", "uid": "workload-uid", "labels": {names.LABEL_QUEUED_JOB_UID: f"{job}-uid"}}
    check = {"name": "elsewhere", "state": "Rejected", "message": words}
    return Workload.from_object({"metadata": meta, "status": {"admissionChecks": [check]}})


def test_a_waiting_job_whose_queue_becomes_one_of_multikueue_is_refused_until_it_is_edited(scene: Build) -> None:
    one = waiting(scene, "LocalQueue team-a doesn't exist")
    one.extra["workloads"] = (rejected("one-preflight"),)
    one.settle()
    accepted = one.condition("Accepted")
    assert (accepted["status"], accepted["reason"], one.children) == ("False", "MultiKueueUnsupported", {})
    assert "queue team-a belongs to MultiKueue" in accepted["message"]
    one.extra["workloads"] = ()
    one.object["spec"]["scheduling"] = {"queueName": "team-b"}
    one.object["metadata"]["generation"] += 1
    one.settle()
    assert (list(one.children), one.condition("Accepted")["status"]) == (["one-preflight"], "True")


def test_a_rejection_by_another_admission_check_refuses_nothing(scene: Build) -> None:
    one = waiting(scene, "")
    one.extra["workloads"] = (rejected("one-preflight", "example.com/other"),)
    one.settle()
    assert (list(one.children), one.condition("Accepted")["status"]) == (["one-preflight"], "True")


def test_a_trainer_whose_queue_becomes_one_of_multikueue_ends_by_itself_and_counts_as_a_preemption(
    scene: Build,
) -> None:
    one, pod = training(scene)
    one.extra["workloads"] = (rejected("one-1"),)
    one.settle()
    assert one.condition("Accepted")["status"] == "True"
    one.suspend("one-1")
    one.delete_pod(pod)
    one.settle()
    assert ("one-1" in one.children, one.condition("Accepted")["reason"]) == (True, "MultiKueueUnsupported")
    one.end(pod, 75, one.report("Preempted"))
    one.settle()
    assert ("one-1" in one.children, one.status["preemptions"], one.status.get("failures", 0)) == (False, 1, 0)


def test_a_trainer_that_multikueue_would_run_elsewhere_is_no_failed_attempt(scene: Build) -> None:
    one = scene(**QUEUE, preflight={"enabled": False})
    one.settle()
    dispatch(one, "one-1")
    one.settle()
    assert one.condition("Accepted")["reason"] == one.status["reason"] == "MultiKueueUnsupported"
    assert (one.children, one.status.get("failures", 0), one.status.get("history", [])) == ({}, 0, [])
    one.object["metadata"]["generation"] += 1
    one.settle()
    assert list(one.children) == ["one-2"]


def test_a_refused_job_of_a_multikueue_queue_still_has_its_start_deadline(scene: Build) -> None:
    one = waiting(scene, "", startDeadlineSeconds=600)
    dispatch(one, "one-preflight")
    one.object["status"] = {"observedGeneration": -1}  # the webhook is faster than the first status
    one.settle()
    one.now += timedelta(seconds=601)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "StartDeadlineExceeded")
    assert one.condition("Accepted")["message"] == "The job ended while its queue was one of MultiKueue."
