"""Retries of a store end after a time that begins with its first failure."""

import time
from collections.abc import Callable

import pytest

from finetune_trainer.errors import StorageUnavailable
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.retries import retry

BUDGET = 0.3
"""Seconds for which a store is retried here."""


def failing(failures: int, *, after: float = 0.0) -> tuple[Callable[[], int], list[float]]:
    """Return a transfer that breaks so many times, each time after some seconds, and the times of its starts."""
    starts: list[float] = []

    def transfer() -> int:
        starts.append(time.monotonic())
        if len(starts) > failures:
            return len(starts)
        time.sleep(after)
        raise StorageUnavailable("the connection broke")

    return transfer, starts


def test_a_transfer_that_breaks_after_more_than_the_time_for_retries_is_tried_again() -> None:
    transfer, _ = failing(1, after=2 * BUDGET)
    assert retry(transfer, lambda _error: True, BUDGET, StopFlag()) == 2


def test_a_store_that_stays_away_is_left_after_the_time_for_retries() -> None:
    transfer, starts = failing(100)
    with pytest.raises(StorageUnavailable):
        retry(transfer, lambda _error: 0.05, BUDGET, StopFlag())
    assert BUDGET / 2 < starts[-1] - starts[0] < 3 * BUDGET


def test_without_time_for_retries_there_is_none() -> None:
    transfer, starts = failing(1)
    with pytest.raises(StorageUnavailable):
        retry(transfer, lambda _error: True, 0.0, StopFlag())
    assert len(starts) == 1
