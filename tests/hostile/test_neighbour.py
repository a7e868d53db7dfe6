"""A pod on the network of the operator and of trainers, which may open connections to their ports."""

import asyncio
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from waiting import wait_until

from finetune_operator.controller import http_server
from finetune_operator.controller.health import Health
from finetune_operator.controller.http_server import serve
from finetune_operator.controller.scrape import Scrape
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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def get(port: int, path: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status


async def connect_silently(port: int, source: str) -> socket.socket:
    """Open a connection from that address, and let the server accept it."""
    opened = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port), 10, (source, 0))
    opened.setblocking(False)
    return opened


def is_open(connection: socket.socket) -> bool:
    try:
        return connection.recv(1 << 20) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


async def test_many_scrapes_at_once_are_one_and_the_probes_answer_meanwhile() -> None:
    metrics, slow = Metrics(), SlowCollector()
    metrics.registry.register(slow)
    queue, ports, count = WorkQueue(1), (free_port(), free_port()), http_server.MAX_CONNECTIONS
    routes = Health(queue).routes, Scrape(queue, WatchCache(), metrics).routes
    runners = [await serve(one, port) for one, port in zip(routes, ports, strict=True)]
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{ports[1]}", connector=connector) as session:
            scrapes = [asyncio.create_task(session.get("/metrics")) for _ in range(count)]
            assert await asyncio.to_thread(slow.began.wait, 60)
            for _ in range(10):
                assert await get(ports[0], "/healthz") == 200
            slow.may_end.set()
            answers = await asyncio.gather(*scrapes)
            assert [answer.status for answer in answers] == [200] * count
            assert all("slow 1.0" in text for text in [await answer.text() for answer in answers])
    finally:
        slow.may_end.set()
        for runner in runners:
            await runner.cleanup()
    assert slow.scrapes == 1


async def test_silent_connections_take_few_file_descriptors_and_no_place_of_another_client() -> None:
    health, port, most = Health(WorkQueue(1)), free_port(), http_server.MAX_CONNECTIONS
    runner = await serve(health.routes, port)
    with ExitStack() as stack:
        other = stack.enter_context(await connect_silently(port, "127.0.0.3"))
        silent = [stack.enter_context(await connect_silently(port, "127.0.0.2")) for _ in range(10 * most)]
        await wait_for(lambda: sum(map(is_open, silent)) < most, "the end of the others")
        for _ in range(3):
            assert await get(port, "/healthz") == 200
        assert is_open(other)
    await runner.cleanup()


async def test_a_silent_client_and_one_that_reads_nothing_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.5)
    port = free_port()
    large = web.Response(body=b"x" * (64 << 20))

    async def respond() -> web.Response:
        return large

    runner = await serve({"/metrics": respond}, port)
    with ExitStack() as stack:
        silent = stack.enter_context(await connect_silently(port, "127.0.0.1"))
        unread, slow = [stack.enter_context(await connect_silently(port, "127.0.0.1")) for _ in range(2)]
        unread.send(b"GET /metrics HTTP/1.1\r\nHost: operator\r\n\r\n")
        slow.send(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        await wait_for(lambda: not runner.server.connections, "the end of all")
        assert not is_open(silent)
        assert not is_open(slow)
    await runner.cleanup()


async def test_a_connection_ends_with_its_answer() -> None:
    health, port = Health(WorkQueue(1)), free_port()
    runner = await serve(health.routes, port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: operator\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await runner.cleanup()


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
