"""Events of jobs, which are posted while no job is worked on: those of a burst must not compete with its Jobs."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from finetune_operator.controller.event_recorder import EventRecorder, Subject
from finetune_operator.controller.events import Event
from finetune_operator.kube.objects import Key

log = logging.getLogger(__name__)
LONGEST_WAIT = 30.0
"""Seconds after which an event is posted although other work waits."""
PAUSE = 0.1
MOST_EVENTS = 10_000
"""Events that are kept; beyond, the oldest are dropped: the status has what they report."""


@dataclass(frozen=True)
class _Reference:
    """What an event needs of its object."""

    key: Key
    uid: str
    resource_version: str


class _Waiting(NamedTuple):
    since: float
    at: datetime
    subject: _Reference
    event: Event


class EventBacklog:
    """Post events one after the other while the work queue is idle, and after `LONGEST_WAIT` in any case.

    Not thread-safe. What waits when the process is killed is lost, as with the recorder of client-go.
    """

    def __init__(
        self,
        recorder: EventRecorder,
        is_idle: Callable[[], bool],
        wall_clock: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder = recorder
        self._is_idle = is_idle
        self._wall_clock = wall_clock
        self._clock = clock
        self._waiting = deque[_Waiting](maxlen=MOST_EVENTS)
        self._added = asyncio.Event()

    def add(self, subject: Subject, event: Event) -> None:
        """Log the event now, and post it later with the time of now."""
        log.info("%s: %s: %s", subject.key, event.reason, event.message)
        reference = _Reference(subject.key, subject.uid, subject.resource_version)
        if len(self._waiting) == MOST_EVENTS:
            log.warning("more than %d events wait to be posted: the oldest is dropped", MOST_EVENTS)
        self._waiting.append(_Waiting(self._clock(), self._wall_clock(), reference, event))
        self._added.set()

    async def run(self) -> None:
        """Post until the task is cancelled."""
        while True:
            await self._added.wait()
            if not self._is_idle() and self._clock() - self._waiting[0].since < LONGEST_WAIT:
                await asyncio.sleep(PAUSE)
            else:
                await self._post_first()

    async def flush(self) -> None:
        """Post all that wait."""
        while self._waiting:
            await self._post_first()

    async def _post_first(self) -> None:
        _, at, subject, event = self._waiting.popleft()
        if not self._waiting:
            self._added.clear()
        try:
            await self._recorder.record(subject, event, at)
        except Exception:  # an unexpected error of one event must not end the operator
            log.exception("%s: event not posted", subject.key)
