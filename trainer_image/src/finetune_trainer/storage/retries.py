"""Retries of an unavailable store: for a limited time, until SIGTERM, each with a log line."""

import logging
from collections.abc import Callable
from typing import TypeVar

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from finetune_trainer.sigterm import StopFlag

T = TypeVar("T")

MAX_WAIT = 15.0

logger = logging.getLogger(__name__)


def retry(call: Callable[[], T], on: Callable[[Exception], bool | float], retry_seconds: float, stop: StopFlag) -> T:
    """Return the call's result; retry for `retry_seconds` after errors for which `on` is true or a pause."""
    limit = {"attempts": None, "timeout": retry_seconds} if retry_seconds else {"attempts": 1, "timeout": None}
    for attempt in stamina.retry_context(on=on, wait_initial=0.5, wait_max=MAX_WAIT, **limit):
        with attempt:
            if attempt.num > 1:
                stop.raise_if_set()
            return call()
    raise AssertionError("unreachable: the last attempt raises")


def _log_retry(details: RetryDetails) -> None:
    logger.warning("%s; retry in %.1f seconds", details.caused_by, details.wait_for)


set_on_retry_hooks([_log_retry])
