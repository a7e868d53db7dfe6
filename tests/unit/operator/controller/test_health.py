"""The answers of the probes, over a real socket."""

import socket

import aiohttp

from finetune_operator.controller.health import STUCK_SECONDS, Health
from finetune_operator.controller.http_server import serve
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.objects import Key

KEY = Key("team", "one")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def ask(health: Health, *paths: str) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = await serve(health.routes, port)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            return [(await session.get(path)).status for path in paths]
    finally:
        await runner.cleanup()


async def test_liveness_fails_when_a_job_waits_and_no_worker_takes_any() -> None:
    clock = Clock()
    queue = WorkQueue(1, clock)
    health = Health(queue)
    queue.add(KEY)
    clock.now = STUCK_SECONDS
    assert await ask(health, "/healthz") == [200]
    clock.now = STUCK_SECONDS + 1
    assert await ask(health, "/healthz") == [503]
    assert await queue.get() == KEY
    assert await ask(health, "/healthz") == [200]


async def test_liveness_passes_for_an_idle_operator_and_for_one_whose_keys_are_due_later() -> None:
    clock = Clock()
    queue = WorkQueue(1, clock)
    queue.add_after(KEY, 10_000)
    clock.now = 9_000
    assert await ask(Health(queue), "/healthz") == [200]


async def test_readiness_waits_for_the_watches_and_liveness_does_not() -> None:
    health = Health(WorkQueue(1))
    assert await ask(health, "/readyz", "/healthz") == [503, 200]
    health.ready.set()
    assert await ask(health, "/readyz") == [200]
