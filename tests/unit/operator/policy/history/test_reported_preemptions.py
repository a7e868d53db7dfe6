"""Runs that ended while the operator was down, reported by a later one: each counts once, as a preemption."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.handoff import ProgressReport
from finetune_api.runs import StoppedRun
from finetune_api.status import Progress
from finetune_operator.kube.observed import Reading

BEFORE = datetime(2026, 3, 1, 11, 0, 0, tzinfo=UTC)
"""Some time before any pod of the scene."""


def stamp(seconds: int) -> str:
    return (BEFORE + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def stopped(number: int, uid: str = "", attempt: int = 1) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "podName": f"unseen-{number}",
        "podUID": uid or f"unseen-{number}-uid",
        "startTime": stamp(10 * number),
        "endTime": stamp(10 * number + 5),
        "lastStep": 7 * number,
    }


def answer(one: Any, pod: Any, *runs: dict[str, Any]) -> None:
    """What the running trainer says at `/progress`."""
    report = ProgressReport(
        job_uid="job-uid",
        heartbeat=1,
        progress=Progress(step=1),
        stopped_runs=[StoppedRun.model_validate(run) for run in runs],
    )
    one.reading = Reading(pod["metadata"]["uid"], one.now, report)


def test_an_unobserved_pod_is_a_preemption_once_the_next_one_reports_it(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    answer(one, pod, stopped(1))
    for _ in range(3):
        one.settle()
    run = one.status["history"][0]
    assert (run["podName"], run["result"], run["reason"], run["exitCode"], run["lastStep"]) == (
        "unseen-1", "Preempted", "Unobserved", 75, 7,
    )  # fmt: skip
    assert (one.status["preemptions"], one.status["runs"], one.status["activeSeconds"]) == (1, 1, 5)
    assert one.status["currentRun"]["podName"] == pod["metadata"]["name"]


def test_a_run_that_is_reported_late_takes_its_place_in_the_history(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    answer(one, pod, stopped(3))
    one.settle()
    answer(one, pod, stopped(1), stopped(3))
    one.settle()
    assert [run["podName"] for run in one.status["history"]] == ["unseen-1", "unseen-3"]


def test_a_run_whose_end_was_seen_is_not_counted_again(scene: Any) -> None:
    one = scene().to_training()
    one.end(one.pod("one-1"), 75)
    one.settle()
    seen = one.status["history"][0]
    pod = one.pod("one-1")
    one.run(pod)
    answer(one, pod, stopped(1, uid=seen["podUID"]))
    one.settle()
    assert (one.status["preemptions"], one.status["history"]) == (1, [seen])


def test_the_run_during_which_the_operator_stopped_counts_once(scene: Any) -> None:
    one = scene().to_training()
    first = one.pod("one-1")
    one.run(first)
    one.settle()
    del one.pods[first["metadata"]["name"]]
    last = one.pod("one-1", "one-1-last")
    one.run(last)
    answer(one, last, stopped(1, uid=first["metadata"]["uid"]), stopped(2))
    one.settle()
    assert one.status["preemptions"] == one.status["runs"] == 2
    assert {run["podName"] for run in one.status["history"]} == {first["metadata"]["name"], "unseen-2"}


def test_the_last_report_counts_too(scene: Any) -> None:
    one = scene().to_training()
    artifacts = {"uri": "s3://bucket/out", "manifestSHA256": "ab" * 32}
    one.end(one.pod("one-1"), 0, one.report("Published", artifacts=artifacts, stoppedRuns=[stopped(1), stopped(2)]))
    one.complete("one-1")
    one.settle()
    assert [run["result"] for run in one.status["history"]] == ["Preempted", "Preempted", "Succeeded"]
    assert (one.status["preemptions"], one.status["runs"], one.status.get("failures", 0)) == (2, 3, 0)


def test_more_than_the_history_holds_are_counted_once_each(scene: Any) -> None:
    one = scene(maxPreemptions=1000).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    answer(one, pod, *[stopped(number) for number in range(1, 26)])
    for _ in range(3):
        one.settle()
    assert (one.status["preemptions"], one.status["runs"], len(one.status["history"])) == (25, 25, 10)


def test_runs_that_are_reported_late_are_in_order_and_none_counts_twice(scene: Any) -> None:
    one = scene(maxPreemptions=1000).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    answer(one, pod, stopped(2))
    one.settle()
    everything = [stopped(1), stopped(2)]
    answer(one, pod, *everything)
    one.settle()
    assert [run["podName"] for run in one.status["history"]] == ["unseen-1", "unseen-2"]
    for number in range(3, 16):
        everything.append(stopped(number))
        answer(one, pod, *everything)
        one.settle()
    assert (one.status["preemptions"], one.status["runs"]) == (15, 15)


def test_a_report_of_an_attempt_that_does_not_exist_counts_nothing(scene: Any) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    answer(one, pod, stopped(1, attempt=2), stopped(2, attempt=0))
    one.settle()
    assert (one.status.get("preemptions", 0), one.status.get("history", [])) == (0, [])


def test_the_limit_on_preemptions_includes_unobserved_ones(scene: Any) -> None:
    one = scene(maxPreemptions=2).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    answer(one, pod, *[stopped(number) for number in range(1, 4)])
    one.settle()
    assert one.condition("Failed")["reason"] == "TooManyPreemptions"


def test_of_several_pods_the_runs_of_the_first_are_reported(scene: Any) -> None:
    one = scene(resources={"numNodes": 2, "gpusPerNode": 0}).to_training()
    first, _ = one.set_of("one-1")
    one.settle()
    one.pods.clear()
    last, _ = one.set_of("one-1")
    for number, pod in enumerate(one.pods.values()):
        pod["metadata"]["uid"] = f"last-{number}"
    answer(one, last, stopped(1, uid=first["metadata"]["uid"]), stopped(2))
    for _ in range(3):
        one.settle()
    assert {run["podName"]: run["reason"] for run in one.status["history"]} == {
        first["metadata"]["name"]: "Unobserved", "unseen-2": "Unobserved",
    }  # fmt: skip
    assert (one.status["preemptions"], one.status["runs"]) == (2, 2)
