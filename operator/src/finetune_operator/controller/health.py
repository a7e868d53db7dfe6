"""The answers to the kubelet's probes."""

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import web

from finetune_operator.controller.http_server import Respond
from finetune_operator.controller.workqueue import WorkQueue

STUCK_SECONDS = 120.0
SILENT_SECONDS = 60.0


class Health:
    """`/healthz` and `/readyz`. A blocked event loop serves neither, so the liveness probe fails."""

    def __init__(
        self, queue: WorkQueue, silent_for: Callable[[], float] = lambda: 0.0, ready: asyncio.Event | None = None
    ) -> None:
        self.ready = ready or asyncio.Event()
        self.other_leader: Callable[[], str] = lambda: ""
        """Which replica leads instead of this one, which is ready to take over."""
        self._silent_for = silent_for
        self._queue = queue

    @property
    def routes(self) -> Mapping[str, Respond]:
        """What each path responds."""
        return {"/healthz": self._on_healthz, "/readyz": self._on_readyz}

    async def _on_healthz(self) -> web.Response:
        """Return 503 if jobs wait and no worker has taken one for `STUCK_SECONDS`."""
        stalled = self._queue.stalled_for()
        if stalled > STUCK_SECONDS:
            return web.Response(status=503, text=f"no worker has taken a queued job for {stalled:.0f} s\n")
        return web.Response(text="ok\n")

    async def _on_readyz(self) -> web.Response:
        """Return 503 until all objects were listed, and while watches do not deliver the operator's own writes; a
        standby is ready."""
        if other := self.other_leader():
            return web.Response(text=f"standby: {other} leads\n")
        if not self.ready.is_set():
            return web.Response(status=503, text="starting\n")
        silent = self._silent_for()
        if silent > SILENT_SECONDS:
            return web.Response(status=503, text=f"the watch has not delivered a written job for {silent:.0f} s\n")
        return web.Response(text="ok\n")
