"""A scrape with thousands of jobs, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_operator.controller.http_server import serve
from finetune_operator.controller.scrape import SLICE_BYTES, Scrape
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.objects import Key
from finetune_operator.metrics.registry import Metrics

JOBS = 5_000


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """Metrics without jobs, to which the tests add."""
    return Metrics()


@asynccontextmanager
async def serving(metrics: Metrics) -> AsyncIterator[tuple[int, web.ServerRunner]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = await serve(Scrape(WorkQueue(1), WatchCache(), metrics).routes, port)
    try:
        yield port, runner
    finally:
        await runner.cleanup()


def add_jobs(metrics: Metrics, job: Any) -> None:
    for number in range(JOBS):
        metrics.jobs.update(replace(job, key=Key("team", f"job-{number}")))


async def test_a_scrape_has_every_job_once_and_ends(scene: Any, metrics: Metrics) -> None:
    add_jobs(metrics, scene().job)
    async with serving(metrics) as (port, _), aiohttp.ClientSession() as session:
        answer = await session.get(f"http://127.0.0.1:{port}/metrics")
        text = await answer.text()
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert text.count("finetune_job_info{") == JOBS
    assert text.endswith("\n")


async def test_a_client_that_reads_slowly_holds_a_small_part_of_a_large_scrape(scene: Any, metrics: Metrics) -> None:
    add_jobs(metrics, scene().job)
    async with serving(metrics) as (port, runner):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        server = runner.server
        assert server is not None
        (connection,) = server.connections
        transport = connection.transport
        assert transport is not None
        for _ in range(100):
            await asyncio.sleep(0)  # the server writes as much as it may
        assert 0 < transport.get_write_buffer_size() <= 4 * SLICE_BYTES
        writer.close()
