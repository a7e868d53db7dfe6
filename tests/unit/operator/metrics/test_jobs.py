"""The series of jobs: their values, their closed label sets, and their removal with the job."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.names import Phase
from finetune_operator.metrics.jobs import JobCollector
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy.history.counters import KNOWN

Build = Callable[..., Any]
TIMES = {"eligibleTime": "2026-01-02T10:00:00Z", "startTime": "2026-01-02T10:05:30Z"}
NOON = "2026-01-02T12:00:00Z"
DATASET = {"train": {"uri": "s3://bucket/rows.jsonl"}}


def series(one: Any, **status: Any) -> dict[str, float]:
    """The samples of a job with that status, by name and the label that is not the job's."""
    one.object["status"] = status
    collector = JobCollector()
    collector.update(one.job)
    found = {}
    for family in collector.collect():
        for sample in family.samples:
            others = [value for name, value in sample.labels.items() if name not in {"namespace", "name"}]
            found[" ".join([sample.name.removeprefix("finetune_job_"), *others])] = sample.value
    return found


def test_failures_and_preemptions_are_counted_by_reason(scene: Build) -> None:
    found = series(
        scene(),
        failures=3,
        failuresByReason={"OutOfMemory": 2, "ContainerError": 1},
        preemptions=1,
        preemptionsByReason={"EvictionByEvictionAPI": 1},
    )
    assert (found["failures_total OutOfMemory"], found["failures_total ContainerError"]) == (2, 1)
    assert found["preemptions_total EvictionByEvictionAPI"] == 1
    assert "failures_total Unknown" not in found


def test_what_an_earlier_operator_counted_without_a_reason_is_not_lost(scene: Build) -> None:
    found = series(scene(), failures=3, failuresByReason={"OutOfMemory": 1})
    assert (found["failures_total OutOfMemory"], found["failures_total Unknown"]) == (1, 2)


def test_an_unknown_reason_is_counted_as_other(scene: Build) -> None:
    found = series(scene(), preemptions=3, preemptionsByReason={"Whim": 1, "Mood": 1, "Preempted": 1})
    assert found["preemptions_total Other"] == 2
    assert [name for name in found if "Whim" in name or "Mood" in name] == []


def test_the_waiting_time_is_known_at_its_end_and_its_start_at_once(scene: Build) -> None:
    waiting = series(scene(), eligibleTime=TIMES["eligibleTime"])
    assert "start_wait_seconds" not in waiting
    assert waiting["eligible_timestamp_seconds"] == 1767348000
    assert series(scene(), **TIMES)["start_wait_seconds"] == 330


def test_time_is_summed_over_ended_runs_and_over_the_gpus_of_all_pods(scene: Build) -> None:
    found = series(scene(resources={"gpusPerNode": 4, "numNodes": 2}), activeSeconds=60, gpuSeconds=480)
    assert (found["active_seconds_total"], found["gpu_seconds_total"], found["gpus"]) == (60, 480, 8)


def test_only_a_finally_failed_job_has_a_failure_reason(scene: Build) -> None:
    condition = {"type": "Failed", "message": "no", "lastTransitionTime": TIMES["startTime"]}
    failed = series(scene(), conditions=[condition | {"status": "True", "reason": "Diverged"}])
    assert failed["failed Diverged"] == 1
    well = series(scene(), conditions=[condition | {"status": "False", "reason": "Progressing"}])
    assert [name for name in well if name.startswith("failed ")] == []


def test_a_job_that_saves_no_checkpoints_has_the_value_zero(scene: Build) -> None:
    assert series(scene())["saves_checkpoints"] == 1
    assert series(scene(checkpoint={"resumePolicy": "Never"}))["saves_checkpoints"] == 0


def test_an_unknown_value_has_no_series(scene: Build) -> None:
    found = series(scene())
    known = {"info", "status_phase", "gpus", "saves_checkpoints", "must_improve"}
    assert {name.split()[0] for name in found} == known | {"finetune_namespace_gpu_seconds_total"}


def test_a_removed_job_has_no_series(scene: Build) -> None:
    one = scene()
    collector = JobCollector()
    collector.update(one.job)
    collector.remove(one.job.key)
    names = {sample.name for family in collector.collect() for sample in family.samples}
    assert names == {"finetune_namespace_gpu_seconds_total"}


def test_a_watch_without_events_counts_from_the_start() -> None:
    metrics = Metrics()
    metrics.update_gauges(7, {"pods": 5.0})
    value = metrics.registry.get_sample_value
    assert value("finetune_operator_queue_depth") == 7
    assert value("finetune_operator_last_event_timestamp_seconds", {"resource": "pods"}) == 5
    started = value("finetune_operator_last_event_timestamp_seconds", {"resource": "finetunejobs"})
    assert started
    assert started > 1.7e9


@pytest.mark.parametrize(
    ("code", "reason", "result"),
    [(137, "OutOfMemory", "failures"), (1, "ContainerError", "failures"), (75, "Preempted", "preemptions")],
)
def test_each_counted_run_is_counted_by_its_reason_too(scene: Build, code: int, reason: str, result: str) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.end(pod, code, reason="OOMKilled" if code == 137 else "Error")
    one.settle()
    assert one.status[result] == 1
    assert one.status[f"{result}ByReason"] == {reason: 1}


