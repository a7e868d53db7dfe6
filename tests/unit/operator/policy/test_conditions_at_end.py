"""The messages of the conditions of an ended job: none describes a job that still runs."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.names import ConditionType, Reason
from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy.conditions import MESSAGES, MESSAGES_AT_END, Conditions

C, R = ConditionType, Reason
Build = Callable[..., Any]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OUTLOOK = re.compile(
    r"\b(yet|still|may run|is checking|is starting|is running|is saving|waits|waiting|then (continues|starts)|"
    r"is suspended|next attempt|next run|must resume|not finished|has not)\b",
    re.IGNORECASE,
)
"""Words about a job that has not ended."""
NEVER_AT_END = {
    *(
        (C.RUNNING, reason)
        for kind, reason in MESSAGES
        if kind is C.RUNNING and reason not in {R.FINISHED, R.NOT_STARTED}
    ),
    *((C.QUOTA_RESERVED, reason) for kind, reason in MESSAGES if kind is C.QUOTA_RESERVED),
    *((C.QUEUED, reason) for kind, reason in MESSAGES if kind is C.QUEUED and reason != R.NOT_QUEUED),
    (C.COMPLETE, R.PROGRESSING),
    (C.FAILED, R.PROGRESSING),
}
"""Condition Running has one of two reasons at the end, QuotaReserved is removed, Queued is False, and Complete and
Failed are decided."""


def closed(*facts: tuple[C, Any, str]) -> FineTuneJobStatus:
    one = Conditions(FineTuneJobStatus(), 1, NOW)
    one.set_initial(early_stopping=True)
    for kind, truth, reason in facts:
        one.set(kind, truth, reason, "a detail")
    one.close()
    return one.status


@pytest.mark.parametrize(("kind", "reason"), sorted(set(MESSAGES) - NEVER_AT_END, key=str), ids=str)
def test_no_message_of_an_ended_job_describes_a_running_one(kind: C, reason: str) -> None:
    found = closed((kind, "False", reason)).condition(kind)
    assert found is not None
    assert not OUTLOOK.search(found.message), found.message
    assert found.reason == reason


def test_every_message_for_the_end_replaces_one_that_a_job_can_have() -> None:
    assert set(MESSAGES_AT_END) <= {*MESSAGES, (C.VALIDATED, R.PENDING)}
    assert not set(MESSAGES_AT_END) & NEVER_AT_END


def test_status_reason_and_transition_time_stay_and_the_queue_is_left() -> None:
    one = Conditions(FineTuneJobStatus(), 1, NOW)
    one.set_initial(early_stopping=True)
    one.set(C.QUOTA_RESERVED, "False", R.WAITING_FOR_QUOTA, "Job one-1 waits in queue team")
    one.now += timedelta(seconds=90)
    before = {each.type: (each.status, each.reason, each.last_transition_time) for each in one.status.conditions or []}
    one.close()
    after = {each.type: (each.status, each.reason, each.last_transition_time) for each in one.status.conditions or []}
    assert after == {kind: values for kind, values in before.items() if kind != C.QUOTA_RESERVED}


@pytest.mark.parametrize("reason", [R.QUEUED_BY_KUEUE, R.JOB_SUSPENDED])
def test_an_ended_job_is_in_no_queue(reason: R) -> None:
    found = closed((C.QUEUED, "True", reason)).condition(C.QUEUED)
    assert found is not None
    assert (found.status, found.reason) == ("False", R.NOT_QUEUED)


def messages(one: Any) -> dict[str, str]:
    return {each["type"]: each["message"] for each in one.status["conditions"]}


def require_closed(one: Any, phase: str) -> dict[str, str]:
    """Return the messages of an ended job, of which none describes one that still runs."""
    assert one.status["phase"] == phase
    found = messages(one)
    assert {kind: text for kind, text in found.items() if OUTLOOK.search(text.partition("; the last state: ")[0])} == {}
    return found


def test_the_loss_of_a_succeeded_job_is_not_still_falling(scene: Build) -> None:
    one = scene(earlyStopping={"patience": 3}).to_training()
    assert messages(one)["EarlyStopped"] == "The training is not evaluated yet."
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.end(pod, 0, one.published())
    one.complete("one-1")
    one.settle()
    found = require_closed(one, "Succeeded")
    assert found["EarlyStopped"] == "Early stopping did not end the training."
    assert found["Running"] == "The trainer has ended."
    assert (found["Accepted"], found["Suspended"]) == (
        "The job was allowed to run here.",
        "The job was not suspended when it ended.",
    )


def test_a_job_that_fails_in_preflight_had_no_trainer(scene: Build) -> None:
    one = scene()
    one.settle()
    one.end(one.pod("one-preflight"), 65, one.report("Failed"))
    one.fail("one-preflight")
    one.settle()
    found = require_closed(one, "Failed")
    assert (found["Running"], found["Published"], found["GracePeriodSufficient"]) == (
        "No trainer ran.",
        "Nothing was published.",
        "No checkpoint was saved.",
    )
    assert found["Validated"] == "Preflight failed: see condition Failed."
    cause = one.status["message"]
    assert {kind for kind, text in found.items() if text == cause} == {"Ready", "Failed", "Stalled"}


def test_an_early_stop_shows_although_the_training_then_failed(scene: Build) -> None:
    one = scene(earlyStopping={"patience": 3}, backoffLimit=0).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.object["status"]["earlyStopping"] = {"stopped": True, "stoppedAtStep": 40, "bestStep": 30}
    one.end(pod, 77, one.report("Failed"))
    one.fail("one-1")
    one.settle()
    found = require_closed(one, "Failed")
    expected = "The evaluation loss stopped falling: stopped at step 40, best at step 30; the best weights are used."
    assert (one.condition("EarlyStopped")["status"], found["EarlyStopped"]) == ("True", expected)


def test_a_job_that_ends_while_it_waits_did_not_pass_preflight(scene: Build) -> None:
    one = scene(startDeadlineSeconds=60)
    one.settle()
    one.now += timedelta(seconds=100)
    one.settle()
    found = require_closed(one, "Failed")
    assert found["Validated"] == "The job ended before preflight had passed."
    assert found["Running"] == "No trainer ran."


def test_the_message_of_a_passed_deadline_promises_nothing(scene: Build) -> None:
    one = scene(startDeadlineSeconds=60)
    one.settle()
    pod = one.pod("one-preflight")
    pod["metadata"]["creationTimestamp"] = "2026-03-01T11:00:00Z"
    waiting = {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}}
    pod["status"] = {"phase": "Pending", "containerStatuses": [{"name": "trainer"} | waiting]}
    one.settle()
    one.object["status"]["message"] = "A volume cannot be mounted: create this Secret; the pod then starts"
    one.now += timedelta(seconds=100)
    one.settle()
    found = require_closed(one, "Failed")
    assert (
        "60 s; the last state: A volume cannot be mounted: create this Secret. Fix the cause or raise"
        in found["Failed"]
    )


def test_an_ended_job_has_no_time_left(scene: Build) -> None:
    one = scene(backoffLimit=0).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    one.object["status"]["progress"] = {"percent": 40, "step": 40, "estimatedRemainingSeconds": 900}
    one.end(pod, 76, one.report("Failed"))
    one.fail("one-1")
    one.settle()
    assert one.status["progress"] == {"percent": 40, "step": 40}


def test_ready_with_the_reason_of_the_job_is_the_first_condition(scene: Build) -> None:
    one = scene()
    one.settle()
    kinds = [each["type"] for each in one.status["conditions"]]
    assert kinds[:2] == ["Ready", "Accepted"]
    assert kinds[-2:] == ["Reconciling", "Stalled"]
    assert one.status["conditions"][0]["message"] == one.status["message"]
