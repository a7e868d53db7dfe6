"""The table of messages, and what is derived from the conditions."""

from datetime import UTC, datetime, timedelta
from string import Formatter
from typing import Any

import pytest

from finetune_api.handoff import TERMINAL_EXIT_CODES
from finetune_api.names import ConditionType, Phase, Reason
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_operator.policy.conditions import MESSAGES, Conditions, phase_of

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
        (C.VALIDATED, R.PREFLIGHT_RUNNING, "Preflight is checking dataset, model and storage."),
        (C.RUNNING, R.UNSCHEDULABLE, "No node can run the pod: a detail"),
        (C.RUNNING, R.BACKING_OFF, "Waiting for the next run: a detail"),
        (C.PUBLISHED, R.MANIFEST_REPORTED, "The manifest and every file it names were read back from a detail."),
        (C.FAILED, R.TOO_MANY_PREEMPTIONS, "The job was preempted more often than maxPreemptions allows: a detail"),
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
    ],
)
def test_the_phase_follows_from_the_conditions(facts: Any, stage: str | None, phase: Phase) -> None:
    status = conditions(*facts).status
    status.progress = Progress(stage=stage)
    assert phase_of(status) is phase


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
    ],
)
def test_the_summary_is_of_the_first_step_that_is_not_done(facts: Any, reason: R) -> None:
    found = conditions(*facts)
    found.summarise()
    assert (found.status.reason, found.status.observed_generation) == (reason, 3)
    ready = found.status.condition(C.READY)
    assert ready is not None
    assert (ready.reason, ready.message) == (found.status.reason, found.status.message)


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
