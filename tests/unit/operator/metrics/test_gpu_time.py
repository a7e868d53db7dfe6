"""The counter of GPU time by namespace: what counts, restarts of the operator, deleted jobs, and late news."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.metrics.gpu_time import GpuTime

Build = Callable[..., Any]
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPEC = {
    "objective": "Chat",
    "model": {"uri": "s3://bucket/model"},
    "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
    "output": {"uri": "s3://bucket/out"},
}


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Clock:
    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.seconds)


def job(
    name: str = "one", namespace: str = "team", *, uid: str = "", gpus: int = 4, nodes: int = 1, **status: Any
) -> FineTuneJob:
    meta = {"namespace": namespace, "name": name, "uid": uid or f"{namespace}-{name}"}
    spec = SPEC | {"resources": {"gpusPerNode": gpus, "numNodes": nodes}}
    return FineTuneJob.from_object({"metadata": meta, "spec": spec, "status": status})


def running(since: float, number: int = 1, **more: Any) -> dict[str, Any]:
    """Return the status of a job whose pod has run since then."""
    run = {"attempt": number, "podName": f"p{number}", "podUID": f"p{number}", "startTime": at(since)}
    return {"currentRun": run, **more}


def ended(*runs: tuple[float, float], gpus: int = 4, **more: Any) -> dict[str, Any]:
    """Return the status of a job whose runs have ended."""
    history = [
        {
            "run": number, "attempt": number, "podName": f"p{number}", "podUID": f"p{number}", "startTime": at(start),
            "endTime": at(end), "result": "Succeeded", "reason": "Succeeded",
        }
        for number, (start, end) in enumerate(runs, 1)
    ]  # fmt: skip
    seconds = int(sum(end - start for start, end in runs))
    return {"history": history, "runs": len(runs), "activeSeconds": seconds, "gpuSeconds": seconds * gpus, **more}


def shown(counter: GpuTime, namespace: str = "team") -> float | None:
    values = {sample.labels["namespace"]: sample.value for sample in counter.collect().samples}
    return values.get(namespace)


def test_the_counter_grows_while_a_trainer_runs_and_is_exact_at_its_end() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    counter.update(job())
    assert shown(counter) == 0
    counter.update(job(**running(10)))
    clock.seconds = 40
    assert shown(counter) == 4 * 30
    clock.seconds = 110
    counter.update(job(**ended((10, 110))))
    clock.seconds = 500
    assert shown(counter) == 4 * 100


def test_gpus_are_those_of_all_pods() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    counter.update(job(gpus=8, nodes=2, **running(0)))
    clock.seconds = 10
    assert shown(counter) == 160


def test_an_edit_of_the_spec_changes_nothing_of_the_run_before_it() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    status = running(0)
    status["currentRun"]["gpus"] = 1
    counter.update(job(gpus=1, **status))
    clock.seconds = 100
    counter.update(job(gpus=8, **status))
    assert shown(counter) == 100


def test_the_time_of_a_deleted_job_is_kept_and_a_new_one_of_its_name_adds_to_it() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    counter.update(job(**running(0)))
    clock.seconds = 10
    counter.remove(Key("team", "one"))
    clock.seconds = 20
    assert shown(counter) == 40
    counter.update(job(uid="another", **running(20)))
    clock.seconds = 25
    assert shown(counter) == 60
    counter.update(job(uid="a-third", **running(25)))
    clock.seconds = 26
    assert shown(counter) == 64


def test_preflight_waiting_and_merging_hold_no_gpu() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    counter.update(job(phase="Preflight"))
    clock.seconds = 50
    counter.update(job(phase="Queued"))
    stored = {"uri": "s3://b/x", "step": 1, "savedTime": at(0), "sha256": "ab" * 32}
    counter.update(job(trained=stored, **running(0)))
    clock.seconds = 100
    counter.update(job(trained=stored, **ended((0, 100), gpus=0)))
    assert shown(counter) == 0


def test_a_restarted_operator_starts_at_zero_and_counts_no_second_again() -> None:
    clock = Clock()
    first = GpuTime(clock)
    first.update(job(**running(0)))
    clock.seconds = 100
    before = shown(first)
    second = GpuTime(clock)
    second.update(job(**running(0)))
    assert (before, shown(second)) == (400, 0)
    clock.seconds = 130
    second.update(job(**ended((0, 130))))
    assert shown(second) == 120
    third = GpuTime(clock)
    third.update(job(**ended((0, 130))))
    assert shown(third) == 0


def test_a_run_that_ended_while_no_operator_ran_is_not_counted_and_the_next_one_is() -> None:
    clock = Clock(200)
    counter = GpuTime(clock)
    counter.update(job(**running(0)))
    clock.seconds = 210
    counter.update(job(**ended((0, 150))))
    counter.update(job(**running(210, 2, **ended((0, 150)))))
    clock.seconds = 300
    counter.update(job(**ended((0, 150), (210, 300))))
    assert shown(counter) == pytest.approx(4 * 90)


def test_an_event_from_before_the_operators_own_write_is_not_counted_twice() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    old, new = job(**running(0)), job(**ended((0, 100)))
    counter.update(old)
    clock.seconds = 100
    counter.update(new)
    counter.update(old)
    clock.seconds = 150
    assert shown(counter) == 400
    counter.update(new)
    assert shown(counter) == 400


def test_the_counter_never_decreases_although_a_pod_ended_before_that_was_observed() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    counter.update(job(**running(0)))
    clock.seconds = 110
    assert shown(counter) == 440
    counter.update(job(**ended((0, 100))))
    assert shown(counter) == 440
    counter.update(job(**running(110, 2, **ended((0, 100)))))
    clock.seconds = 130
    assert shown(counter) == 480


def test_a_pod_that_is_missing_counts_until_then_and_one_of_an_ended_job_until_its_end() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    gone = running(0)
    gone["internal"] = {"podMissingSinceTime": at(20)}
    counter.update(job(**gone))
    condition = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "m"}
    failed = [condition | {"lastTransitionTime": at(30)}]
    counter.update(job("two", "other", **running(0, conditions=failed, completionTime=at(30))))
    clock.seconds = 500
    assert (shown(counter), shown(counter, "other")) == (80, 120)


def test_a_job_in_a_new_namespace_may_begin_at_any_moment_of_a_scrape() -> None:
    """A scrape runs in a thread: the event loop may add a job between any two of its lines."""
    clock = Clock()
    counter, lines = GpuTime(clock), 0

    def add_job(frame: Any, *_: Any) -> Any:
        nonlocal lines
        if frame.f_code is GpuTime.collect.__code__ and lines < 100:
            lines += 1
            counter.update(job(namespace=f"team-{lines}", **running(0)))
        return add_job

    before = sys.gettrace()
    sys.settrace(add_job)
    try:
        counter.collect()
    finally:
        sys.settrace(before)
    clock.seconds = 10
    assert lines > 3
    assert [shown(counter, f"team-{number}") for number in range(1, lines + 1)] == [4 * 10] * lines


def test_a_job_whose_spec_cannot_be_read_counts_its_ended_runs() -> None:
    clock = Clock()
    counter = GpuTime(clock)
    counter.update(replace(job(**running(0)), spec=None))
    clock.seconds = 10
    assert shown(counter) == 0
    counter.update(replace(job(**ended((0, 10))), spec=None))
    assert shown(counter) == 40


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 200)), min_size=1, max_size=8),
    restarts=st.sets(st.integers(1, 1500), max_size=4),
    pace=st.integers(20, 90),
)
def test_over_any_restarts_the_increases_are_the_time_that_trainers_ran(
    lengths: list[tuple[int, int]], restarts: set[int], pace: int
) -> None:
    """Scraped at every moment at which something happens, the increases add up to the recorded time."""
    clock, now = Clock(), 0
    counter, total, last = GpuTime(clock), 0.0, 0.0
    runs: list[tuple[float, float]] = []
    counter.update(job())

    def scrape() -> None:
        nonlocal total, last
        value = shown(counter) or 0.0
        assert value >= last
        total, last = total + value - last, value

    for pause, length in lengths:
        begin = now + pause
        for moment in sorted({*range(begin, begin + length, pace), begin + length, *restarts}):
            if not begin <= moment <= begin + length:
                continue
            clock.seconds = moment
            state = running(begin, len(runs) + 1, **ended(*runs))
            counter.update(job(**state))
            scrape()
            if moment in restarts:
                counter, last = GpuTime(clock), 0.0
                counter.update(job(**state))
        now = begin + length
        runs.append((begin, now))
        counter.update(job(**ended(*runs)))
        scrape()
    assert total == pytest.approx(4 * sum(length for _, length in lengths))
