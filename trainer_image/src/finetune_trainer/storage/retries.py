"""Trying a store again while it is away: as long as patience lasts, until SIGTERM, and never in silence."""

import logging
from collections.abc import Callable
from typing import TypeVar

import stamina
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from finetune_trainer.sigterm import StopFlag

T = TypeVar("T")

LONGEST_WAIT = 15.0

logger = logging.getLogger(__name__)


def retried(call: Callable[[], T], on: Callable[[Exception], bool | float], patience: float, stop: StopFlag) -> T:
    """The call's result; tried again for `patience` seconds after errors that `on` says yes to, or how long to wait."""
    for attempt in stamina.retry_context(
        on=on, attempts=None, timeout=patience, wait_initial=0.5, wait_max=LONGEST_WAIT
    ):
        with attempt:
            if attempt.num > 1:
                stop.raise_if_set()
            return call()
    raise AssertionError("unreachable: the last attempt raises")


def _tell(details: RetryDetails) -> None:
    logger.warning("%s; tried again in %.1f seconds", details.caused_by, details.wait_for)


set_on_retry_hooks([_tell])
