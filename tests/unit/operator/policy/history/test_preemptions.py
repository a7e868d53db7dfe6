"""A job may be preempted any number of times while it advances, and a limited number of times without a new
checkpoint."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.status import CheckpointStatus, FineTuneJobStatus
from finetune_operator.policy.history import preemptions
from finetune_operator.policy.history.preemptions import MOST_WITHOUT_PROGRESS


def checkpoint(step: int) -> dict[str, Any]:
    uri = f"s3://bucket/out/checkpoints/step-{step:06d}"
    return {"uri": uri, "step": step, "savedTime": "2026-01-01T00:00:00Z", "sha256": "cd" * 32}


def preempt(one: Any, step: int | None = None) -> None:
    """End a run by a preemption, with a checkpoint of that step, and write the status."""
    saved = {"checkpoint": checkpoint(step)} if step else {}
    one.end(one.pod("one-1"), 75, one.report("Preempted", **saved))
    one.now += timedelta(seconds=10)
    one.settle()


def test_a_job_is_preempted_without_limit_while_each_run_saves_a_new_checkpoint(scene: Any) -> None:
    one = scene().to_training()
    for step in range(1, 3 * MOST_WITHOUT_PROGRESS):
        preempt(one, step)
    assert one.status["preemptions"] == 3 * MOST_WITHOUT_PROGRESS - 1
    assert one.status["phase"] == "Starting"


@pytest.mark.parametrize("step", [None, 7], ids=["before the first checkpoint", "at the same checkpoint"])
def test_a_job_that_is_preempted_again_and_again_without_a_new_checkpoint_fails(scene: Any, step: int | None) -> None:
    one = scene().to_training()
    for _ in range(MOST_WITHOUT_PROGRESS):
        preempt(one, step)
    assert one.status["phase"] == "Starting"
    preempt(one, step)
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")
    assert one.status["message"].startswith(
        "The job was preempted too often: 21 preemptions without a new checkpoint; the last: Preempted: a sentence"
    )


def test_a_new_checkpoint_begins_the_count_again(scene: Any) -> None:
    one = scene().to_training()
    for step in [3] * MOST_WITHOUT_PROGRESS + [4] * MOST_WITHOUT_PROGRESS:
        preempt(one, step)
    assert one.status["phase"] == "Starting"
    preempt(one, 4)
    assert one.status["reason"] == "TooManyPreemptions"


def test_a_limit_of_the_job_counts_all_preemptions(scene: Any) -> None:
    one = scene(maxPreemptions=2).to_training()
    for step in (1, 2, 3):
        assert one.status["phase"] == "Starting"
        preempt(one, step)
    assert one.status["reason"] == "TooManyPreemptions"
    assert "3 preemptions, and maxPreemptions is 2; the last: Preempted: a sentence" in one.status["message"]


def test_a_limit_of_zero_ends_the_job_at_its_first_preemption_and_not_before(scene: Any) -> None:
    one = scene(maxPreemptions=0).to_training()
    one.end(one.pod("one-1"), 1)
    one.settle()
    assert (one.status["failures"], one.status["phase"]) == (1, "Starting")
    one.end(one.pod("one-1"), 75, one.report("Preempted"))
    one.settle()
    assert one.status["reason"] == "TooManyPreemptions"


def test_a_limit_that_is_raised_while_the_job_waits_for_gpus_is_used_at_once(scene: Any) -> None:
    one = scene(maxPreemptions=1).to_training()
    preempt(one)
    one.object["spec"]["maxPreemptions"] = 1000
    for _ in range(2 * MOST_WITHOUT_PROGRESS):
        preempt(one)
    assert one.status["phase"] == "Starting"


def test_preflight_without_a_limit_may_be_preempted_as_often_as_a_training_that_saves_nothing(scene: Any) -> None:
    one = scene()
    one.settle()
    for _ in range(MOST_WITHOUT_PROGRESS):
        one.end(one.pod("one-preflight"), 75)
    one.settle()
    assert one.status["phase"] == "Preflight"
    one.end(one.pod("one-preflight"), 75)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "TooManyPreemptions")


def test_preemptions_are_also_counted_by_reason() -> None:
    status = FineTuneJobStatus(checkpoint=CheckpointStatus.model_validate(checkpoint(3)))
    preemptions.add(status, "PreemptionByScheduler")
    preemptions.add(status, "PreemptionByScheduler")
    assert (status.preemptions, status.preemptions_by_reason) == (2, {"PreemptionByScheduler": 2})
