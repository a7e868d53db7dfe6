"""When events are posted that wait for the work on jobs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.names import EventReason
from finetune_operator.controller import event_backlog as module
from finetune_operator.controller.event_backlog import LONGEST_WAIT, MOST_EVENTS, EventBacklog
from finetune_operator.controller.event_recorder import EventRecorder
from finetune_operator.controller.events import Event

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BROKEN = "an event that cannot be posted"


class Posting:
    """A backlog with its API, the time, and whether the workers are busy."""

    def __init__(self, subject: Any) -> None:
        self.posted: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.is_busy = False
        self.subject = subject
        api: Any = self
        clock = lambda: NOW + timedelta(seconds=self.seconds)  # noqa: E731
        recorder = EventRecorder(api, "operator-1", clock)
        self.backlog = EventBacklog(recorder, lambda: not self.is_busy, clock, lambda: self.seconds)

    async def post_event(self, event: dict[str, Any]) -> None:
        if event["note"] == BROKEN:
            raise ValueError("broken")
        self.posted.append(event)

    def add(self, *messages: str) -> None:
        for message in messages:
            self.backlog.add(self.subject, Event(EventReason.FAILED, message))

    @property
    def notes(self) -> list[str]:
        return [event["note"] for event in self.posted]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.backlog.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def posting(scene: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Posting:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    return Posting(scene().job)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_events_are_posted_in_their_order_while_nothing_else_waits(posting: Posting) -> None:
    async with posting.running():
        posting.add("one", "two")
        await turns()
        posting.add("three")
        await turns()
    assert posting.notes == ["one", "two", "three"]


async def test_events_wait_for_the_work_on_jobs_and_have_the_time_at_which_they_happened(posting: Posting) -> None:
    posting.is_busy = True
    async with posting.running():
        posting.add("one")
        posting.seconds = 5.0
        await turns()
        assert posting.notes == []
        posting.is_busy = False
        await turns()
    assert posting.notes == ["one"]
    assert posting.posted[0]["eventTime"] == "2026-03-01T12:00:00.000000Z"


async def test_no_event_waits_for_longer_than_the_longest_wait(posting: Posting) -> None:
    posting.is_busy = True
    async with posting.running():
        posting.add("one")
        posting.seconds = 1.0
        posting.add("two")
        posting.seconds = LONGEST_WAIT
        await turns()
        assert posting.notes == ["one"]
        posting.seconds = LONGEST_WAIT + 1
        await turns()
    assert posting.notes == ["one", "two"]


async def test_an_unexpected_error_of_one_event_does_not_end_the_posting_of_the_others(posting: Posting) -> None:
    async with posting.running():
        posting.add("one", BROKEN, "two")
        await turns()
    assert posting.notes == ["one", "two"]


async def test_what_waits_at_the_end_of_the_process_is_posted(posting: Posting) -> None:
    posting.is_busy = True
    posting.add("one", "two")
    await posting.backlog.flush()
    assert posting.notes == ["one", "two"]


async def test_beyond_the_largest_number_the_oldest_are_dropped(
    posting: Posting, caplog: pytest.LogCaptureFixture
) -> None:
    posting.add(*(str(number) for number in range(MOST_EVENTS + 1)))
    await posting.backlog.flush()
    assert (len(posting.notes), posting.notes[0]) == (MOST_EVENTS, "1")
    assert "the oldest is dropped" in caplog.text
