"""Many pods of one attempt: a round is one run, counts once, and is named after what ended it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport
from finetune_operator.kube.observed import Reading, WarningEvent, Warnings
from finetune_operator.manifests.jobs import build_attempt, build_config, build_preflight
from finetune_operator.settings import Settings

PAIR = {"numNodes": 2, "gpusPerNode": 4}


@pytest.fixture
def pair(scene: Any) -> Callable[..., Any]:
    """A job of two pods whose first trainer Job is there."""
    return lambda **spec: scene(resources=PAIR, **spec).to_training()


def counts(one: Any) -> tuple[int, int, int]:
    status = one.status
    return status.get("runs", 0), status.get("failures", 0), status.get("preemptions", 0)


def follow(one: Any, pod: Any, **blocks: Any) -> None:
    """A pod that ends because it has lost another one."""
    one.end(pod, 75, one.report("Preempted", reason="PeerLost", **blocks))


def test_pods_of_one_attempt_find_each_other_by_name(scene: Any, settings: Settings) -> None:
    one = scene("a.b", resources=PAIR)
    child = build_attempt(one.job, settings, "x/y:1", 3)
    assert child.service is not None
    job, service, pod = child.job["spec"], child.service, child.job["spec"]["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 2, 2, 0)
    assert service["metadata"]["name"] == pod["subdomain"] == child.name
    assert service["metadata"]["ownerReferences"] == child.config_map["metadata"]["ownerReferences"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [one["port"] for one in service["spec"]["ports"]] == [29500, 29400]
    chosen = service["spec"]["selector"]
    assert chosen.items() <= child.job["spec"]["template"]["metadata"]["labels"].items()
    assert (chosen["app.kubernetes.io/component"], chosen["finetune.dev/attempt"]) == ("trainer", "3")
    assert build_config(one.job, settings, 3).first_pod == f"{child.name}-0.{child.name}"
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}


def test_one_pod_needs_no_service_and_preflight_is_one_pod(scene: Any, settings: Settings) -> None:
    single = build_attempt(scene().job, settings, "x/y:1", 1)
    preflight = build_preflight(scene(resources=PAIR).job, settings, "x/y:1")
    for child in (single, preflight):
        assert child.service is None
        assert (child.job["spec"]["completions"], child.job["spec"]["parallelism"]) == (1, 1)
        assert not {"subdomain", "successPolicy"} & (
            set(child.job["spec"]["template"]["spec"]) | set(child.job["spec"])
        )
    assert single.job["spec"]["backoffLimit"] == 3
    assert build_config(scene().job, settings, 1).first_pod is None
    assert build_config(scene(resources=PAIR).job, settings, 0).first_pod is None


def test_a_job_is_running_once_all_of_its_pods_are(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1", runs=False)
    one.settle()
    one.run(first)
    second["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes: no GPU"}
    ]
    decision = one.settle()
    shown = one.condition("Running")
    assert (shown["status"], shown["reason"]) == ("False", "Unschedulable")
    assert shown["message"].startswith("1 of 2 pods are running; pod 1 (one-1-2): No node can run the pod: 0/4 nodes")
    assert one.status["currentRun"]["podUID"] == first["metadata"]["uid"]
    assert "startTime" not in one.status
    assert decision.follow is not None
    one.run(second)
    one.settle()
    assert (one.condition("Running")["reason"], one.status["phase"]) == ("PodsRunning", "Training")
    assert one.condition("Running")["message"] == "All 2 trainer pods are running; no progress is reported yet."
    assert "startTime" in one.status


def test_a_pod_that_was_never_made_is_missed_too(pair: Any) -> None:
    one = pair()
    one.run(one.pod("one-1"))
    one.now += timedelta(seconds=30)
    assert one.look().fetch_events_for.kind == "Job"
    one.warnings = Warnings("one-1-uid", (WarningEvent("FailedCreate", "exceeded quota: small"),))
    one.settle()
    shown = one.condition("Running")
    assert shown["reason"] == "PodCreationRefused"
    assert shown["message"].startswith("1 of 2 pods are running; pod 1 (does not exist): ")


def test_pods_that_are_queried_one_after_the_other_give_one_message(scene: Any) -> None:
    one = scene(resources={"numNodes": 3}).to_training()
    one.set_of("one-1", 3, runs=False)
    one.now += timedelta(seconds=60)
    asked = one.look().fetch_events_for
    one.warnings = Warnings(asked.uid, (WarningEvent("FailedMount", 'secret "s3" not found'),))
    decision = one.look()
    assert decision.fetch_events_for is None
    assert "0 of 3 pods are running; " in decision.status.message


def test_an_answer_about_one_pod_asks_about_no_other_in_the_same_look(pair: Any) -> None:
    one = pair()
    one.set_of("one-1", runs=False)
    one.now += timedelta(seconds=60)
    asked = one.look().fetch_events_for
    assert asked is not None
    assert one.look(warnings=Warnings(asked.uid, ())).fetch_events_for is None


def test_the_time_to_start_is_not_over_before_all_pods_run(pair: Any) -> None:
    one = pair(startDeadlineSeconds=60)
    one.run(one.set_of("one-1", runs=False)[0])
    one.settle()
    one.now += timedelta(seconds=90)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "StartDeadlineExceeded")
    assert "1 of 2 pods are running" in one.status["message"]


def test_a_first_pod_that_waits_for_another_one_does_not_stall(pair: Any) -> None:
    one = pair(stallTimeoutSeconds=60)
    first, second = one.set_of("one-1", runs=False)
    one.run(first)

    def answer() -> None:
        report = ProgressReport.model_validate({"jobUID": "job-uid", "heartbeat": 1, "progress": {"step": 0}})
        one.reading = Reading(first["metadata"]["uid"], one.now, report)
        one.settle()

    for _ in range(3):
        answer()
        one.now += timedelta(seconds=50)
    assert counts(one) == (0, 0, 0)
    one.run(second)
    answer()
    one.now += timedelta(seconds=90)
    answer()
    assert one.status["currentRun"]["stoppingReason"] == "NoProgress"
    assert "one-1" not in one.children


@pytest.mark.parametrize("culprit_first", [True, False])
def test_a_failure_of_another_rank_is_one_failure_of_the_run_with_its_message(pair: Any, culprit_first: bool) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.now += timedelta(seconds=16)
    steps = [lambda: one.end(second, 137, reason="OOMKilled"), lambda: follow(one, first, lastStep=40)]
    for step in steps if culprit_first else reversed(steps):
        step()
        one.settle()
    one.fail("one-1", "BackoffLimitExceeded", failed=2)
    one.settle()
    assert counts(one) == (1, 1, 0)
    run = one.status["history"][0]
    assert (run["result"], run["reason"], run["exitCode"], run["lastStep"]) == ("Failed", "OutOfMemory", 137, 40)
    assert run["message"].startswith("pod 1 (one-1-2): ")
    assert run["podUID"] == first["metadata"]["uid"]
    assert list(one.children) == ["one-preflight", "one-1", "one-2"]
    assert one.children["one-2"]["spec"]["backoffLimit"] == 0


def test_a_first_pod_that_the_job_controller_killed_for_another_ones_failure_is_not_the_culprit(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 70, one.report("Failed", reason="InternalError"))
    one.delete_pod(first)
    one.end(first, 137)
    one.settle()
    run = one.status["history"][0]
    assert (run["reason"], run["exitCode"]) == ("InternalError", 70)
    assert counts(one) == (1, 1, 0)


def test_failures_end_the_job_once_the_limit_is_used_up_and_name_the_rank(pair: Any) -> None:
    one = pair(backoffLimit=1)
    for number in (1, 2):
        job = f"one-{number}"
        first, second = one.set_of(job)
        one.settle()
        one.end(second, 1, "CUDA error: device lost")
        follow(one, first)
        one.fail(job, "BackoffLimitExceeded", failed=2)
        one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "ContainerError: pod 1 (" in one.status["message"]
    assert (one.status["attempts"], *counts(one)) == (2, 2, 2, 0)


def test_a_terminal_failure_ends_the_job_whichever_rank_reports_it(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 79, one.report("Failed", reason="GPUOutOfMemory", message="step 1 does not fit"))
    follow(one, first)
    one.fail("one-1")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "GPUOutOfMemory")
    assert one.status["message"].endswith("pod 1 (one-1-2): step 1 does not fit")
    assert counts(one) == (1, 1, 0)


@pytest.mark.parametrize(("code", "disruption"), [(75, "EvictionByEvictionAPI"), (137, "PreemptionByScheduler")])
@pytest.mark.parametrize("reason", ["Preempted", "PeerLost"])
def test_a_pod_that_was_taken_away_is_one_preemption(pair: Any, code: int, disruption: str, reason: str) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, code, disruption=disruption)
    one.end(first, 75, one.report("Preempted", reason=reason, lastStep=7))
    one.settle()
    one.set_of("one-1")
    one.settle()
    assert counts(one) == (1, 0, 1)
    run = one.status["history"][0]
    assert (run["result"], run["reason"], run["exitCode"]) == ("Preempted", disruption, code)
    assert run["message"].startswith("pod 1 (one-1-2): ")
    assert one.status["phase"] == "Training"
    assert list(one.children) == ["one-preflight", "one-1"]


def test_an_unknown_lost_peer_is_a_preemption_with_its_own_reason(pair: Any) -> None:
    one = pair()
    first, _ = one.set_of("one-1")
    one.settle()
    follow(one, first)
    one.now += timedelta(seconds=16)
    assert 0 < one.settle().requeue_after <= 5
    assert counts(one) == (0, 0, 0)  # what has ended it may still come
    one.now += timedelta(seconds=5)
    one.settle()
    assert counts(one) == (1, 0, 1)
    assert one.status["history"][0]["reason"] == "PeerLost"


def test_a_verdict_does_not_wait_once_the_next_run_has_begun(pair: Any) -> None:
    one = pair()
    first, _ = one.set_of("one-1")
    one.settle()
    follow(one, first)
    one.now += timedelta(seconds=16)
    one.run(one.pod("one-1"))
    one.settle()
    assert counts(one) == (1, 0, 1)
    assert one.status["currentRun"]["podUID"] == "one-1-3-uid"


def test_a_failure_after_a_preemption_that_is_observed_with_it_does_not_turn_it_into_a_failure(pair: Any) -> None:
    one = pair()
    for pod in one.set_of("one-1"):
        one.end(pod, 143, disruption="TerminationByKubelet")
    later = one.set_of("one-1")
    for pod in later:
        pod["metadata"]["creationTimestamp"] = "2026-03-01T12:00:28Z"
    one.end(later[1], 1, "no driver")
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    assert counts(one) == (1, 0, 1)
    assert one.status["history"][0]["result"] == "Preempted"


def test_the_start_of_a_pod_that_has_ended_with_0_counts_for_the_start_of_the_job(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.end(second, 0)
    one.now += timedelta(seconds=30)
    started = second["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"]
    one.settle()
    assert one.status["startTime"] == started > first["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]


def test_a_failure_before_the_first_pod_has_run_counts_once_and_has_its_own_entry(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1", runs=False)
    one.run(second)
    one.settle()
    one.end(second, 1, "no driver")
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    assert counts(one) == (0, 0, 0)
    assert (one.condition("Running")["reason"], one.status["phase"]) == ("BackingOff", "Starting")
    del one.pods[first["metadata"]["name"]]
    one.fail("one-1", "BackoffLimitExceeded", failed=2)
    one.settle()
    assert counts(one) == (1, 1, 0)
    run = one.status["history"][0]
    assert (run["podUID"], run["reason"]) == (second["metadata"]["uid"], "ContainerError")
    assert "startTime" not in run
    assert "one-2" in one.children


def test_a_pod_that_was_made_before_the_job_ended_for_a_failure_counts_nothing_more(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 1)
    one.end(first, 75, one.report("Preempted"))
    one.settle()
    again = one.pod("one-1")
    one.run(again)
    one.settle()
    one.delete_pod(again)
    one.end(again, 75, one.report("Preempted"))
    one.settle()
    one.fail("one-1", "BackoffLimitExceeded")
    one.settle()
    assert counts(one) == (2, 1, 0)
    assert "one-2" in one.children


def test_an_unobserved_failure_counts_once_however_many_pods_failed_with_it(pair: Any) -> None:
    one = pair()
    one.set_of("one-1")
    one.settle()
    one.pods.clear()
    one.fail("one-1", "BackoffLimitExceeded", failed=2)
    for _ in range(2):
        one.now += timedelta(seconds=6)
        one.settle()
    assert counts(one) == (1, 1, 0)
    assert one.status["history"][0]["reason"] == "Unobserved"
    assert list(one.children) == ["one-preflight", "one-1", "one-2"]


def test_the_end_of_a_first_pod_decides_nothing_while_its_job_counts_an_unobserved_failure(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    follow(one, first)
    del one.pods[second["metadata"]["name"]]
    one.fail("one-1", "BackoffLimitExceeded")
    one.settle()
    assert counts(one) == (1, 1, 0)
    assert one.status["history"][0]["message"] == "the pod that failed was not observed"


def test_the_result_of_the_first_pod_is_enough_and_the_others_are_stopped(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    assert one.children["one-1"]["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    one.settle()
    one.end(first, 0, one.published())
    one.delete_pod(second)
    one.settle()
    one.end(second, 137)
    one.complete("one-1")
    one.children["one-1"]["status"]["failed"] = 1
    one.settle()
    assert one.status["phase"] == "Succeeded"
    assert counts(one) == (1, 0, 0)


def test_a_result_whose_job_has_failed_all_the_same_is_tried_again(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(first, 0, one.published())
    one.end(second, 70)
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    assert counts(one) == (1, 0, 0)
    one.fail("one-1", "BackoffLimitExceeded")
    one.settle()
    assert counts(one) == (2, 1, 0)
    assert "one-2" in one.children


def test_how_a_suspended_pod_ended_is_not_held_against_the_run_that_follows(pair: Any) -> None:
    one = pair()
    pods = one.set_of("one-1")
    one.settle()
    one.object["spec"]["suspend"] = True
    one.settle()
    for pod, code in zip(pods, (75, 137), strict=True):
        one.delete_pod(pod)
        one.end(pod, code)
    one.settle()
    one.object["spec"]["suspend"] = False
    one.settle()
    again, _ = one.set_of("one-1", runs=False)
    again["metadata"]["creationTimestamp"] = pods[1]["status"]["containerStatuses"][0]["state"]["terminated"][
        "finishedAt"
    ]
    one.end(again, 75, one.report("Preempted"))
    one.settle()
    assert counts(one) == (2, 0, 1)


def test_another_rank_that_has_done_its_part_is_neither_missed_nor_a_failure(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 0)
    one.settle()
    assert one.condition("Running")["reason"] == "PodsRunning"
    one.end(first, 0, one.published())
    one.complete("one-1")
    one.settle()
    assert (one.status["phase"], *counts(one)) == ("Succeeded", 1, 0, 0)


def test_another_rank_proves_nothing(pair: Any) -> None:
    one = pair(backoffLimit=0)
    first, second = one.set_of("one-1")
    one.end(second, 0, one.published())
    one.end(first, 0)
    one.complete("one-1")
    one.settle()
    assert (one.status["phase"], *counts(one)) == ("Failed", 1, 1, 0)


def test_a_suspension_of_many_pods_moves_no_counter(pair: Any) -> None:
    one = pair()
    pods = one.set_of("one-1")
    one.settle()
    one.object["spec"]["suspend"] = True
    one.settle()
    for pod in pods:
        one.delete_pod(pod)
    one.end(pods[0], 75, one.report("Preempted"))
    one.settle()
    assert one.condition("Running")["reason"] == "Stopping"
    one.object["spec"]["suspend"] = False
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is True
    one.end(pods[1], 137)
    one.settle()
    assert one.children["one-1"]["spec"]["suspend"] is False
    one.set_of("one-1")
    one.settle()
    assert counts(one) == (1, 0, 0)
    assert (one.status["history"][0]["result"], one.status["phase"]) == ("Suspended", "Training")


def test_no_attempt_starts_while_a_pod_of_any_rank_exists(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    del one.children["one-1"]
    for pod in (first, second):
        one.delete_pod(pod)
    one.end(first, 75)
    one.settle()
    assert list(one.children) == ["one-preflight"]
    assert f"waiting until {second['metadata']['name']} is gone" in one.status["message"]
    one.end(second, 75)
    one.settle()
    assert list(one.children) == ["one-preflight", "one-2"]
    assert counts(one) == (1, 1, 0)


def test_a_job_that_is_deleted_while_it_fails_has_failed_once(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 1)
    follow(one, first)
    one.settle()
    del one.children["one-1"]
    one.settle()
    assert counts(one) == (1, 1, 0)
    assert "one-2" in one.children


@pytest.mark.parametrize("is_stopped", [False, True])
def test_only_a_first_pod_that_was_stopped_waits_for_the_failure_of_another_one(pair: Any, is_stopped: bool) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    if is_stopped:
        one.delete_pod(first)
    one.end(first, 1)
    one.now += timedelta(seconds=16)
    one.settle()
    assert counts(one) == ((0, 0, 0) if is_stopped else (1, 1, 0))
    one.end(second, 70)
    one.settle()
    assert one.status["history"][0]["reason"] == ("InternalError" if is_stopped else "ContainerError")


def test_a_lost_node_is_named_also_after_the_failure_of_another_pod(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    one.settle()
    one.delete_pod(second, grace=0)
    one.end(first, 1)
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    assert one.condition("Running")["reason"] == "BackingOff"
    one.now += timedelta(seconds=60)
    one.settle()
    assert one.condition("Running")["reason"] == "NodeLost"


def test_a_job_that_is_removed_because_it_stalls_is_removed_also_when_a_pod_has_gone_meanwhile(pair: Any) -> None:
    one = pair(stallTimeoutSeconds=60)
    first, second = one.set_of("one-1")
    one.settle()
    body = {"jobUID": "job-uid", "heartbeat": 7, "progress": {}}
    for seconds in (0, 60):
        one.now += timedelta(seconds=seconds)
        one.reading = Reading(first["metadata"]["uid"], one.now, ProgressReport.model_validate(body))
        one.object["status"] = one.look().status.to_wire()
    assert one.condition("Running")["reason"] == "NoProgress"
    del one.pods[second["metadata"]["name"]]
    decision = one.look()
    assert decision.delete is not None
    assert decision.delete.name == "one-1"


def test_a_lost_node_under_any_pod_is_named(pair: Any) -> None:
    one = pair()
    first, second = one.set_of("one-1")
    second["spec"] = second["spec"] | {"nodeName": "node-9"}
    one.settle()
    one.delete_pod(second, grace=0)
    follow(one, first)
    one.run(one.pod("one-1"))
    one.now += timedelta(seconds=60)
    one.settle()
    shown = one.condition("Running")
    assert (shown["status"], shown["reason"]) == ("Unknown", "NodeLost")
    assert "kubectl delete node node-9" in shown["message"]
    assert shown["message"].startswith("1 of 2 pods are running; pod 1 ")
