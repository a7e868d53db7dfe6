"""Conflicts, an overloaded API server, slow listings and many pods: the operator slows down, and loses no job."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from job_operator import Operator
from job_world import KEY, World
from kubernetes.config import kube_config

from finetune_operator.cluster import Cluster
from finetune_operator.connection import RequestLimit
from finetune_operator.controller.intake import Intake
from finetune_operator.controller.watch_cache import MAX_ENDED_BYTES, WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.errors import Overloaded, RetryLater
from finetune_operator.kube.objects import FineTuneJob, Key
from finetune_operator.kube.pod import Pod
from finetune_operator.metrics.registry import Metrics
from finetune_operator.settings import Settings

Build = Callable[..., Any]
JOB = {"metadata": {"namespace": "team", "name": "one", "uid": "u"}, "spec": {}}


class Contested(World):
    """Another client writes the job whenever the operator is about to."""

    async def patch_status(self, job: FineTuneJob, change: dict[str, Any]) -> FineTuneJob:
        self.version += 1
        return await super().patch_status(job, change)


def test_two_conflicts_are_retried_at_once_and_the_next_ones_with_backoff() -> None:
    loop = asyncio.new_event_loop()
    operator = Operator(Contested(), loop)
    waits = []
    for _ in range(5):
        operator.look()
        waits.append(seconds_to_next(operator, loop))
    loop.close()
    assert max(waits[:2]) < 0.2
    assert waits[2] > 0.2
    assert waits[4] > waits[2]


def seconds_to_next(operator: Operator, loop: asyncio.AbstractEventLoop) -> float:
    """Let the time pass until the job is due again."""
    world, start = operator.world, operator.world.now.timestamp()
    while True:
        try:
            operator.queue.done(loop.run_until_complete(asyncio.wait_for(operator.queue.get(), 0.01)))
        except TimeoutError:
            world.pass_time(0.05)
        else:
            return world.now.timestamp() - start


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Serve an API with one handler, and return a client of it."""

    async def serve(handler: Any) -> tuple[Cluster, web.AppRunner]:
        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config | {"apiVersion": "v1", "kind": "Config", "current-context": "x"}))
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))  # read at the import
        return Cluster(Settings(trainer_image="registry.example/trainer:1"), Metrics()), runner

    return serve


async def test_an_overloaded_api_server_gets_no_request_for_as_long_as_it_asks(served: Any) -> None:
    times: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        times.append(time.monotonic())
        if len(times) == 1:
            return web.json_response({"message": "too many"}, status=429, headers={"Retry-After": "1"})
        return web.json_response(JOB)

    cluster, runner = await served(answer)
    with pytest.raises(RetryLater):
        await cluster.get_job(KEY)
    await asyncio.gather(*(cluster.get_job(Key("team", name)) for name in ("two", "three")))
    await cluster.close()
    await runner.cleanup()
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.95


async def test_fewer_requests_are_under_way_after_each_refusal_and_again_more_after_answers() -> None:
    limit, under_way, most = RequestLimit(16), 0, 0

    async def send(*, is_refused: bool = False) -> None:
        nonlocal under_way, most
        async with limit.slot():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            if is_refused:
                raise Overloaded("too many")

    await asyncio.gather(*(send() for _ in range(40)))
    assert most == 16
    await asyncio.gather(*(send(is_refused=True) for _ in range(16)), return_exceptions=True)
    assert limit.allowed == 8  # one round of refusals, however many they are
    most = 0
    await asyncio.gather(*(send() for _ in range(8)))
    assert most == 8
    await asyncio.gather(*(send() for _ in range(200)))
    assert limit.allowed == 16


async def test_a_request_that_is_cancelled_while_it_waits_takes_no_slot() -> None:
    limit = RequestLimit(1)
    async with limit.slot():
        waiting = asyncio.create_task(limit.slot().__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5), limit.slot():
        pass


@pytest.fixture
def intake(settings: Settings) -> Intake:
    return Intake(WatchCache(), WorkQueue(1), Metrics(), settings)


def test_a_job_created_during_a_list_is_not_forgotten(intake: Intake, scene: Build) -> None:
    one, old = scene().to_training(), scene("old")
    old.object["metadata"]["uid"] = "old-uid"
    intake.put("finetunejobs", old.object)
    listing = intake.begin_listing("finetunejobs", None)
    intake.take_job(one.job)
    pod = one.pod("one-1")
    one.end(pod, 75)
    intake.remove("pods", pod)
    intake.end_listing("finetunejobs", listing, is_complete=True)
    assert list(intake.cache.ended_pods) == [KEY]
    assert intake.metrics.jobs.keys() == {KEY}


def test_nothing_is_kept_of_the_pods_of_unknown_jobs(intake: Intake, scene: Build) -> None:
    one = scene("never").to_training()
    pod = one.pod("never-1")
    one.end(pod, 75)
    intake.put("pods", pod)
    intake.remove("pods", pod)
    assert intake.cache.ended_pods == {}
    assert len(intake.cache.store.pods) == 0


def test_the_kept_pods_are_bounded_in_bytes(scene: Build) -> None:
    one = scene().to_training()
    pod = one.pod("one-1")
    one.end(pod, 75, "x" * 1_000_000)
    cache = WatchCache()
    for number in range(6000):
        pod["metadata"]["uid"] = f"uid-{number}"
        cache.keep_ended_pod(Key("team", f"job-{number % 200}"), Pod.from_object(pod, gone=True))
    kept = [one for pods in cache.ended_pods.values() for one in pods.values()]
    assert len(kept) > 1000
    assert sum(len(one.message) for one in kept) <= MAX_ENDED_BYTES
    assert Key("team", "job-199") in cache.ended_pods
    for key in list(cache.ended_pods):
        cache.forget(key)
    assert cache.ended_bytes == 0
