"""An HTTP server for clients that are not trusted: any pod of the cluster may connect."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

MAX_CONNECTIONS = 32
REQUEST_SECONDS = 30.0
"""Time for one connection, from its start to the last byte of its answer: of a silent or slow client too."""
SHUTDOWN_SECONDS = 1.0

Respond = Callable[[], Awaitable[web.Response]]


class BoundedServer(web.Server):
    """A server with few connections, each for one request and a short time.

    One connection more closes the oldest one of the address that has the most, so that a pod with many connections
    takes no place of another client.
    """

    def __init__(self, routes: Mapping[str, Respond]) -> None:
        super().__init__(self._respond, access_log=None)
        self._routes = routes
        self._addresses: dict[RequestHandler, str] = {}
        self._timeouts: dict[RequestHandler, asyncio.TimerHandle] = {}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Make room for the connection, and limit its time."""
        super().connection_made(handler, transport)
        self._addresses[handler] = (transport.get_extra_info("peername") or [""])[0]
        # aiohttp has no time limit for a client's first request, and none for reading the answer.
        self._timeouts[handler] = self._loop.call_later(REQUEST_SECONDS, transport.abort)
        if len(self._addresses) > MAX_CONNECTIONS:
            busiest = Counter(self._addresses.values()).most_common(1)[0][0]
            oldest = next(one for one, address in self._addresses.items() if address == busiest)
            self._connections[oldest].abort()
            self._forget(oldest)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget the connection."""
        self._forget(handler)
        super().connection_lost(handler, exc)

    def _forget(self, handler: RequestHandler) -> None:
        self._addresses.pop(handler, None)
        timeout = self._timeouts.pop(handler, None)
        if timeout:
            timeout.cancel()

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        respond = self._routes.get(request.path)
        response = await respond() if respond else web.Response(status=404, text="not found\n")
        response.force_close()
        return response


async def serve(routes: Mapping[str, Respond], port: int) -> web.ServerRunner:
    """Start to serve the paths on every address."""
    runner = web.ServerRunner(BoundedServer(routes), shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
