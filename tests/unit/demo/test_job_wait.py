"""The demo waits for as long as the job's status changes, and reports what it waited for when it stops to change."""

from collections.abc import Iterable
from typing import Any

import job_wait
import pytest
from job_wait import JobIsStill, Status, conditions, wait_for_end

STILL = 600.0
SLOW = 500.0
"""Seconds between two changes, on a machine on which a job takes hours."""
ACCEPTED = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "The spec is allowed."}
RUNNING = {"type": "Running", "status": "True", "reason": "PodsRunning", "message": "All pods are running."}
TRAINING = {"phase": "Training", "reason": "PodsRunning", "message": "Training.", "conditions": [ACCEPTED, RUNNING]}


def progress(step: int, at: str) -> Status:
    return TRAINING | {"progress": {"step": step, "totalSteps": 24, "stage": "Training", "lastUpdatedTime": at}}


LIFE: list[Status] = [
    {},
    {"phase": "Pending", "conditions": [ACCEPTED]},
    {"phase": "Preflight", "conditions": [ACCEPTED]},
    {"phase": "Starting", "conditions": [ACCEPTED]},
    TRAINING,
    *(progress(step, f"2026-01-01T00:{step:02d}:00Z") for step in range(25)),
    progress(24, "2026-01-01T01:00:00Z"),
    {"phase": "Publishing", "conditions": [ACCEPTED, RUNNING]},
    {"phase": "Succeeded", "conditions": [ACCEPTED]},
]


class Machine:
    """A clock, and statuses that change after some seconds each; the last one stays."""

    def __init__(self, statuses: Iterable[Status | OSError], seconds: float) -> None:
        self.now = 0.0
        self.statuses, self.seconds = list(statuses), seconds
        self.shown: list[Status] = []

    def read(self) -> Status:
        found = self.statuses[min(int(self.now / self.seconds), len(self.statuses) - 1)]
        if isinstance(found, OSError):
            raise found
        return found

    def wait(self) -> Status:
        def pause(seconds: float) -> None:
            self.now += seconds

        return wait_for_end(self.read, self.shown.append, STILL, clock=lambda: self.now, pause=pause)


def test_a_slow_job_that_changes_is_waited_for_however_long_it_takes() -> None:
    machine = Machine(LIFE, SLOW)
    assert machine.wait()["phase"] == "Succeeded"
    assert machine.now > 4 * 3600


def test_a_failed_job_ends_the_wait_at_once() -> None:
    machine = Machine([LIFE[0], {"phase": "Failed", "reason": "Diverged"}], SLOW)
    assert machine.wait()["reason"] == "Diverged"


@pytest.mark.parametrize(
    ("last", "awaited"),
    [
        ({}, "the operator to accept the job"),
        ({"phase": "Preflight"}, "the checks of storage, model and rows"),
        ({"phase": "Starting"}, "a running pod of the trainer"),
        (TRAINING, "the next report of the trainer"),
        (progress(7, "2026-01-01T00:07:00Z"), "a step after 7 of 24"),
    ],
)
def test_a_job_that_stops_to_change_is_given_up_with_what_was_awaited(last: Status, awaited: str) -> None:
    machine = Machine([last], 1.0)
    with pytest.raises(JobIsStill, match=f"no change of the job's status for 10 minutes, while waiting for {awaited};"):
        machine.wait()
    assert STILL <= machine.now < STILL + 10


def test_a_change_of_each_part_of_the_status_counts() -> None:
    base = progress(7, "2026-01-01T00:07:00Z")
    changes: list[dict[str, Any]] = [
        {"phase": "Publishing"},
        {"progress": base["progress"] | {"step": 8}},
        {"progress": base["progress"] | {"stage": "Evaluating"}},
        {"progress": base["progress"] | {"lastUpdatedTime": "2026-01-01T00:08:00Z"}},
        {"conditions": [ACCEPTED]},
        {"preemptions": 1},
    ]
    for change in changes:
        machine = Machine([base, base | change, {"phase": "Succeeded"}], SLOW)
        assert machine.wait()["phase"] == "Succeeded", change


def test_an_api_server_that_is_away_for_a_while_is_waited_for_and_named_if_it_stays_away() -> None:
    away = OSError("connection refused")
    assert Machine([LIFE[1], away, LIFE[-1]], 200.0).wait()["phase"] == "Succeeded"
    with pytest.raises(JobIsStill, match="its status cannot be read: connection refused") as caught:
        Machine([LIFE[1], away], 200.0).wait()
    assert conditions(caught.value.status) == ["Accepted=True Accepted: The spec is allowed."]


def test_every_phase_that_is_not_an_end_has_what_is_awaited() -> None:
    from finetune_api.names import Phase

    assert set(job_wait.EXPECTED) | job_wait.ENDED == {phase.value for phase in Phase}