def test_an_ended_run_adds_its_time_once_for_each_gpu_of_its_job(scene: Build) -> None:
    one = scene(resources={"gpusPerNode": 3}).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.end(pod, 1)
    one.settle()
    assert one.status["gpuSeconds"] == 3 * one.status["activeSeconds"] > 0


def waits(phase: str, reason: str, running: str = "False") -> dict[str, Any]:
    condition = {"type": "Running", "status": running, "reason": reason, "message": "m"}
    return {
        "phase": phase,
        "reason": reason,
        "conditions": [condition | {"lastTransitionTime": TIMES["startTime"]}],
    }


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        ("Pending", "WaitingForParent"),
        ("Pending", "Forbidden"),
        ("Preflight", "PreflightRunning"),
        ("Preflight", "ImagePullFailed"),
        ("Queued", "WaitingForQuota"),
        ("Queued", "QueueStopped"),
        ("Starting", "Unschedulable"),
        ("Starting", "BackingOff"),
        ("Suspended", "UserRequested"),
        ("Merging", "Unschedulable"),
    ],
)
def test_a_waiting_job_has_a_series_with_the_reason(scene: Build, phase: str, reason: str) -> None:
    found = series(scene(), **waits(phase, reason))
    assert {name: value for name, value in found.items() if name.startswith("waiting")} == {f"waiting {reason}": 1}


@pytest.mark.parametrize("phase", ["Training", "Merging", "Publishing", "Succeeded", "Failed"])
def test_a_job_that_runs_or_has_ended_does_not_wait(scene: Build, phase: str) -> None:
    found = series(scene(), **waits(phase, "PodsRunning", running="True"))
    assert [name for name in found if name.startswith("waiting")] == []


def test_the_reasons_of_waiting_are_a_closed_set(scene: Build) -> None:
    assert "waiting Other" in series(scene(), **waits("Queued", "SomeControllersOwnReason"))
    assert {"WaitingForParent", "WaitingForQuota", "Unschedulable", "UserRequested"} <= KNOWN


def test_each_state_on_the_way_to_training_is_waiting_with_its_reason(scene: Build) -> None:
    one = scene()
    met = []
    for step in (one.settle, one.to_training):
        step()
        collector = JobCollector()
        collector.update(one.job)
        samples = [sample for family in collector.collect() for sample in family.samples]
        met += [sample.labels["reason"] for sample in samples if sample.name == "finetune_job_waiting"]
    assert met == ["PreflightRunning", "PodsStarting"]


EVALUATED = {
    "verdict": "Worse", "metric": "Loss", "before": 2.0, "after": 2.5, "difference": 0.5, "differenceLow": 0.3,
    "differenceHigh": 0.7, "rows": 40, "change": "+25 %", "gate": "NotMet", "mergeGate": "NotRun",
}  # fmt: skip


def test_a_result_has_its_verdict_the_difference_with_its_interval_and_the_gates(scene: Build) -> None:
    found = series(scene(), evaluation=EVALUATED)
    results = ("verdict", "difference", "gate_")
    assert {name: value for name, value in found.items() if name.startswith(results)} == {
        "verdict Worse": 1,
        "difference Loss": 0.5,
        "difference_low Loss": 0.3,
        "difference_high Loss": 0.7,
        "gate_result Evaluation NotMet": 1,
        "gate_result FullModel NotRun": 1,
        "gate_passed": 0,
    }


def test_a_gate_that_is_not_configured_and_words_outside_the_closed_sets_have_no_series(scene: Build) -> None:
    strange = {"verdict": "Superb", "metric": "Charm", "difference": 1.0, "gate": "NotConfigured", "merged": "Shrug"}
    found = series(scene(), evaluation=strange)
    assert [name for name in found if name.startswith(("verdict", "difference", "gate_result"))] == []


def test_whether_a_job_must_improve_is_known_from_its_spec(scene: Build) -> None:
    gate = {"evaluation": {"gate": {"mustImprove": True}}, "dataset": {**DATASET, "validationSplitPercent": 10}}
    assert series(scene(**gate))["must_improve"] == 1
    assert series(scene())["must_improve"] == 0


def test_a_job_that_ended_days_ago_has_a_series_for_its_phase_alone(scene: Build) -> None:
    """Alerts look back over hours, and read there that a phase has ended."""
    one = scene()
    now = datetime(2026, 1, 3, tzinfo=UTC)
    done = {
        "type": "Complete",
        "status": "True",
        "reason": "R",
        "message": "",
        "lastTransitionTime": TIMES["startTime"],
    }
    one.object["status"] = {"phase": "Succeeded", "conditions": [done], "completionTime": NOON}
    collector = JobCollector(clock=lambda: now)
    collector.update(one.job)

    def phases() -> int:
        return sum(sample.name == "finetune_job_status_phase" for one in collector.collect() for sample in one.samples)

    assert phases() == len(Phase)
    now += timedelta(days=1)
    assert phases() == 1
