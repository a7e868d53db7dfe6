"""`/healthz`, `/readyz` and `/metrics` on one port."""

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.objects import Key
from finetune_operator.metrics.registry import Metrics

STUCK_SECONDS = 120.0
SCRAPE_SECONDS = 1.0
"""Scrapes within this time get the same text, which is made once, in a thread: any pod may ask."""


class Health:
    """Serves probes and scrapes. A blocked event loop serves neither, so the liveness probe fails."""

    def __init__(self, queue: WorkQueue[Key], cache: WatchCache, metrics: Metrics) -> None:
        self.ready = asyncio.Event()
        self._queue = queue
        self._cache = cache
        self._metrics = metrics
        self._scrape: asyncio.Task[bytes] | None = None
        self._scraped_at = -SCRAPE_SECONDS

    async def serve(self, port: int) -> web.AppRunner:
        """Start to listen on every address."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self.on_healthz),
                web.get("/readyz", self.on_readyz),
                web.get("/metrics", self.on_metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, port=port).start()
        return runner

    async def on_healthz(self, _: web.Request) -> web.Response:
        """Return 503 if jobs wait and no worker has taken one for `STUCK_SECONDS`."""
        stalled = self._queue.stalled_for()
        if stalled > STUCK_SECONDS:
            return web.Response(status=503, text=f"no worker has taken a queued job for {stalled:.0f} s\n")
        return web.Response(text="ok\n")

    async def on_readyz(self, _: web.Request) -> web.Response:
        """Return 503 until the watches have started."""
        return web.Response(text="ok\n") if self.ready.is_set() else web.Response(status=503, text="starting\n")

    async def on_metrics(self, _: web.Request) -> web.Response:
        """Return every metric in Prometheus' text format."""
        now = asyncio.get_running_loop().time()
        if self._scrape is None or (self._scrape.done() and now - self._scraped_at >= SCRAPE_SECONDS):
            self._scraped_at = now
            self._metrics.update_gauges(len(self._queue), self._cache.last_event)
            self._scrape = asyncio.create_task(asyncio.to_thread(generate_latest, self._metrics.registry))
        body = await asyncio.shield(self._scrape)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
