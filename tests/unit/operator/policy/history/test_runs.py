"""Counting: each ended pod once, as what it was."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api import names
from finetune_api.handoff import ProgressReport
from finetune_api.status import FineTuneJobStatus, Run
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.kube.observed import Reading
from finetune_operator.kube.pod import Pod
from finetune_operator.policy.history.runs import is_counted


def test_each_pod_is_counted_once_however_often_it_is_seen(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 1)
    for _ in range(3):
        one.settle()
    assert (one.status["failures"], one.status["runs"], len(one.status["history"])) == (1, 1, 1)
    assert one.status["internal"]["countedJobFailures"] == 1


def test_a_pod_that_dropped_out_of_the_history_is_not_counted_again(scene: Any) -> None:
    one = scene(maxPreemptions=1000).to_training()
    for _ in range(14):
        one.end(one.pod("one-1"), 75)
        one.now += timedelta(seconds=10)
        one.settle()
    assert (one.status["preemptions"], one.status["runs"], len(one.status["history"])) == (14, 14, 10)
    one.settle()
    assert one.status["preemptions"] == 14


@pytest.mark.parametrize(
    ("end", "result", "reason"),
    [
        ({"code": 75}, "Preempted", "Preempted"),
        ({"code": 143, "disruption": "PreemptionByScheduler"}, "Preempted", "PreemptionByScheduler"),
        ({"code": 137, "disruption": "TerminationByKubelet"}, "Preempted", "TerminationByKubelet"),
        ({"code": 137, "reason": "OOMKilled"}, "Failed", "OutOfMemory"),
        ({"code": 137}, "Failed", "ContainerError"),
        ({"code": 137, "evicted": "Usage of EmptyDir volume exceeds the limit"}, "Failed", "WorkspaceFull"),
        ({"code": 75, "evicted": "Usage of EmptyDir volume exceeds the limit"}, "Preempted", "Preempted"),
        ({"code": 69}, "Failed", "StorageUnavailable"),
        ({"code": 70}, "Failed", "InternalError"),
        ({"code": 65, "disruption": "EvictionByEvictionAPI"}, "Failed", "DatasetUnusable"),
        ({"code": 0, "disruption": "EvictionByEvictionAPI"}, "Failed", "ResultMissing"),
    ],
)
def test_the_cause_of_an_end_decides_what_it_counts_as(scene: Any, end: Any, result: str, reason: str) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), **end)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"]) == (result, reason)
    assert one.status.get("failures", 0) == (result == "Failed")
    assert one.status.get("preemptions", 0) == (result == "Preempted")


def test_a_pod_that_vanished_in_its_run_is_a_preemption_unless_its_job_counted_a_failure(scene: Any) -> None:
    for failed, result in [(0, "Preempted"), (1, "Failed")]:
        one = scene().to_training()
        pod = one.pod("one-1")
        one.run(pod)
        one.settle()
        del one.pods[pod["metadata"]["name"]]
        one.children["one-1"]["status"] = {"failed": failed}
        cache = WatchCache()
        cache.keep_ended_pod(one.job.key, Pod.from_object(pod, gone=True))
        one.extra["pods"] = cache.merge_ended_pods(one.job.key, [Pod.from_object(other) for other in one.pods.values()])
        one.settle()
        run = one.status["history"][0]
        assert (run["result"], run["reason"]) == (result, "Unobserved")
        assert one.status.get("failures", 0) == failed


def test_a_pod_that_the_kubelet_rejected_is_counted_once_however_many_follow(scene: Any) -> None:
    one = scene().to_training()
    one.reject(one.pod("one-1"), "UnexpectedAdmissionError", "Allocate failed: no healthy devices")
    one.settle()
    for _ in range(12):
        one.end(one.pod("one-1"), 75)
        one.settle()
    assert (one.status["runs"], one.status.get("failures"), one.status["preemptions"]) == (13, None, 13)


def test_many_rejected_pods_come_to_rest(scene: Any) -> None:
    one = scene(backoffLimit=100).to_training()
    for _ in range(12):
        one.reject(one.pod("one-1"), "OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu")
    one.settle()
    assert (one.status["runs"], one.status["failures"], one.status["phase"]) == (12, 7, "Starting")
    assert one.status["history"][-1]["reason"] == "PodRejected"
    assert "enough resource" in one.status["history"][-1]["message"]


def test_a_run_whose_job_was_deleted_counts_the_gpus_that_it_held(scene: Any) -> None:
    one = scene(resources={"gpusPerNode": 8}).to_training()
    one.run(one.pod("one-1"))
    one.settle()
    assert one.status["currentRun"]["gpus"] == 8
    one.object["spec"] |= {"resources": {"gpusPerNode": 1}}
    del one.children["one-1"]
    one.pods.clear()
    for _ in range(2):
        one.now += timedelta(seconds=60)
        one.settle()
    assert one.status["gpuSeconds"] == 8 * one.status["activeSeconds"] > 0


def test_a_rejected_pod_keeps_its_time_when_it_is_deleted(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.reject(pod, "UnexpectedAdmissionError", "no")
    first = Pod.from_object(pod).ended
    pod["metadata"]["deletionTimestamp"] = "2026-03-01T13:00:00Z"
    assert first is not None
    assert Pod.from_object(pod, gone=True).ended == first


@pytest.mark.parametrize("has_container", [True, False])
def test_an_eviction_that_the_job_counts_as_a_failure_is_one_failure_with_the_kubelets_message(
    scene: Any, has_container: bool
) -> None:
    one = scene().to_training()
    pod, words = one.pod("one-1"), 'Usage of EmptyDir volume "workspace" exceeds the limit "50Gi".'
    if has_container:
        one.end(pod, 137, "step 40: loss 1.2", reason="Error", evicted=words)
    else:
        one.reject(pod, "Evicted", words)
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    assert (one.status["runs"], one.status["failures"], one.status.get("preemptions", 0)) == (1, 1, 0)
    run = one.status["history"][0]
    assert run["reason"] == "WorkspaceFull"
    assert run["message"].startswith(words.rstrip("."))


def test_a_full_volume_that_the_trainer_reports_is_a_full_workspace(scene: Any) -> None:
    """A workspace of a StorageClass evicts no pod."""
    one = scene().to_training()
    words = "no space is left on the disk (/workspace/x): raise resources.workspace.sizeLimit"
    one.end(one.pod("one-1"), 70, one.report("Failed", reason="WorkspaceFull", message=words))
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"], run["message"]) == ("Failed", "WorkspaceFull", words)


def test_an_evicted_trainers_own_report_is_not_lost(scene: Any) -> None:
    one = scene().to_training()
    report = one.report("Preempted", lastStep=40)
    one.end(one.pod("one-1"), 75, report, disruption="TerminationByKubelet", evicted="The node was low on memory.")
    one.settle()
    assert one.status["history"][0]["lastStep"] == 40


@pytest.mark.parametrize(("failed", "result"), [(0, "Preempted"), (1, "Failed")])
def test_an_unobserved_run_counts_by_the_status_of_its_job(scene: Any, failed: int, result: str) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    assert one.status["currentRun"]["podUID"] == pod["metadata"]["uid"]
    one.pods.clear()
    one.children["one-1"]["status"] = {"failed": failed}
    decision = one.settle()
    assert (decision.requeue_after, one.status.get("runs", 0)) == (5.0, 0)
    one.now += timedelta(seconds=5)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"], one.status["runs"]) == (result, "Unobserved", 1)
    assert (one.status.get("failures", 0), one.status.get("preemptions", 0)) == (failed, 1 - failed)
    assert "currentRun" not in one.status


@pytest.mark.parametrize("message", ["", "Container trainer for pod team/x failed with exit code 80 matching FailJob"])
def test_a_run_whose_job_ended_while_no_operator_ran_is_counted_with_its_time(scene: Any, message: str) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    one.settle()
    began = datetime.fromisoformat(one.status["currentRun"]["startTime"])
    one.pods = {name: pod for name, pod in one.pods.items() if "one-1" not in name}
    if message:
        one.fail("one-1", message=message)
    else:
        one.complete("one-1")
    one.now += timedelta(hours=3)
    one.settle()
    assert "history" not in one.status  # the end of the pod may still arrive
    one.now += timedelta(seconds=5)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"]) == ("Failed", "Unobserved" if message else "ResultMissing")
    assert datetime.fromisoformat(run["endTime"]) - began == timedelta(seconds=60)
    assert (one.status["runs"], one.status["failures"], one.status["gpuSeconds"]) == (1, 1, 60)


def test_the_next_pod_ends_a_run_whose_end_was_not_observed(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    one.settle()
    one.pods.clear()
    second = one.pod("one-1", "second")
    one.run(second)
    one.settle()
    assert (one.status["preemptions"], one.status["currentRun"]["podName"]) == (1, "second")


def test_a_run_before_the_one_that_succeeded_while_no_operator_ran_was_preempted_and_ended_before_it(
    scene: Any,
) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    one.settle()
    began = datetime.fromisoformat(one.status["currentRun"]["startTime"])
    one.pods = {name: pod for name, pod in one.pods.items() if "one-1" not in name}
    second = one.pod("one-1", "second")
    second["metadata"]["creationTimestamp"] = (began + timedelta(seconds=40)).strftime("%Y-%m-%dT%H:%M:%SZ")
    one.end(second, 0, one.published())
    one.complete("one-1")
    one.now += timedelta(hours=3)
    for _ in range(2):
        one.settle()
        one.now += timedelta(seconds=5)
    assert one.status["phase"] == "Succeeded"
    runs = [(run["podName"], run["result"]) for run in one.status["history"]]
    assert runs == [("one-1-1", "Preempted"), ("second", "Succeeded")]
    assert one.status["history"][0]["endTime"] == second["metadata"]["creationTimestamp"]
    assert (one.status.get("failures", 0), one.status["preemptions"]) == (0, 1)


def test_hours_without_an_operator_do_not_count_for_a_run_that_ended_in_the_meantime(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    one.settle()
    began = one.now
    one.pods.clear()
    one.now += timedelta(hours=3)
    second = one.pod("one-1", "second")
    second["metadata"]["creationTimestamp"] = (began + timedelta(seconds=40)).strftime("%Y-%m-%dT%H:%M:%SZ")
    one.run(second)
    one.settle()
    run = one.status["history"][0]
    assert (run["endTime"], one.status["activeSeconds"]) == (second["metadata"]["creationTimestamp"], 40)


def test_preemptions_of_preflight_outlive_the_operators_memory(scene: Any) -> None:
    one = scene(maxPreemptions=1)
    one.settle()
    for number in (1, 2):
        one.end(one.pod("one-preflight", f"pod-{number}"), 75)
        one.now += timedelta(seconds=60)
        one.pods[f"pod-{number}"]["metadata"]["creationTimestamp"] = one.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        one.settle()
        one.pods.clear()
    assert one.status["preflight"]["preemptions"] == 2
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")


def test_failures_of_a_job_are_counted_beyond_the_length_of_the_history(scene: Any) -> None:
    one = scene(backoffLimit=100, maxPreemptions=1000).to_training()
    for _ in range(12):
        one.end(one.pod("one-1"), 75)
        one.settle()
    one.children["one-1"]["status"] = {"failed": 2}
    one.settle()
    assert (one.status["failures"], one.status["internal"]["countedJobFailures"]) == (2, 2)


def test_a_pod_that_failed_before_the_first_one_began_is_the_cause_if_its_job_counts_the_failure(scene: Any) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    one.end(second, 70, "CUDA error: device lost")
    ended = second["status"]["containerStatuses"][0]["state"]["terminated"]
    ended |= {"startedAt": "2026-03-01T12:00:01Z", "finishedAt": "2026-03-01T12:00:05Z"}
    one.end(first, 75, one.report("Preempted", reason="PeerLost"))
    one.fail("one-1", "BackoffLimitExceeded")
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"], run["exitCode"]) == ("Failed", "InternalError", 70)
    assert run["message"].startswith("pod 1 (one-1-2): CUDA error: device lost")


def test_the_end_of_a_pod_that_is_gone_is_waited_for_to_the_last_moment(scene: Any) -> None:
    one = scene().to_training()
    one.run(one.pod("one-1"))
    one.settle()
    one.pods.clear()
    one.settle()
    one.now += timedelta(seconds=4.5)
    decision = one.settle()
    assert (decision.requeue_after, one.status.get("runs", 0)) == (0.5, 0)
    one.now += timedelta(seconds=0.5)
    one.settle()
    assert one.status["runs"] == 1


def test_a_pod_that_failed_as_the_first_one_started_is_the_cause_of_an_end_that_was_not_observed(scene: Any) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 70, "CUDA error: device lost")
    ended = second["status"]["containerStatuses"][0]["state"]["terminated"]
    ended |= {"startedAt": "2026-03-01T11:59:00Z", "finishedAt": one.status["currentRun"]["startTime"]}
    del one.pods[first["metadata"]["name"]]
    one.fail("one-1", "BackoffLimitExceeded")
    one.settle()
    one.now += timedelta(seconds=5)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"]) == ("Failed", "InternalError")


def test_a_run_whose_job_and_pod_are_gone_is_a_failure_by_the_deletion(scene: Any) -> None:
    one = scene(resources={"numNodes": 2, "gpusPerNode": 4}).to_training()
    one.set_of("one-1")
    one.settle()
    one.pods.clear()
    del one.children["one-1"]
    for seconds in (10, 5):
        one.now += timedelta(seconds=seconds)
        one.settle()
    assert (one.status["failures"], one.status["history"][0]["reason"]) == (1, "JobDeleted")
    assert (one.status["activeSeconds"], one.status["gpuSeconds"]) == (10, 80)
    assert list(one.children) == ["one-preflight"]


@pytest.mark.parametrize(("code", "result"), [(75, "Preempted"), (1, "Failed")])
def test_a_pod_that_is_deleted_counts_by_its_exit_code(scene: Any, code: int, result: str) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.delete_pod(pod)
    one.end(pod, code)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"]) == (result, "Preempted" if code == 75 else "ContainerError")


def test_a_failure_before_the_first_run_whose_pods_are_gone_counts_without_an_entry(scene: Any) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    one.children["one-1"]["status"] = {"failed": 2}
    one.settle()
    assert (one.status["failures"], one.status["runs"], one.status.get("history")) == (1, 1, None)


@pytest.mark.parametrize(
    ("length", "seconds", "is_known"),
    [(10, -1, True), (10, 0, True), (10, 1, False), (9, -1, False), (10, None, False)],
)
def test_only_a_full_history_covers_the_ends_before_it(length: int, seconds: int | None, is_known: bool) -> None:
    first = datetime(2026, 3, 1, tzinfo=UTC)
    ends = [first + timedelta(minutes=number) for number in range(length)]
    runs = [
        Run(run=1, attempt=1, pod_name="pod", pod_uid=str(end), end_time=end, result="Failed", reason="x")
        for end in ends
    ]
    ended = None if seconds is None else first + timedelta(seconds=seconds)
    assert is_counted(FineTuneJobStatus(history=runs), "another", ended) == is_known
    assert is_counted(FineTuneJobStatus(history=runs), runs[-1].pod_uid, None)


def test_a_late_end_of_an_earlier_attempt_is_a_run_of_that_attempt(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 0)
    one.complete("one-1")
    one.settle()
    assert one.status["attempts"] == 2
    one.end(one.pod("one-1"), 75)
    one.settle()
    assert [run["attempt"] for run in one.status["history"]] == [1, 1]


def test_a_late_failure_of_an_earlier_attempt_of_several_pods_is_its_only_one(scene: Any) -> None:
    one = scene(resources={"numNodes": 2}).to_training()
    first, second = one.set_of("one-1")
    one.settle()
    one.end(second, 1)
    one.end(first, 75, one.report("Preempted", reason="PeerLost"))
    one.fail("one-1", "BackoffLimitExceeded")
    one.settle()
    assert one.status["attempts"] == 2
    one.end(one.pod("one-1"), 1)
    one.settle()
    assert (one.status["runs"], one.status["failures"]) == (2, 1)


def test_progress_from_the_first_moment_of_a_run_is_that_of_its_unobserved_end(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    report = {"jobUID": "job-uid", "heartbeat": 1, "progress": {"step": 7, "resumedFromStep": 4}}
    one.reading = Reading(pod["metadata"]["uid"], one.now, ProgressReport.model_validate(report))
    one.settle()
    one.pods.clear()
    one.reading = None
    one.settle()
    one.now += timedelta(seconds=5)
    one.settle()
    run = one.status["history"][0]
    assert (run["lastStep"], run["resumedFromStep"]) == (7, 4)


@pytest.mark.parametrize(("nodes", "report", "is_start"), [(1, {}, True), (2, {}, False), (2, {"lastStep": 3}, True)])
def test_a_run_that_was_first_seen_ended_is_the_start_of_the_job_unless_it_may_have_waited(
    scene: Any, nodes: int, report: dict[str, int], is_start: bool
) -> None:
    one = scene(resources={"numNodes": nodes}).to_training()
    first, *_ = one.set_of("one-1", nodes, runs=False)
    one.end(first, 75, one.report("Preempted", **report))
    one.settle()
    assert one.status["runs"] == 1
    assert one.status.get("startTime") == ("2026-03-01T12:00:10Z" if is_start else None)


@pytest.mark.parametrize("keeps_label", [True, False])
@pytest.mark.parametrize("runs", [True, False])
def test_a_pod_whose_job_was_deleted_without_it_trains_alone_and_its_result_counts(
    scene: Any, runs: bool, keeps_label: bool
) -> None:
    """`kubectl delete job one-1 --cascade=orphan`; the garbage collector then removes the owner reference."""
    one = scene().to_training()
    pod = one.pod("one-1")
    if runs:
        one.run(pod)
    one.settle()
    del one.children["one-1"]
    pod["metadata"]["ownerReferences"] = []
    if not keeps_label:
        del pod["metadata"]["labels"][names.LABEL_CONTROLLER_UID]
    one.settle()
    if runs or keeps_label:
        assert list(one.children) == ["one-preflight"]
        one.run(pod)
        one.settle()
        one.end(pod, 0, one.published())
    for _ in range(3):
        one.now += timedelta(hours=1)
        one.settle()
    assert "currentRun" not in one.status
    assert (one.status["phase"] == "Succeeded") == keeps_label
