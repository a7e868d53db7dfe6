"""The series of jobs: their values, their closed label sets, and their removal with the job."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from scraped import read_scrape

from finetune_api.names import Phase
from finetune_operator.kube.objects import Key
from finetune_operator.metrics.job_collector import JobCollector
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
    for family in read_scrape(collector):
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
    assert {name.split()[0] for name in found} == known


def test_a_removed_job_has_no_series(scene: Build) -> None:
    one = scene()
    collector = JobCollector()
    collector.update(one.job)
    collector.remove(one.job.key)
    names = {sample.name for family in read_scrape(collector) for sample in family.samples}
    assert names == set()


def test_a_watch_without_events_counts_from_the_start() -> None:
    metrics = Metrics()
    metrics.prepare_scrape(7, {"pods": 5.0})
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
        samples = [sample for family in read_scrape(collector) for sample in family.samples]
        met += [sample.labels["reason"] for sample in samples if sample.name == "finetune_job_waiting"]
    assert met == ["PreflightRunning", "PodsStarting"]


EVALUATED = {
    "verdict": "Worse", "metric": "Loss", "before": 2.0, "after": 2.5, "difference": 0.5, "differenceLow": 0.3,
    "differenceHigh": 0.7, "rows": 40, "change": "+25 %", "gate": "NotMet", "mergeGate": "NotRun", "ggufGate": "NotMet",
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
        "gate_result GGUF NotMet": 1,
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


def ended(one: Any, kind: str = "Complete", reason: str = "Succeeded") -> Any:
    """The job at its end, at noon."""
    done = {"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": NOON}
    phase = "Succeeded" if kind == "Complete" else "Failed"
    one.object["status"] = {"phase": phase, "conditions": [done], "completionTime": NOON}
    return one.job


def test_a_job_that_ended_days_ago_has_a_series_for_its_phase_alone(scene: Build) -> None:
    """Alerts look back over hours, and read there that a phase has ended."""
    now = datetime(2026, 1, 3, tzinfo=UTC)
    collector = JobCollector(clock=lambda: now)
    collector.update(ended(scene()))

    def phases() -> int:
        samples = [sample for family in read_scrape(collector) for sample in family.samples]
        return sum(sample.name == "finetune_job_status_phase" for sample in samples)

    assert phases() == len(Phase)
    now += timedelta(days=1)
    assert phases() == 1


def test_a_finished_job_has_no_series_after_the_set_time_and_one_that_runs_keeps_them(scene: Build) -> None:
    now = datetime(2026, 1, 3, tzinfo=UTC)
    collector = JobCollector(clock=lambda: now, keeps_finished=timedelta(days=7))
    running = scene("two").job
    collector.update(ended(scene()))
    collector.update(running)
    now += timedelta(days=6)
    collector.remove_expired()
    assert len(collector) == 2
    now += timedelta(days=1)
    collector.remove_expired()
    assert collector.keys() == {running.key}
    collector.update(ended(scene()))  # the list after a restart of a watch has it again
    assert collector.keys() == {running.key}


def ends(metrics: Metrics) -> dict[str, float]:
    """The counter of ended jobs, by reason."""
    samples = [sample for family in read_scrape(metrics) for sample in family.samples]
    return {one.labels["reason"]: one.value for one in samples if one.name == "finetune_namespace_ended_jobs_total"}


def test_an_ended_job_is_counted_once_and_stays_in_the_counter_without_its_series(scene: Build) -> None:
    metrics = Metrics(timedelta(0))
    for name, kind, reason in (
        ("one", "Failed", "Diverged"),
        ("two", "Failed", "Diverged"),
        ("three", "Complete", "Succeeded"),
    ):
        metrics.jobs.update(scene(name).job)
        for _ in range(2):
            metrics.jobs.update(ended(scene(name), kind, reason))
    assert ends(metrics) == {"Diverged": 2, "Succeeded": 1}
    assert metrics.jobs.keys() == set()
    metrics.jobs.remove(scene("one").job.key)
    assert ends(metrics)["Diverged"] == 2


def test_a_job_that_an_earlier_process_saw_end_is_not_counted_again(scene: Build) -> None:
    metrics = Metrics()
    metrics.jobs.update(ended(scene()))
    assert ends(metrics) == {}


def test_a_scrape_has_the_format_of_the_client_library(scene: Build) -> None:
    """What is rendered here must be what the library renders of the same samples."""
    one = scene(objective="KTO", resources={"gpusPerNode": 4})
    one.object["status"] = {
        "failures": 1_000_000,
        "phase": "Training",
        "progress": {"percent": 7, "step": 123_456_789},
        "metrics": {"trainLoss": 1.25e-7, "evalLoss": 3.0},
        "dataset": {"rows": 5, "rejectedRowsByCode": {"BAD_JSON": 3}},
        "evaluation": EVALUATED,
        **TIMES,
    }
    collector, registry = JobCollector(), CollectorRegistry()
    collector.update(one.job)
    registry.register(Parsed(read_scrape(collector)))
    # The library sorts labels by name; their order has no meaning.
    assert sorted(map(sort_labels, collector.expose().splitlines())) == sorted(generate_latest(registry).splitlines())


class Parsed:
    """A collector of what was read."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def sort_labels(line: bytes) -> bytes:
    if line.startswith(b"#"):
        return line
    name, labels, value = re.split(rb"[{}]", line)
    return name + b"{" + b",".join(sorted(labels.split(b","))) + b"}" + value


def test_a_scrape_of_five_thousand_jobs_joins_what_was_rendered_before(scene: Build) -> None:
    """A ratio of processor time: a scrape that renders the series would take longer than the changes of all jobs."""
    metrics, job = Metrics(), scene().to_training().job
    started = time.process_time()
    for number in range(5_000):
        metrics.jobs.update(replace(job, key=Key("team", f"job-{number}")))
    rendered = time.process_time()
    text = metrics.expose()
    joined = time.process_time()
    assert text.count(b"finetune_job_info{") == 5_000
    assert joined - rendered < (rendered - started) / 3
