"""The table of messages, and what is derived from the conditions."""

from datetime import UTC, datetime, timedelta
from string import Formatter
from typing import Any

import pytest

from finetune_api.handoff import TERMINAL_EXIT_CODES
from finetune_api.names import ConditionType, Phase, Reason
from finetune_api.status import FineTuneJobStatus, Progress, Resolved
from finetune_operator.policy.conditions import MESSAGES, Conditions, acknowledge_generation, phase_of

C = ConditionType
R = Reason
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def conditions(*facts: tuple[C, Any, str]) -> Conditions:
    """Those of a new job, and then these."""
    found = Conditions(FineTuneJobStatus(), 3, NOW)
    found.set_initial(early_stopping=False)
    for kind, truth, reason in facts:
        found.set(kind, truth, reason, "a detail")
    return found


ACCEPTED = (C.ACCEPTED, "True", R.ACCEPTED)
PREFLIGHT = (C.VALIDATED, "Unknown", R.PREFLIGHT_RUNNING)
VALIDATED = (C.VALIDATED, "True", R.DATASET_VALID)
SUSPENDED = (C.SUSPENDED, "True", R.USER_REQUESTED)
QUEUED = (C.QUEUED, "True", R.QUEUED_BY_KUEUE)


@pytest.mark.parametrize(("kind", "reason"), list(MESSAGES))
def test_every_message_can_be_formatted_and_has_no_empty_field(kind: C, reason: str) -> None:
    one = conditions((kind, "False", reason)).status.condition(kind)
    assert one is not None
    fields = {name for _, name, _, _ in Formatter().parse(MESSAGES[kind, reason]) if name is not None}
    assert fields <= {"detail"}
    assert ("a detail" in one.message) == bool(fields)
    assert not {"{", "}"} & set(one.message)


@pytest.mark.parametrize(
    ("kind", "reason", "sentence"),
    [
        (C.ACCEPTED, R.FORBIDDEN, "a detail."),
        (C.ACCEPTED, R.API_DENIED, "a detail: grant the right; the job then continues."),
        (
            C.ACCEPTED,
            R.API_UNAVAILABLE,
            "The API server does not complete a request that the job needs: a detail: restore what the message names, "
            "for example the service of an admission webhook; the job then continues.",
        ),
        (C.QUOTA_RESERVED, R.API_UNAVAILABLE, "The Workloads cannot be read: a detail."),
        (C.VALIDATED, R.PREFLIGHT_RUNNING, "Preflight is checking dataset, model and storage."),
        (C.RUNNING, R.UNSCHEDULABLE, "No node can run the pod: a detail"),
        (C.RUNNING, R.BACKING_OFF, "Waiting for the next run: a detail"),
        (C.PUBLISHED, R.MANIFEST_REPORTED, "The manifest and every file it names were read back from a detail."),
        (C.FAILED, R.TOO_MANY_PREEMPTIONS, "The job was preempted too often: a detail"),
        (C.FAILED, R.DIVERGED, "a detail"),
    ],
)
def test_a_condition_has_the_message_of_its_reason(kind: C, reason: str, sentence: str) -> None:
    one = conditions((kind, "False", reason)).status.condition(kind)
    assert one is not None
    assert one.message == sentence


def test_what_users_wrote_is_not_read_as_a_template() -> None:
    found = conditions()
    found.set(C.RUNNING, "False", R.IMAGE_PULL_FAILED, "{x} {0} {detail}")
    one = found.status.condition(C.RUNNING)
    assert one is not None
    assert one.message == "The image cannot be pulled: {x} {0} {detail}"


def test_a_condition_without_a_message_shows_its_reason_and_a_long_one_is_cut() -> None:
    found = conditions()
    found.set(C.FAILED, "True", R.DIVERGED)
    one = found.status.condition(C.FAILED)
    assert one is not None
    assert one.message == "Diverged"
    found.set(C.FAILED, "True", R.DIVERGED, "x" * 5000)
    one = found.status.condition(C.FAILED)
    assert one is not None
    assert len(one.message) == 2048


def test_every_terminal_exit_has_a_reason_in_the_table_of_names() -> None:
    assert {code.reason for code in TERMINAL_EXIT_CODES} <= {reason.value for reason in R}


