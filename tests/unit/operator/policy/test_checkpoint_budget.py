"""A save that takes longer than a trainer has to end is a warning before any work is lost."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_api.handoff import ProgressReport
from finetune_operator.controller import events
from finetune_operator.kube.observed import Reading

Build = Callable[..., Any]


def trained(scene: Build, seconds: float | None, **spec: Any) -> Any:
    """A job whose running trainer has saved a checkpoint in that many seconds."""
    one = scene(**spec).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    saved = {
        "uri": "s3://bucket/out/checkpoints/step-000200",
        "step": 200,
        "savedTime": datetime(2026, 3, 1, 12, tzinfo=UTC).isoformat(),
        "sha256": "ab" * 32,
        "saveSeconds": seconds,
    }
    body = {"jobUID": "job-uid", "heartbeat": 5, "progress": {"step": 200}, "checkpoint": saved}
    one.reading = Reading(pod["metadata"]["uid"], one.now, ProgressReport.model_validate(body))
    return one


def test_nothing_is_known_before_the_first_checkpoint(scene: Build) -> None:
    one = scene().to_training()
    assert (one.condition("GracePeriodSufficient")["status"], one.condition("GracePeriodSufficient")["reason"]) == (
        "Unknown",
        "NoCheckpoint",
    )


def test_a_checkpoint_whose_save_was_not_timed_leaves_it_unknown(scene: Build) -> None:
    one = trained(scene, None)
    one.settle()
    assert one.status["checkpoint"]["step"] == 200
    assert one.condition("GracePeriodSufficient")["reason"] == "NoCheckpoint"


@pytest.mark.parametrize(("seconds", "status"), [(3.2, "True"), (48.0, "True"), (48.1, "False"), (300.0, "False")])
def test_a_save_may_take_four_fifths_of_the_grace_period(scene: Build, seconds: float, status: str) -> None:
    one = trained(scene, seconds, checkpoint={"gracePeriodSeconds": 60})
    one.settle()
    assert one.condition("GracePeriodSufficient")["status"] == status


def test_a_slow_save_is_one_event_that_names_what_to_raise(scene: Build) -> None:
    one = trained(scene, 95.0, checkpoint={"gracePeriodSeconds": 60})
    before = one.job.status
    one.settle()
    slow = one.job.status
    (event,) = events.derive_events(before, slow)
    assert (event.reason, event.is_warning) == ("SaveTooSlow", True)
    assert event.message.startswith(
        "Saving step 200 took 95 s, and the grace period is 60 s: raise checkpoint.gracePeriodSeconds to 190 "
    )
    one.settle()
    assert events.derive_events(slow, one.job.status) == []


def test_the_grace_period_is_the_one_that_the_running_job_was_created_with(scene: Build) -> None:
    one = trained(scene, 95.0, checkpoint={"gracePeriodSeconds": 60})
    one.object["spec"]["checkpoint"] = {"gracePeriodSeconds": 600}
    one.settle()
    assert one.condition("GracePeriodSufficient")["reason"] == "SaveTooSlow"


@pytest.mark.parametrize(
    ("seconds", "status", "advice"),
    [(11.0, "True", ""), (14.0, "False", "15 s: lower checkpoint.steps"), (50.0, "False", "15 s: lower")],
)
def test_a_node_that_leaves_less_time_than_the_grace_period_decides(
    scene: Build, settings: Any, seconds: float, status: str, advice: str
) -> None:
    one = trained(scene, seconds, checkpoint={"gracePeriodSeconds": 60})
    one.settings = settings.model_copy(update={"node_shutdown_seconds": 15})
    one.settle()
    found = one.condition("GracePeriodSufficient")
    assert found["status"] == status
    assert "the grace period is 60 s, of which a node that shuts down leaves 15 s" in found["message"]
    assert advice in found["message"]
    one.settings = settings.model_copy(update={"node_shutdown_seconds": 600})
    one.settle()
    assert "a node that shuts down" not in one.condition("GracePeriodSufficient")["message"]
