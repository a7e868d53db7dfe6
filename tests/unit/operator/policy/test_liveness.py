"""What the status reports about a trainer that runs but shows no progress."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport
from finetune_api.status import Progress
from finetune_operator.kube.observed import Reading
from finetune_operator.policy.liveness import describe_place

Build = Callable[..., Any]
BARE = {"gpusPerNode": 0, "requests": {}}


def running(one: Any) -> Any:
    """Start the trainer's pod."""
    one.to_training()
    one.run(one.pod("one-1"))
    one.settle()
    return one


def report(one: Any, heartbeat: int = 1, **progress: Any) -> None:
    """Poll the trainer, which answers."""
    body = {"jobUID": "job-uid", "heartbeat": heartbeat, "progress": {"stage": "Loading"} | progress}
    one.reading = Reading(next(reversed(one.pods)) + "-uid", one.now, ProgressReport.model_validate(body))
    one.settle()


def repeat(one: Any) -> None:
    """Poll the trainer again, which answers as before."""
    one.reading = Reading(one.reading.pod_uid, one.now, one.reading.report)
    one.settle()


def lose(one: Any, seconds: float) -> None:
    """Poll the trainer in vain for so long."""
    since = one.now
    one.now += timedelta(seconds=seconds)
    last = one.reading or Reading(next(reversed(one.pods)) + "-uid", since)
    one.reading = Reading(last.pod_uid, last.at, last.report, since, "TimeoutError: ")
    one.settle()


def message(one: Any) -> str:
    """Return what condition Running says."""
    found = one.condition("Running")
    assert found["status"] == "True"
    return str(found["message"])


def wire(time: datetime) -> str:
    """Return a time as in a status."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def test_a_trainer_that_has_just_started_has_not_reported_yet(scene: Build) -> None:
    one = running(scene())
    assert message(one) == "The trainer pod is running; no progress is reported yet."
    report(one)
    assert message(one) == "The trainer pod is running."


def test_a_restart_of_the_operator_changes_nothing_until_the_first_poll(scene: Build) -> None:
    one = running(scene(stallTimeoutSeconds=600))
    report(one, stage="Training", step=3, totalSteps=6)
    one.now += timedelta(seconds=300)
    repeat(one)
    shown, report_before = message(one), one.reading.report
    assert "without progress since" in shown
    one.reading = None
    one.settle()
    assert message(one) == shown
    one.reading = Reading(next(reversed(one.pods)) + "-uid", one.now, report_before)
    one.settle()
    assert message(one) == shown


def test_a_trainer_without_progress_shows_since_when_and_when_it_is_restarted(scene: Build) -> None:
    one = running(scene(stallTimeoutSeconds=600))
    began = one.now
    report(one, stage="Training", step=3, totalSteps=6)
    one.now += timedelta(seconds=119)
    repeat(one)
    assert message(one) == "The trainer pod is running."
    one.now += timedelta(seconds=1)
    repeat(one)
    assert message(one) == (
        f"The trainer pod is running, without progress since {wire(began)} (Training, step 3 of 6): a long step, row "
        f"or transfer, or a hang: see its log; it is restarted at {wire(began + timedelta(seconds=600))}, after "
        "stallTimeoutSeconds."
    )
    report(one, heartbeat=2, stage="Training", step=4, totalSteps=6)
    assert message(one) == "The trainer pod is running."


def test_the_text_about_a_silent_trainer_does_not_change_with_time(scene: Build) -> None:
    one = running(scene())
    report(one)
    found = set()
    for seconds in (120, 60, 300, 900):
        one.now += timedelta(seconds=seconds)
        repeat(one)
        found.add(message(one))
    assert len(found) == 1


def test_with_a_short_stall_timeout_silence_is_shown_before_the_restart(scene: Build) -> None:
    one = running(scene(stallTimeoutSeconds=20))
    report(one)
    one.now += timedelta(seconds=10)
    repeat(one)
    assert "without progress since" in message(one)


@pytest.mark.parametrize("is_answering", [True, False])
def test_a_pod_without_a_cpu_request_is_named_as_the_likely_cause(scene: Build, is_answering: bool) -> None:
    one = running(scene(resources=BARE))
    report(one)
    if is_answering:
        one.now += timedelta(seconds=120)
        repeat(one)
    else:
        lose(one, 60)
    assert "the pod requests no CPU, so that other pods of its node come first: set resources.requests" in message(one)


def test_an_unreachable_trainer_shows_since_when_and_its_last_report(scene: Build) -> None:
    one = running(scene())
    began = one.now
    report(one, stage="Training", step=3, totalSteps=6)
    one.now += timedelta(seconds=30)
    since = one.now
    lose(one, 60)
    shown = message(one)
    last = f"last report Training, step 3 of 6, at {wire(began)}"
    assert f"unreachable since {wire(since)}: TimeoutError: {last}" in shown
    one.now += timedelta(seconds=600)
    one.settle()
    assert message(one) == shown


def test_a_trainer_that_was_never_reached_shows_when_its_container_started(scene: Build) -> None:
    one = running(scene())
    started = one.status["currentRun"]["startTime"]
    lose(one, 60)
    assert f"no report since the container started at {started}" in message(one)


def test_the_last_report_is_not_that_of_an_earlier_run(scene: Build) -> None:
    one = running(scene())
    report(one, stage="Training", step=3, totalSteps=6)
    one.now += timedelta(seconds=100)
    one.end(one.pods[next(reversed(one.pods))], 75)
    one.settle()
    pod = one.pod("one-1")
    one.run(pod)
    pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = wire(one.now)
    one.reading = None
    one.settle()
    lose(one, 60)
    assert f"no report since the container started at {wire(one.now - timedelta(seconds=60))}" in message(one)


@pytest.mark.parametrize(
    ("progress", "place"),
    [
        ({}, "an unknown stage"),
        ({"stage": "Loading"}, "Loading"),
        ({"stage": "Training", "totalSteps": 6}, "Training, step 0 of 6"),
        ({"stage": "Training", "step": 3}, "Training, step 3"),
        ({"stage": "Training", "step": 3, "totalSteps": 6}, "Training, step 3 of 6"),
    ],
)
def test_a_place_has_what_is_known_of_stage_step_and_last_step(progress: dict[str, object], place: str) -> None:
    assert describe_place(Progress.model_validate(progress)) == place