@pytest.mark.parametrize(
    ("facts", "stage", "phase"),
    [
        ([], None, Phase.PENDING),
        ([ACCEPTED], None, Phase.PENDING),
        ([ACCEPTED, PREFLIGHT], None, Phase.PREFLIGHT),
        ([ACCEPTED, PREFLIGHT, (C.RUNNING, "False", R.UNSCHEDULABLE)], None, Phase.PREFLIGHT),
        ([ACCEPTED, VALIDATED], None, Phase.STARTING),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "False", R.BACKING_OFF)], "Training", Phase.STARTING),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "True", R.PODS_RUNNING)], None, Phase.TRAINING),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "True", R.PODS_RUNNING)], "Evaluating", Phase.TRAINING),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "True", R.PODS_RUNNING)], "Merging", Phase.PUBLISHING),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "True", R.PODS_RUNNING)], "Done", Phase.PUBLISHING),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "False", R.FINISHED)], None, Phase.PUBLISHING),
        ([ACCEPTED, VALIDATED, (C.COMPLETE, "True", R.SUCCEEDED)], None, Phase.SUCCEEDED),
        ([(C.FAILED, "True", R.DIVERGED)], "Training", Phase.FAILED),
        ([ACCEPTED, SUSPENDED], None, Phase.SUSPENDED),
        ([ACCEPTED, VALIDATED, (C.QUEUED, "True", R.JOB_SUSPENDED)], "Training", Phase.QUEUED),
        ([ACCEPTED, VALIDATED, SUSPENDED, QUEUED], "Training", Phase.SUSPENDED),
        ([ACCEPTED, VALIDATED, QUEUED], "Training", Phase.QUEUED),
        ([SUSPENDED], None, Phase.PENDING),
        ([ACCEPTED, SUSPENDED, (C.FAILED, "True", R.DIVERGED)], None, Phase.FAILED),
    ],
)
def test_the_phase_follows_from_the_conditions(facts: Any, stage: str | None, phase: Phase) -> None:
    status = conditions(*facts).status
    status.progress = Progress(stage=stage)
    assert phase_of(status) is phase


def test_a_job_that_trains_nothing_is_never_in_phase_training() -> None:
    status = conditions(ACCEPTED, VALIDATED, (C.RUNNING, "True", R.PODS_RUNNING)).status
    status.resolved = Resolved(mode="Evaluate")
    for stage in ("Loading", "Baseline", "Evaluating", "Answering"):
        status.progress = Progress(stage=stage)
        assert phase_of(status) is Phase.EVALUATING


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ([], R.PENDING),
        ([(C.ACCEPTED, "False", R.FORBIDDEN), PREFLIGHT], R.FORBIDDEN),
        ([ACCEPTED, PREFLIGHT], R.PREFLIGHT_RUNNING),
        ([ACCEPTED, PREFLIGHT, (C.RUNNING, "False", R.IMAGE_PULL_FAILED)], R.IMAGE_PULL_FAILED),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "True", R.PODS_RUNNING)], R.PODS_RUNNING),
        ([ACCEPTED, VALIDATED, (C.RUNNING, "False", R.API_DENIED)], R.API_DENIED),
        ([ACCEPTED, VALIDATED, (C.FAILED, "True", R.DIVERGED)], R.DIVERGED),
        ([ACCEPTED, VALIDATED, SUSPENDED], R.USER_REQUESTED),
        ([ACCEPTED, VALIDATED, SUSPENDED, (C.QUOTA_RESERVED, "False", R.QUEUE_STOPPED)], R.USER_REQUESTED),
        ([ACCEPTED, VALIDATED, QUEUED], R.QUEUED_BY_KUEUE),
        ([ACCEPTED, VALIDATED, (C.QUEUED, "True", R.JOB_SUSPENDED)], R.JOB_SUSPENDED),
        ([ACCEPTED, VALIDATED, QUEUED, (C.QUOTA_RESERVED, "False", R.QUEUE_STOPPED)], R.QUEUE_STOPPED),
        ([ACCEPTED, VALIDATED, SUSPENDED, (C.RUNNING, "Unknown", R.NODE_LOST)], R.NODE_LOST),
        ([(C.ACCEPTED, "False", R.FORBIDDEN), SUSPENDED], R.FORBIDDEN),
        ([ACCEPTED, VALIDATED, (C.COMPLETE, "True", R.SUCCEEDED), (C.RUNNING, "False", R.FINISHED)], R.SUCCEEDED),
        ([ACCEPTED, PREFLIGHT, (C.RUNNING, "False", R.PODS_STARTING)], R.PREFLIGHT_RUNNING),
    ],
)
def test_the_summary_is_of_the_first_step_that_is_not_done(facts: Any, reason: R) -> None:
    found = conditions(*facts)
    found.summarise()
    assert (found.status.reason, found.status.observed_generation) == (reason, 3)
    ready = found.status.condition(C.READY)
    assert ready is not None
    assert (ready.reason, ready.message) == (found.status.reason, found.status.message)


