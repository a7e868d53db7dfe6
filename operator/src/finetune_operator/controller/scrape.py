"""The answer to Prometheus."""

import asyncio
from collections.abc import Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_operator.controller.http_server import Respond
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.metrics.registry import Metrics

SCRAPE_SECONDS = 1.0
"""Scrapes within this time get the same text, which is made once, in a thread: any pod may ask."""


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
            self._metrics.update_gauges(len(self._queue), self._cache.last_event)
            self._latest = asyncio.create_task(asyncio.to_thread(generate_latest, self._metrics.registry))
        body = await asyncio.shield(self._latest)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
