"""Counters only grow, and are also kept by reason."""

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator.policy.history import counters


def test_failures_are_counted_in_all_and_by_reason() -> None:
    status = FineTuneJobStatus()
    counters.add_failures(status, "OutOfMemory")
    counters.add_failures(status, "OutOfMemory", 2)
    counters.add_failures(status, "Diverged")
    assert (status.failures, status.failures_by_reason) == (4, {"OutOfMemory": 3, "Diverged": 1})


def test_time_is_added_and_a_clock_that_is_set_back_decreases_nothing() -> None:
    status = FineTuneJobStatus()
    for seconds in (10, 1, 0, -5):
        counters.add_time(status, seconds, 4)
    assert (status.active_seconds, status.gpu_seconds) == (11, 44)
    counters.add_time(status, 3, 0)
    assert (status.active_seconds, status.gpu_seconds) == (14, 44)


@pytest.mark.parametrize(
    ("reason", "counted"),
    [
        ("NoProgress", "NoProgress"),
        ("EvictionByEvictionAPI", "EvictionByEvictionAPI"),
        ("ClusterQueueStopped", "ClusterQueueStopped"),
        ("Any word", "Other"),
        ("", "Other"),
    ],
)
def test_an_unknown_reason_is_counted_as_other(reason: str, counted: str) -> None:
    status = FineTuneJobStatus()
    counters.add_failures(status, reason)
    assert status.failures_by_reason == {counted: 1}
