"""Deadlines and limits: from what is written and the clock, so that a restart changes nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.handoff import ProgressReport
from finetune_operator.kube.errors import Denied, Refused
from finetune_operator.kube.observed import Reading
from finetune_operator.policy.deadlines import seconds_to_tidy

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def later(one: Any, seconds: float) -> None:
    one.now += timedelta(seconds=seconds)


def answer(one: Any, pod: Any, heartbeat: int, **progress: Any) -> None:
    """The trainer answers now."""
    report = {"jobUID": "job-uid", "heartbeat": heartbeat, "progress": progress}
    one.reading = Reading(pod["metadata"]["uid"], one.now, ProgressReport.model_validate(report))


def running(scene: Any, **spec: Any) -> tuple[Any, Any]:
    one = scene(**spec).to_training()
    pod = one.pod("one-1")
    one.run(pod)
    one.settle()
    return one, pod


@pytest.mark.parametrize("stage", ["preflight", "training"])
def test_a_job_whose_trainer_does_not_start_in_time_fails_with_what_it_waited_for(scene: Any, stage: str) -> None:
    one = scene(startDeadlineSeconds=600)
    one.settle() if stage == "preflight" else one.to_training()
    child = list(one.children)[-1]
    words = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu"
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    one.pod(child, conditions=[condition])
    later(one, 599)
    decision = one.settle()
    assert decision.requeue_after == 1.5
    assert not one.job.is_finished
    later(one, 1)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "StartDeadlineExceeded")
    assert words in one.status["message"]
    assert "raise startDeadlineSeconds" in one.status["message"]
    assert child not in one.children


def test_the_wait_counts_from_when_the_job_could_start(scene: Any) -> None:
    one = scene(startDeadlineSeconds=60, suspend=True)
    one.settle()
    later(one, 1000)
    one.settle()
    assert one.status["phase"] == "Suspended"
    one.object["spec"]["suspend"] = False
    one.settle()
    assert one.status["eligibleTime"] == "2026-03-01T12:16:40Z"
    later(one, 59)
    one.settle()
    assert not one.job.is_finished
    later(one, 1)
    one.settle()
    assert one.status["reason"] == "StartDeadlineExceeded"


@pytest.mark.parametrize(
    ("problem", "reason"),
    [({"trainer": {"serviceAccountName": "admin"}}, "Forbidden"), ({"objective": "Later"}, "InvalidSpec")],
)
def test_a_job_that_is_refused_later_waits_from_the_beginning_once_it_may_start(
    scene: Any, problem: Any, reason: str
) -> None:
    one = scene(startDeadlineSeconds=60)
    one.settle()
    assert one.status["eligibleTime"] == "2026-03-01T12:00:00Z"
    accepted = one.object["spec"]
    one.object["spec"] = accepted | problem
    one.settle()
    assert (one.status["reason"], one.status.get("eligibleTime")) == (reason, None)
    later(one, 1000)
    one.settle()
    assert (one.job.is_finished, one.status["reason"]) == (False, reason)
    one.object["spec"] = accepted
    one.settle()
    assert one.status["eligibleTime"] == "2026-03-01T12:16:40Z"
    later(one, 61)
    one.settle()
    assert one.status["reason"] == "StartDeadlineExceeded"


def test_the_time_from_which_a_job_could_start_stays_when_it_is_suspended_after_its_start(scene: Any) -> None:
    one, pod = running(scene)
    one.object["spec"]["suspend"] = True
    one.settle()
    one.delete_pod(pod)
    one.end(pod, 75)
    later(one, 1000)
    one.settle()
    assert (one.status["phase"], one.status["eligibleTime"]) == ("Suspended", "2026-03-01T12:00:00Z")


def test_a_job_that_may_not_be_created_ends_by_its_start_deadline_too(scene: Any) -> None:
    one = scene(startDeadlineSeconds=60)
    one.object["status"] = one.look(obstacle=Denied("create", "jobs", "team")).status.to_wire()
    later(one, 61)
    decision = one.look(obstacle=Denied("create", "jobs", "team"))
    assert decision.status.reason == "StartDeadlineExceeded"
    assert "may not create jobs" in (decision.status.message or "")


def test_a_job_whose_preflight_job_is_being_deleted_ends_by_its_start_deadline_too(scene: Any) -> None:
    one = scene(startDeadlineSeconds=60)
    one.settle()
    one.children["one-preflight"]["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    assert one.settle().requeue_after == 20.0
    later(one, 61)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "StartDeadlineExceeded")


def test_a_job_that_has_started_once_has_no_start_deadline(scene: Any) -> None:
    one, pod = running(scene, startDeadlineSeconds=60)
    one.end(pod, 75)
    one.settle()
    later(one, 10_000)
    one.settle()
    assert one.status["phase"] == "Starting"


def test_active_time_is_summed_over_runs_and_leaves_waiting_out(scene: Any) -> None:
    one, first = running(scene, activeDeadlineSeconds=1000)
    one.end(first, 75)
    first["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2026-03-01T12:10:00Z"
    later(one, 9000)
    one.settle()
    assert one.status["activeSeconds"] == 590
    second = one.pod("one-1")
    one.run(second)
    state = second["status"]["containerStatuses"][0]["state"]
    state["running"]["startedAt"] = one.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert one.settle().requeue_after == 410.5
    later(one, 409)
    one.settle()
    assert one.status["phase"] == "Training"
    later(one, 1)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "DeadlineExceeded")
    assert "1000 s in total, but activeDeadlineSeconds allows 1000" in one.status["message"]
    assert (one.status["activeSeconds"], one.status["runs"]) == (1000, 2)
    assert one.status["history"][1]["reason"] == "DeadlineExceeded"
    assert one.status.get("failures", 0) == 0
    assert "one-1" not in one.children


def test_suspended_time_is_not_active(scene: Any) -> None:
    one, pod = running(scene, activeDeadlineSeconds=100)
    later(one, 50)
    one.object["spec"]["suspend"] = True
    one.settle()
    one.delete_pod(pod)
    one.end(pod, 75)
    later(one, 5000)
    one.settle()
    assert (one.status["phase"], one.status["activeSeconds"]) == ("Suspended", 5)


def test_the_time_after_a_pod_has_disappeared_is_not_active(scene: Any) -> None:
    one, _ = running(scene, activeDeadlineSeconds=100)
    later(one, 98)
    one.pods.popitem()
    one.settle()
    later(one, 4)
    one.settle()
    assert not one.job.is_finished


def test_a_deadline_that_is_raised_in_time_counts_at_once(scene: Any) -> None:
    one, _ = running(scene, activeDeadlineSeconds=100)
    one.object["spec"]["activeDeadlineSeconds"] = 10_000
    later(one, 500)
    one.settle()
    assert one.status["phase"] == "Training"


def test_an_unwritten_removal_at_a_deadline_does_not_count_as_a_deleted_job(scene: Any) -> None:
    one, pod = running(scene, activeDeadlineSeconds=100)
    later(one, 101)
    assert one.look().delete is not None
    del one.children["one-1"]
    one.delete_pod(pod)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "DeadlineExceeded")
    assert one.status.get("failures", 0) == 0


def test_a_job_that_cannot_be_removed_continues_and_the_removal_is_retried(scene: Any) -> None:
    one, _ = running(scene, activeDeadlineSeconds=100)
    later(one, 101)
    decision = one.look(obstacle=Denied("delete", "jobs", "team"))
    assert not decision.status.is_true("Failed")
    assert decision.requeue_after is not None


def test_a_job_whose_removal_a_webhook_refuses_shows_it(scene: Any) -> None:
    one, _ = running(scene, activeDeadlineSeconds=100)
    later(one, 101)
    one.object["status"] = one.look(obstacle=Refused("a webhook denies it")).status.to_wire()
    assert (one.status["reason"], one.condition("Running")["status"]) == ("StopRefused", "True")
    assert "a webhook denies it" in one.status["message"]


def test_a_job_without_a_pod_whose_removal_is_refused_does_not_run(scene: Any) -> None:
    one = scene(startDeadlineSeconds=100).to_training()
    later(one, 200)
    one.object["status"] = one.look(obstacle=Refused("a webhook denies it")).status.to_wire()
    assert (one.condition("Running")["status"], one.condition("Running")["reason"]) == ("False", "StopRefused")
    assert one.status["phase"] != "Training"


@pytest.mark.parametrize("is_queued", [False, True])
def test_a_late_preflight_whose_removal_is_refused_shows_it(scene: Any, is_queued: bool) -> None:
    one = scene(startDeadlineSeconds=100, **({"scheduling": {"queueName": "team"}} if is_queued else {}))
    one.settle()
    later(one, 200)
    assert one.look().delete is not None
    one.object["status"] = one.look(obstacle=Refused("a webhook denies it")).status.to_wire()
    assert (one.status["reason"], one.condition("Running")["status"]) == ("StopRefused", "False")
    assert "a webhook denies it" in one.status["message"]


def test_a_published_result_is_not_lost_to_a_deadline(scene: Any) -> None:
    one, pod = running(scene, activeDeadlineSeconds=3)
    one.end(pod, 0, one.published())
    later(one, 100)
    one.settle()
    assert not one.job.is_finished
    one.complete("one-1")
    one.settle()
    assert one.status["phase"] == "Succeeded"


def test_a_trainer_that_answers_but_does_not_move_is_started_again_as_a_failure(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=60)
    answer(one, pod, 7, stage="Training", step=40)
    one.settle()
    later(one, 59)
    answer(one, pod, 7, stage="Training", step=40)
    one.settle()
    assert one.status["phase"] == "Training"
    later(one, 1)
    answer(one, pod, 7, stage="Training", step=40)
    first = one.look()
    assert (first.delete, first.requeue_after) == (None, 0)
    one.object["status"] = first.status.to_wire()
    assert "No progress for 60 s (Training, step 40)" in one.status["message"]
    assert "raise stallTimeoutSeconds" in one.status["message"]
    one.settle()
    assert "one-1" not in one.children
    one.delete_pod(pod)
    one.end(pod, 75)
    one.settle()
    assert list(one.children) == ["one-preflight", "one-2"]
    assert (one.status["failures"], one.status.get("preemptions", 0)) == (1, 0)
    run = one.status["history"][0]
    assert (run["result"], run["reason"], run["lastStep"]) == ("Failed", "NoProgress", 40)


def test_a_stall_counts_from_when_the_heartbeat_changed_though_it_is_written_later(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=60)
    later(one, 30)
    answer(one, pod, 7)
    one.reading = replace(one.reading, moved_at=one.now - timedelta(seconds=20))
    one.settle()
    later(one, 40)
    answer(one, pod, 7)
    assert one.look().status.reason == "NoProgress"


def test_a_trainer_that_waited_for_another_pod_is_not_stalled_when_it_is_back(scene: Any) -> None:
    one = scene(stallTimeoutSeconds=60, resources={"numNodes": 2, "gpusPerNode": 1}).to_training()
    first, second = one.set_of("one-1")
    one.settle()
    answer(one, first, 7)
    one.settle()
    one.pods.pop(second["metadata"]["name"])
    later(one, 1)
    one.settle()
    one.run(one.pod("one-1", "back", rank=1))
    later(one, 60)
    answer(one, first, 7)
    one.settle()
    assert one.status["phase"] == "Training"
    later(one, 60)
    answer(one, first, 7)
    assert one.look().status.reason == "NoProgress"


def test_a_stall_before_the_first_stage_is_shown_too(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=60)
    for _ in range(2):
        answer(one, pod, 7)
        one.object["status"] = one.look().status.to_wire()
        later(one, 60)
    assert "No progress for 60 s (an unknown stage)" in one.status["message"]
    assert one.status["currentRun"]["stoppingReason"] == "NoProgress"


def test_a_stall_is_noticed_across_a_restart_of_the_operator(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=60)
    answer(one, pod, 7)
    one.settle()
    one.reading = None
    one.settle()
    later(one, 61)
    answer(one, pod, 7)
    assert one.look().status.reason == "NoProgress"


def test_a_stalled_job_that_may_not_be_removed_is_not_changed_until_the_next_check_of_the_obstacle(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=60)
    answer(one, pod, 7)
    one.settle()
    later(one, 60)
    answer(one, pod, 7)
    one.object["status"] = one.look().status.to_wire()
    assert one.look().delete is not None
    decision = one.look(obstacle=Denied("delete", "jobs", "team"))
    assert (decision.delete, decision.requeue_after) == (None, 20.0)


def test_a_run_that_ended_is_written_before_its_time_ends_the_job(scene: Any) -> None:
    one, pod = running(scene, activeDeadlineSeconds=5)
    one.end(pod, 1)
    first = one.look()
    assert (first.status.failures, first.requeue_after) == (1, 0)
    assert not first.status.is_true("Failed")
    one.object["status"] = first.status.to_wire()
    second = one.look()
    assert second.status.reason == "DeadlineExceeded"
    assert second.delete is not None
    assert "5 s in total" in second.status.message


def test_a_preflight_that_starts_too_late_is_not_failed_while_its_job_cannot_be_removed(scene: Any) -> None:
    one = scene(startDeadlineSeconds=60)
    one.settle()
    later(one, 61)
    assert one.look().status.reason == "StartDeadlineExceeded"
    assert not one.look(obstacle=Denied("delete", "jobs", "team")).status.is_true("Failed")


def test_a_heartbeat_that_changes_is_not_a_stall(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=60)
    for beat in range(10):
        answer(one, pod, beat, stage="Evaluating", step=40)
        one.settle()
        later(one, 59)
    assert one.status["phase"] == "Training"


def test_an_unreachable_trainer_is_never_restarted(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=60)
    answer(one, pod, 7)
    one.settle()
    heard = one.reading.at
    later(one, 10_000)
    report = one.reading.report
    one.reading = Reading(pod["metadata"]["uid"], heard, report, one.now - timedelta(seconds=9000), "TimeoutError")
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Training", "Unreachable")


def test_a_stalled_trainer_whose_end_was_not_observed_is_a_failure_without_progress(scene: Any) -> None:
    one, pod = running(scene, stallTimeoutSeconds=10)
    answer(one, pod, 1)
    one.settle()
    later(one, 10)
    answer(one, pod, 1)
    one.settle()
    assert list(one.children) == ["one-preflight"]
    one.pods.clear()
    one.settle()
    later(one, 5)
    one.settle()
    run = one.status["history"][0]
    assert (run["result"], run["reason"], one.status["failures"]) == ("Failed", "NoProgress", 1)


def test_stalls_end_the_job_by_the_backoff_limit(scene: Any) -> None:
    one = scene(stallTimeoutSeconds=10, backoffLimit=1).to_training()
    for number in (1, 2):
        pod = one.pod(f"one-{number}")
        one.run(pod)
        answer(one, pod, 1)
        one.settle()
        later(one, 10)
        answer(one, pod, 1)
        one.settle()
        one.delete_pod(pod)
        one.end(pod, 137)
        one.settle()
    assert (one.status["phase"], one.status["reason"], one.status["failures"]) == ("Failed", "BackoffLimitExceeded", 2)
    assert "NoProgress: no progress for stallTimeoutSeconds" in one.status["message"]


def test_a_backoff_limit_that_is_raised_while_the_job_fails_gets_another_attempt(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    one.end(one.pod("one-1"), 70)
    one.fail("one-1", "BackoffLimitExceeded")
    one.object["spec"]["backoffLimit"] = 2
    one.object["status"] = one.look().status.to_wire()
    assert one.condition("Running")["reason"] == "BackingOff"
    assert "backoffLimit was raised in the meantime" in one.condition("Running")["message"]
    one.settle()
    assert list(one.children) == ["one-preflight", "one-1", "one-2"]
    assert one.status["failures"] == 1
    assert one.children["one-2"]["spec"]["backoffLimit"] == 1


def test_a_job_that_used_up_its_backoff_limit_without_a_failed_pod_is_not_tried_again(scene: Any) -> None:
    one = scene(backoffLimit=0).to_training()
    one.fail("one-1", "BackoffLimitExceeded", failed=0)
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")


def test_a_backoff_limit_that_is_lowered_ends_a_running_job(scene: Any) -> None:
    one = scene(backoffLimit=3).to_training()
    one.end(one.pod("one-1"), 70, "boom")
    one.children["one-1"]["status"] = {"failed": 1}
    one.settle()
    one.run(one.pod("one-1"))
    one.object["spec"]["backoffLimit"] = 0
    one.settle()
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "BackoffLimitExceeded")
    assert "one-1" not in one.children


@pytest.mark.parametrize(
    ("ttl", "after", "left"), [(None, 0, None), (100, 40, 60.0), (100, 100, 0.0), (0, 0, 0.0), (100, 5000, 0.0)]
)
def test_what_is_left_of_a_finished_job_is_removed_in_its_time(scene: Any, ttl: Any, after: int, left: Any) -> None:
    one = scene(**({} if ttl is None else {"ttlSecondsAfterFinished": ttl})).to_training()
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    assert seconds_to_tidy(one.job, one.now, one.settings) is None
    one.settle()
    ended = one.job.status.completion_time
    assert seconds_to_tidy(one.job, ended + timedelta(seconds=after), one.settings) == left


@pytest.mark.parametrize(("own", "default", "left"), [(None, None, 3600.0), (None, 60, 60.0), (90, None, 90.0)])
def test_the_volumes_of_ended_pods_are_kept_for_an_hour_unless_a_ttl_is_set(
    scene: Any, settings: Any, own: Any, default: Any, left: float
) -> None:
    volumes = {"workspace": {"sizeLimit": "2Ti", "storageClassName": "fast"}}
    one = scene(resources=volumes, **({} if own is None else {"ttlSecondsAfterFinished": own})).to_training()
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    one.settle()
    using = settings.model_copy(update={"default_ttl_seconds_after_finished": default})
    assert seconds_to_tidy(one.job, one.job.status.completion_time, using) == left


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-900, 90), min_size=1, max_size=40))
def test_a_clock_that_is_set_back_ends_nothing_early_and_decreases_no_counter(scene: Any, moves: list[int]) -> None:
    one, pod = running(scene, activeDeadlineSeconds=1000, stallTimeoutSeconds=1000)
    latest = one.now
    answer(one, pod, 1)
    for move in moves:
        before = one.job.status
        later(one, move)
        latest = max(latest, one.now)
        one.reading = replace(one.reading, at=one.now)
        one.settle()
        status = one.job.status
        assert (status.active_seconds or 0) >= (before.active_seconds or 0)
        assert status.start_time == before.start_time or before.start_time is None
        if (latest - NOW).total_seconds() < 990:
            assert (one.status["phase"], status.failures, status.attempts) == ("Training", None, 1)
