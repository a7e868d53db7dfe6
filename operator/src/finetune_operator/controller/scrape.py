"""The answer to Prometheus."""

import asyncio
from collections.abc import AsyncIterator, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from finetune_operator.controller.http_server import Respond
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.metrics.registry import Metrics

SCRAPE_SECONDS = 1.0
"""Scrapes within this time get the same text, which is made once, in a thread: any pod may ask."""
SLICE_BYTES = 1 << 16
"""How much of the text is written at once: the rest waits for the client, without a copy for each slow one."""


class Scrape:
    """`/metrics`: every metric in Prometheus' text format."""

    def __init__(self, queue: WorkQueue, cache: WatchCache, metrics: Metrics) -> None:
        self._queue = queue
        self._cache = cache
        self._metrics = metrics
        self._latest: asyncio.Task[bytes] | None = None
        self._began_at = -SCRAPE_SECONDS

    @property
    def routes(self) -> Mapping[str, Respond]:
        """What the path responds."""
        return {"/metrics": self._on_metrics}

    async def _on_metrics(self) -> web.Response:
        now = asyncio.get_running_loop().time()
        if self._latest is None or (self._latest.done() and now - self._began_at >= SCRAPE_SECONDS):
            self._began_at = now
            self._metrics.prepare_scrape(len(self._queue), self._cache.last_event)
            self._latest = asyncio.create_task(asyncio.to_thread(self._metrics.expose))
        text = await asyncio.shield(self._latest)
        return web.Response(body=_cut(text), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _cut(text: bytes) -> AsyncIterator[bytes]:
    """Yield a text in slices."""
    for start in range(0, len(text), SLICE_BYTES):
        yield text[start : start + SLICE_BYTES]
