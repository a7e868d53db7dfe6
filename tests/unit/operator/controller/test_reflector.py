"""An object that cannot be read, whatever a user has written into it, does not end the watch of all others."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from job_operator import Operator
from job_world import KEY, World
from kopf._cogs.clients.watching import WatchingError

from finetune_operator.controller import reflector
from finetune_operator.controller.handlers import build_kopf_settings
from finetune_operator.controller.intake import Intake
from finetune_operator.controller.reflector import Bookmark, Reflector
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.objects import LATEST, Job
from finetune_operator.kube.pod import Pod
from finetune_operator.metrics.registry import Metrics
from finetune_operator.settings import Settings

LONG = 9_999_999_999_999
"""`kubectl delete pod --grace-period=9999999999999`."""


def pod_of_the_job(name: str, **meta: Any) -> Any:
    """A pod that names the job, as every user of the namespace can create one."""
    known = {"namespace": "team", "name": name, "uid": f"{name}-uid", "resourceVersion": "70"}
    known |= {"annotations": {"finetune.dev/job-name": "one"}}
    return {"metadata": known | meta, "spec": {"containers": []}, "status": {"phase": "Running"}}


@pytest.mark.parametrize("grace", [70_000_000_000, LONG, 2**63 - 1])
def test_a_pod_with_any_grace_period_can_be_read(grace: int) -> None:
    meta = {"deletionTimestamp": "2026-03-01T12:00:00Z", "deletionGracePeriodSeconds": grace}
    assert Pod.from_object(pod_of_the_job("long", **meta)).deleting


@pytest.mark.parametrize("time", ["10000-01-01T09:59:59Z", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z"])
def test_a_job_that_has_ended_at_any_time_can_be_read(built: Any, time: str) -> None:
    ended = {"completionTime": time, "conditions": [{"type": "Complete", "status": "True"}]}
    body = built()
    body["metadata"] |= {"uid": "one-1-uid"}
    assert Job.from_object(body | {"status": ended}).completed == LATEST


def test_a_finished_job_with_any_completion_time_can_be_read(scene: Any, settings: Settings) -> None:
    one = scene(ttlSecondsAfterFinished=60).to_training()
    one.end(one.pod("one-1"), 0, one.published())
    one.complete("one-1")
    one.settle()
    one.status["completionTime"] = "9999-12-30T00:00:00Z"
    cache = WatchCache()
    Intake(cache, WorkQueue(1), Metrics(), settings).put("finetunejobs", one.object)
    assert cache.store.find(one.job.key)


@pytest.fixture
def operator() -> Iterator[Operator]:
    loop = asyncio.new_event_loop()
    yield Operator(World(), loop)
    loop.close()


def follow(operator: Operator, monkeypatch: pytest.MonkeyPatch, items: list[Any]) -> None:
    """Let the watch of pods deliver these, and then nothing."""

    async def stream(about: Any) -> AsyncIterator[Any]:
        for item in items:
            yield item if item is Bookmark.LISTED else {"type": item[0], "object": item[1]}
        is_delivered.set()
        await asyncio.Event().wait()

    async def run() -> None:
        watching = asyncio.create_task(one.run())
        await asyncio.wait_for(is_delivered.wait(), 30)
        watching.cancel()

    is_delivered = asyncio.Event()
    monkeypatch.setattr(reflector, "stream_objects", stream)
    settings = build_kopf_settings(Settings(trainer_image="x"))
    one = Reflector("pods", None, operator.intake, operator.cache, settings, resync_seconds=300)
    operator.loop.run_until_complete(run())


def test_only_what_a_watch_delivers_after_its_list_counts_as_an_event(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = pod_of_the_job("pod")
    follow(operator, monkeypatch, [("ADDED", pod), Bookmark.LISTED])
    assert operator.cache.last_event == {}
    follow(operator, monkeypatch, [("ADDED", pod), Bookmark.LISTED, ("MODIFIED", pod)])
    assert list(operator.cache.last_event) == ["pods"]


async def test_watches_that_are_closed_at_once_are_an_error_and_not_opened_again_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = {"metadata": {"resourceVersion": "70", "annotations": {reflector.LIST_ENDS: "true"}}}
    watches = [[{"type": "BOOKMARK", "object": end}], [{"type": "MODIFIED", "object": pod_of_the_job("pod")}], []]

    async def watch(since: str | None) -> AsyncIterator[Any]:
        for event in watches.pop(0):
            yield event

    monkeypatch.setattr(reflector, "watch_objs", watch)
    with pytest.raises(WatchingError, match="closed at once"):
        async for _ in reflector.stream_objects({}):
            pass
    assert watches == []


UNREADABLE = {"status": {"conditions": "none"}}


def test_an_unreadable_pod_is_skipped_with_one_warning_and_the_others_are_read(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    broken, other = pod_of_the_job("broken") | UNREADABLE, pod_of_the_job("other")
    follow(operator, monkeypatch, [("ADDED", broken), ("ADDED", other), Bookmark.LISTED, ("MODIFIED", broken)])
    assert [pod.name for pod in operator.cache.store.pods.of(KEY)] == ["other"]
    (warning,) = [one.getMessage() for one in caplog.records if one.name == reflector.__name__]
    assert "team/broken" in warning


def test_the_last_state_of_a_pod_that_became_unreadable_stays_until_it_is_deleted(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = pod_of_the_job("pod")
    operator.intake.put("pods", pod)
    follow(operator, monkeypatch, [("ADDED", pod | UNREADABLE), Bookmark.LISTED])
    assert [one.name for one in operator.cache.store.pods.of(KEY)] == ["pod"]
    follow(operator, monkeypatch, [("DELETED", pod | UNREADABLE), Bookmark.LISTED])
    follow(operator, monkeypatch, [Bookmark.LISTED])
    assert not operator.cache.store.pods.of(KEY)
