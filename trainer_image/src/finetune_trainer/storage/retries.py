"""Retries of an unavailable store: for a limited time, until SIGTERM, each with a log line."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from finetune_trainer.sigterm import StopFlag

T = TypeVar("T")

MAX_WAIT = 15.0

logger = logging.getLogger(__name__)


def retry(call: Callable[[], T], on: Callable[[Exception], bool | float], retry_seconds: float, stop: StopFlag) -> T:
    """Return the call's result; retry for `retry_seconds` after the first error, if `on` is true or a pause.

    The time does not begin with the call: a large file may have been under way for an hour when the store goes away.
    """
    deadline: float | None = None

    def find_pause(error: Exception) -> bool | float:
        nonlocal deadline
        now = time.monotonic()
        deadline = now + retry_seconds if deadline is None else deadline
        return on(error) if now < deadline else False

    attempts = None if retry_seconds else 1
    for attempt in stamina.retry_context(
        on=find_pause, attempts=attempts, timeout=None, wait_initial=0.5, wait_max=MAX_WAIT
    ):
        with attempt:
            if attempt.num > 1:
                stop.raise_if_set()
            return call()
    raise AssertionError("unreachable: the last attempt raises")


def _log_retry(details: RetryDetails) -> None:
    logger.warning("%s; retry in %.1f seconds", details.caused_by, details.wait_for)


set_on_retry_hooks([_log_retry])
