"""What the operator notices of its own surroundings: watches that deliver nothing, and a second operator."""

import asyncio
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from counting_api import CountingApi
from job_operator import Operator
from job_world import KEY, World

from finetune_operator import __main__
from finetune_operator.controller.handlers import watch
from finetune_operator.controller.health import SILENT_SECONDS, Health
from finetune_operator.controller.intake import Intake
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.errors import Outdated, RetryLater
from finetune_operator.kube.objects import Job
from finetune_operator.metrics.registry import Metrics
from finetune_operator.settings import Settings

Operate = Callable[[World], Operator]


@pytest.fixture
def operate() -> Iterator[Operate]:
    loop = asyncio.new_event_loop()
    yield lambda world: Operator(world, loop)
    loop.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def readiness(cache: WatchCache) -> Any:
    health = Health(WorkQueue(1), cache.silent_for)
    health.ready.set()
    return asyncio.run(health.routes["/readyz"]()).status  # type: ignore[call-arg, arg-type]


def test_readiness_fails_while_the_watch_does_not_deliver_what_the_operator_has_written(operate: Operate) -> None:
    operator, clock = operate(World()), Clock()
    operator.cache.clock = clock
    operator.look()
    assert readiness(operator.cache) == 200
    clock.now = SILENT_SECONDS + 1
    assert readiness(operator.cache) == 503
    operator.cache.confirm_event(KEY)
    assert readiness(operator.cache) == 200


class Refusing(World):
    """An API server on which every write of a status conflicts."""

    async def patch_status(self, job: Any, change: Any) -> Any:
        raise Outdated("another client wrote it")


@pytest.mark.parametrize("world", [Refusing(), World()], ids=["refused", "deleted"])
def test_a_write_that_causes_no_event_does_not_count_against_the_watch(operate: Operate, world: World) -> None:
    operator, clock = operate(world), Clock()
    operator.cache.clock = clock
    operator.look()
    if type(world) is World:
        operator.cache.forget(KEY)
    clock.now = SILENT_SECONDS + 1
    assert readiness(operator.cache) == 200


def write_as(world: World, manager: str, time: str) -> None:
    entry = {"manager": manager, "operation": "Update", "subresource": "status", "time": time}
    world.version += 1
    fields = [one for one in world.job["metadata"].get("managedFields", []) if one["manager"] != manager]
    world.job["metadata"]["managedFields"] = [*fields, entry]


def others(operator: Operator) -> float | None:
    return operator.metrics.registry.get_sample_value("finetune_operator_other_operators")


def test_a_second_operator_that_writes_the_same_job_is_reported(operate: Operate, caplog: Any) -> None:
    world = World()
    write_as(world, "finetune-operator-old", "2026-03-01T10:00:00Z")
    operator = operate(world)
    operator.look()
    write_as(world, "finetune-operator-test", "2026-03-01T12:00:00Z")
    operator.look()
    assert others(operator) == 0
    write_as(world, "finetune-operator-second", "2026-03-01T12:00:01Z")
    operator.look()
    write_as(world, "finetune-operator-second", "2026-03-01T12:00:02Z")
    operator.look()
    assert others(operator) == 1
    warned = [one.getMessage() for one in caplog.records if "another operator" in one.getMessage()]
    assert len(warned) == 1
    assert "finetune-operator-second" in warned[0]