@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_new_job_has_every_condition(early_stopping: bool) -> None:
    found = Conditions(FineTuneJobStatus(), 3, NOW)
    found.set_initial(early_stopping=early_stopping)
    assert [(one.type, one.status, one.reason) for one in found.status.conditions or []] == [
        ("Accepted", "Unknown", "Pending"),
        ("Suspended", "False", "NotSuspended"),
        ("Queued", "False", "NotQueued"),
        ("Validated", "Unknown", "Pending"),
        ("Running", "False", "NotStarted"),
        ("GracePeriodSufficient", "Unknown", "NoCheckpoint"),
        ("EarlyStopped", "False", "NotTriggered" if early_stopping else "NotConfigured"),
        ("Published", "False", "NotPublished"),
        ("Complete", "False", "Progressing"),
        ("Failed", "False", "Progressing"),
    ]


def test_a_condition_keeps_its_place_and_what_is_set_already_is_not_set_again() -> None:
    found = conditions(ACCEPTED)
    kinds = [one.type for one in found.status.conditions or []]
    found.set(C.RUNNING, "True", R.PODS_RUNNING, "one", prefix="1 of 2 pods: ")
    found.set_initial(early_stopping=True)
    assert [one.type for one in found.status.conditions or []] == kinds
    accepted, running = found.status.condition(C.ACCEPTED), found.status.condition(C.RUNNING)
    assert accepted is not None
    assert running is not None
    assert (accepted.status, running.message, running.observed_generation) == ("True", "1 of 2 pods: one.", 3)
    found.remove(C.VALIDATED)
    assert [one.type for one in found.status.conditions or []] == [kind for kind in kinds if kind != "Validated"]


@pytest.mark.parametrize(
    ("facts", "is_settled"),
    [
        ([ACCEPTED, SUSPENDED], True),
        ([ACCEPTED, VALIDATED, SUSPENDED], True),
        ([SUSPENDED], False),
        ([ACCEPTED, QUEUED], False),
        ([ACCEPTED, SUSPENDED, (C.RUNNING, "True", R.PODS_RUNNING)], False),
        ([ACCEPTED, SUSPENDED, (C.RUNNING, "Unknown", R.NODE_LOST)], False),
        ([ACCEPTED, SUSPENDED, (C.RUNNING, "False", R.STOPPING)], False),
    ],
)
def test_a_suspended_job_is_ready_once_it_has_no_pods(facts: Any, is_settled: bool) -> None:
    found = conditions(*facts)
    found.summarise()
    truths = {one.type: one.status for one in found.status.conditions or []}
    assert (truths[C.READY], truths[C.RECONCILING]) == (("True", "False") if is_settled else ("Unknown", "True"))


def test_a_newer_generation_of_a_finished_job_changes_nothing_else() -> None:
    before = conditions((C.COMPLETE, "True", R.SUCCEEDED)).status
    after = acknowledge_generation(before, 4)
    assert (after.observed_generation, {one.observed_generation for one in after.conditions or []}) == (4, {4})
    kept = [one.model_copy(update={"observed_generation": 3}) for one in after.conditions or []]
    assert kept == before.conditions


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (None, ("Unknown", "True", "False")),
        (C.COMPLETE, ("True", "False", "False")),
        (C.FAILED, ("False", "False", "True")),
    ],
)
def test_ready_reconciling_and_stalled_are_what_gitops_tools_expect(end: C | None, expected: tuple[str, ...]) -> None:
    found = conditions(*([(end, "True", R.SUCCEEDED)] if end else []))
    found.summarise()
    truths = {one.type: one.status for one in found.status.conditions or []}
    assert (truths[C.READY], truths[C.RECONCILING], truths[C.STALLED]) == expected
    for kind in (C.RECONCILING, C.STALLED):
        one = found.status.condition(kind)
        assert one is not None
        assert one.message == (found.status.message if one.status == "True" else "See condition Ready.")


def test_transition_times_move_only_with_the_value(scene: Any) -> None:
    one = scene()
    one.settle()
    accepted = one.condition("Accepted")["lastTransitionTime"]
    one.now += timedelta(seconds=100)
    one.to_training()
    assert one.condition("Accepted")["lastTransitionTime"] == accepted
    assert one.condition("Validated")["lastTransitionTime"] == "2026-03-01T12:01:40Z"


def test_conditions_of_others_are_kept(scene: Any) -> None:
    one = scene()
    when = "2026-01-01T00:00:00Z"
    foreign = {"type": "Audited", "status": "True", "reason": "Yes", "message": "", "lastTransitionTime": when}
    one.object["status"]["conditions"] = [foreign]
    one.settle()
    assert one.condition("Audited") == foreign
