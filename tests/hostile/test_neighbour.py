"""A pod on the network of the operator and of trainers, which may open connections to their ports."""

import asyncio
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import aiohttp
from prometheus_client.core import GaugeMetricFamily, Metric
from waiting import wait_until

from finetune_operator.controller.health import Health
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.metrics.registry import Metrics
from finetune_trainer.monitoring.http_server import MAX_CONNECTIONS
from finetune_trainer.monitoring.reporter import Reporter


class SlowCollector:
    """A collector that takes as long as ten thousand jobs would."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.scrapes = 0

    def describe(self) -> Iterator[Metric]:
        """Registered without a scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return one series when the test lets it."""
        self.scrapes += 1
        self.began.set()
        assert self.may_end.wait(60)
        yield GaugeMetricFamily("slow", "One series.", value=1)


async def test_a_hundred_scrapes_at_once_are_one_and_the_probes_answer_meanwhile() -> None:
    metrics, slow = Metrics(), SlowCollector()
    metrics.registry.register(slow)
    health = Health(WorkQueue(), WatchCache(), metrics)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = await health.serve(port)
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
            scrapes = [asyncio.create_task(session.get("/metrics")) for _ in range(100)]
            assert await asyncio.to_thread(slow.began.wait, 60)
            for _ in range(10):
                assert (await session.get("/healthz")).status == 200
            slow.may_end.set()
            answers = await asyncio.gather(*scrapes)
            assert [answer.status for answer in answers] == [200] * 100
            assert all("slow 1.0" in text for text in [await answer.text() for answer in answers])
    finally:
        slow.may_end.set()
        await runner.cleanup()
    assert slow.scrapes == 1


def test_connections_that_say_nothing_take_few_threads_and_no_answer_from_others() -> None:
    reporter = Reporter("uid")
    port = reporter.serve(0)
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(10 * MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=10) as answer:
                assert b'"jobUid":"uid"' in answer.read()
        wait_until(lambda: threading.active_count() - before <= MAX_CONNECTIONS + 2, "the end of the other threads")
