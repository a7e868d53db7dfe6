from collections.abc import Callable
from datetime import UTC, datetime

from plugin_world import ENDED

from finetune_client.cluster.job import Job
from kubectl_finetune.commands import timeline

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
Make = Callable[..., Job]


def test_a_timeline_has_the_runs_in_order_with_what_ended_them(job: Make) -> None:
    moments = timeline.moments(job(), NOW)
    assert [one.what for one in moments] == [
        *("created", "accepted", "validated", "run 1 (attempt 1) Preempted", "checkpoint", "run 2 (attempt 2) runs")
    ]
    assert moments[3].took == "10m00s"
    assert moments[3].detail == "Evicted; exit code 75; steps 0 to 40; on node-a; The node was low on memory."
    assert moments[3].row()[0] == "2026-03-01 12:03:00Z"
    assert moments[4].detail == "step 40"
    assert moments[5].took == "10m00s"
    assert moments[5].detail == "pod one-2-def; on node-b; resumed from step 40"


def test_a_reason_that_repeats_the_result_is_left_out(job: Make) -> None:
    run = {"run": 2, "attempt": 1, "podName": "p", "podUID": "u", "result": "Failed", "reason": "Failed", "lastStep": 9}
    (moment,) = [
        one for one in timeline.moments(job(history=[run | {"resumedFromStep": 4}]), NOW) if "Failed" in one.what
    ][:1]
    assert (moment.what, moment.detail) == ("run 2 (attempt 1) Failed", "steps 4 to 9")
    assert moment.row()[:2] == ("-", "-")


def test_the_current_run_has_its_pod_its_node_and_why_it_is_being_stopped(job: Make) -> None:
    run = {"attempt": 1, "podName": "p", "podUID": "u", "nodeName": "n", "startTime": "2026-03-01T12:29:00Z"}
    moments = timeline.moments(job(currentRun=run | {"stoppingReason": "Suspended"}, runs=None, progress={}), NOW)
    (found,) = [one for one in moments if one.what == "run 1 (attempt 1) runs"]
    assert found.detail == "pod p; on n; stopping: Suspended"
    new = {"attempt": 1, "podName": "p", "podUID": "u"}
    (found,) = [one for one in timeline.moments(job(currentRun=new, progress=None), NOW) if "runs" in one.what]
    assert (found.took, found.detail) == ("-", "pod p")


def test_an_ended_job_has_its_end_last_and_how_long_it_took(job: Make) -> None:
    done = timeline.moments(job(phase="Succeeded", conditions=ENDED, currentRun=None), NOW)[-1]
    assert (done.what, done.took, done.detail) == ("complete", "25m00s", "Published to s3://b/out.")
    done = timeline.moments(job(conditions=ENDED, completionTime="2026-03-01T12:26:00Z"), NOW)[-1]
    assert done.took == "26m00s"


def test_a_moment_without_a_time_comes_last(job: Make) -> None:
    run = {"run": 1, "attempt": 1, "podName": "p", "podUID": "u", "result": "Failed", "reason": "Failed"}
    assert timeline.moments(job(history=[run]), NOW)[-1].what == "run 1 (attempt 1) Failed"
