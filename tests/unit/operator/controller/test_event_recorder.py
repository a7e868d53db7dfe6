"""Which events are posted, and which are only counted in their series."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.names import EventReason
from finetune_operator.controller.event_recorder import MAX_SERIES, EventRecorder, build_event
from finetune_operator.controller.events import Event
from finetune_operator.kube.errors import Gone, RetryLater

UNREACHABLE = Event(EventReason.UNREACHABLE, "the trainer does not respond", is_warning=True)


class Api:
    """The events that the recorder has posted, and their series."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.series: list[tuple[str, dict[str, Any]]] = []
        self.problem: Exception | None = None

    async def post_event(self, event: dict[str, Any]) -> None:
        if isinstance(self.problem, RetryLater):
            raise self.problem
        self.posted.append(event)

    async def count_event(self, _namespace: str, name: str, series: dict[str, Any]) -> None:
        if self.problem:
            raise self.problem
        self.series.append((name, series))


class Recording:
    """A recorder, its API, the job that it writes about, and the time."""

    def __init__(self, one: Any) -> None:
        self.api, self.one = Api(), one
        api: Any = self.api
        self.recorder = EventRecorder(api, "operator-1", lambda: one.now)

    async def after(self, seconds: float, event: Event = UNREACHABLE) -> None:
        self.one.now += timedelta(seconds=seconds)
        self.one.object["metadata"]["resourceVersion"] = str(int(self.one.now.timestamp()))
        await self.recorder.record(self.one.job, event)


@pytest.fixture
def recording(scene: Callable[..., Any]) -> Recording:
    return Recording(scene())


def test_a_note_is_cut_to_the_bytes_that_the_events_api_takes_and_a_name_stays_valid(scene: Any) -> None:
    subject = scene(name="a" * 62 + "." + "b" * 62 + "." + "c" * 62 + "." + "d" * 40 + "-" + "e" * 20).job
    event = build_event(subject, Event(EventReason.FAILED, "行が無効です。" * 100), "operator", datetime.now(UTC))
    assert 1000 < len(event["note"].encode()) <= 1024
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", event["metadata"]["name"])


async def test_a_repeated_event_is_counted_in_its_series(recording: Recording) -> None:
    for _ in range(3):
        await recording.after(60)
    (event,) = recording.api.posted
    assert [series["count"] for _, series in recording.api.series] == [2, 3]
    assert {name for name, _ in recording.api.series} == {event["metadata"]["name"]}
    assert recording.api.series[-1][1]["lastObservedTime"] > event["eventTime"]


async def test_a_series_ends_after_six_minutes_and_with_another_message(recording: Recording) -> None:
    await recording.after(0)
    await recording.after(361)
    await recording.after(1, Event(EventReason.UNREACHABLE, "another", is_warning=True))
    assert len({event["metadata"]["name"] for event in recording.api.posted}) == 3
    assert recording.api.series == []


async def test_an_event_that_kubernetes_has_removed_is_posted_again(recording: Recording) -> None:
    await recording.after(0)
    recording.api.problem = Gone("events not found")
    await recording.after(60)
    assert len(recording.api.posted) == 2


async def test_an_event_that_cannot_be_posted_stops_nothing_and_is_no_series(recording: Recording) -> None:
    recording.api.problem = RetryLater("busy")
    await recording.after(0)
    recording.api.problem = None
    await recording.after(1)
    assert (len(recording.api.posted), recording.api.series) == (1, [])


async def test_an_event_that_cannot_be_counted_is_counted_with_the_next_one(recording: Recording) -> None:
    await recording.after(0)
    recording.api.problem = RetryLater("busy")
    await recording.after(60)
    recording.api.problem = None
    await recording.after(60)
    assert len(recording.api.posted) == 1
    assert [series["count"] for _, series in recording.api.series] == [3]


async def test_only_the_latest_series_are_kept(recording: Recording) -> None:
    for number in range(MAX_SERIES + 1):
        await recording.after(0, Event(EventReason.UNREACHABLE, str(number)))
    await recording.after(0, Event(EventReason.UNREACHABLE, "0"))
    await recording.after(0, Event(EventReason.UNREACHABLE, str(MAX_SERIES)))
    assert (len(recording.api.posted), len(recording.api.series)) == (MAX_SERIES + 2, 1)