async def test_an_error_that_ends_the_watches_ends_the_operator(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> str | None:
        raise RuntimeError("broken")

    cache, queue, metrics = WatchCache(), WorkQueue(1), Metrics()
    with CountingApi().serving(tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        with pytest.raises(ExceptionGroup, match="unhandled") as error:
            await asyncio.wait_for(watch(Intake(cache, queue, metrics, settings), cache, settings, fail), 30)
    assert error.group_contains(RuntimeError, match="broken")


class Busy:
    """A cluster with Kueue, whose first answer is 429."""

    tries = 0

    async def find_kueue(self) -> str | None:
        self.tries += 1
        if self.tries == 1:
            raise RetryLater("GET /apis/kueue.x-k8s.io: too many requests")
        return "v1beta1"


async def test_a_request_without_an_answer_does_not_make_a_cluster_one_without_kueue(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "WAIT_SECONDS", 0.01)
    cluster: Any = Busy()
    cache, queue = WatchCache(), WorkQueue(1)
    with CountingApi().serving(tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        find = functools.partial(__main__.find_kueue, cluster)
        watching = asyncio.create_task(watch(Intake(cache, queue, Metrics(), settings), cache, settings, find))
        await asyncio.wait_for(cache.store.is_synced.wait(), 30)
        watching.cancel()
        await asyncio.wait([watching])
    assert cache.store.has_kueue


QUEUED: dict[str, Any] = {
    "metadata": {
        "name": "job-1",
        "namespace": KEY.namespace,
        "uid": "uid-1",
        "resourceVersion": "1",
        "labels": {"kueue.x-k8s.io/queue-name": "gpus"},
    },
    "spec": {"suspend": True, "template": {"spec": {"containers": [{}]}}},
}


async def test_kueue_is_looked_for_as_soon_as_a_job_waits_for_it(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions, found = [None, "v1beta1"], asyncio.Event()

    async def find() -> str | None:
        if len(versions) == 1:
            found.set()
        return versions.pop(0)

    cache, queue = WatchCache(), WorkQueue(1)
    with CountingApi().serving(tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        watching = asyncio.create_task(watch(Intake(cache, queue, Metrics(), settings), cache, settings, find))
        await asyncio.wait_for(cache.store.is_synced.wait(), 30)
        assert not cache.store.has_kueue
        cache.store.children.put(KEY, Job.from_object(QUEUED))
        cache.store.needs_kueue.set()
        await asyncio.wait_for(found.wait(), 30)
        watching.cancel()
        await asyncio.wait([watching])
    assert versions == []


class Upgraded(CountingApi):
    """An API server that serves Workloads in one version, or no longer."""

    def __init__(self) -> None:
        super().__init__()
        self.served: str | None = "v1beta1"
        self.watched = list[str]()

    def serve(self, version: str | None) -> None:
        """Serve another version from now on; the watches of the one before end."""
        self.served = version
        for queue, (kind, *_) in list(self._watchers.items()):
            if kind == "workloads":
                self._loop.call_soon_threadsafe(queue.put_nowait, b"")

    async def find_kueue(self) -> str | None:
        return self.served

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        *_, version, kind = request.path.split("/")
        if kind == "workloads" and version != self.served:
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        if kind == "workloads":
            self.watched.append(version)
        return await super()._handle(request)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- the condition is the operator's
            await asyncio.sleep(0.02)


async def test_workloads_are_watched_in_the_version_that_an_upgrade_of_kueue_leaves_and_not_after_its_removal(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, cache, queue = Upgraded(), WatchCache(), WorkQueue(1)
    with api.serving(tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        intake = Intake(cache, queue, Metrics(), settings)
        watching = asyncio.create_task(watch(intake, cache, settings, api.find_kueue))
        await asyncio.wait_for(cache.store.is_synced.wait(), 30)
        assert (set(api.watched), cache.store.has_kueue) == ({"v1beta1"}, True)
        api.serve("v1beta2")
        await until(lambda: "v1beta2" in api.watched)
        assert cache.store.has_kueue
        api.serve(None)
        await until(lambda: not cache.store.has_kueue)
        watching.cancel()
        await asyncio.wait([watching])


def test_a_look_at_a_job_that_waits_in_a_queue_asks_for_kueue(operate: Operate) -> None:
    operator = operate(World(scheduling={"queueName": "gpus"}))
    operator.look()
    assert operator.cache.store.needs_kueue.is_set()
    operator = operate(World())
    operator.look()
    assert not operator.cache.store.needs_kueue.is_set()
