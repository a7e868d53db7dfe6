"""The connection to the API server, and the limit of its requests."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import kubernetes
import urllib3

from finetune_api import names
from finetune_operator.kube.errors import Overloaded
from finetune_operator.policy.lease import REQUEST_SECONDS
from finetune_operator.settings import Settings

MAX_PAUSE_SECONDS = 60.0


class Connection:
    """Connection with the `kubernetes` client's TLS and credentials, but without its models: objects stay plain
    JSON."""

    def __init__(self, settings: Settings) -> None:
        self._configuration = kubernetes.client.Configuration()
        if os.environ.get("KUBECONFIG") or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            kubernetes.config.load_kube_config(client_configuration=self._configuration)
        else:
            kubernetes.config.load_incluster_config(client_configuration=self._configuration)
        self._configuration.connection_pool_maxsize = settings.workers
        self._client = kubernetes.client.ApiClient(self._configuration)
        self._timeout = urllib3.Timeout(connect=settings.api_timeout_seconds, read=settings.api_timeout_seconds)
        self._urgent_timeout = urllib3.Timeout(total=min(REQUEST_SECONDS, settings.api_timeout_seconds))

    def request(
        self, verb: str, path: str, body: bytes | None, query: dict[str, Any], *, is_urgent: bool = False
    ) -> urllib3.BaseHTTPResponse:
        """Send one request, without retries: the work queue retries, and for an urgent one the election does."""
        wanted = {name: value for name, value in query.items() if value not in {"", None}}
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        content = "application/merge-patch+json" if verb == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": names.MANAGED_BY}
        for item in self._configuration.auth_settings().values():
            if item["in"] == "header" and item["value"]:
                headers[item["key"]] = item["value"]
        timeout = self._urgent_timeout if is_urgent else self._timeout  # after which the connection is not used again
        pool: urllib3.PoolManager = self._client.rest_client.pool_manager
        return pool.request(verb, url, body=body, headers=headers, timeout=timeout, retries=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.rest_client.pool_manager.clear()


class RequestLimit:
    """Limit of the requests that are under way at once, which follows the API server's priority and fairness.

    Each 429 halves it and pauses all requests, each round of answers raises it by one: additive increase and
    multiplicative decrease, as TCP has them. Not thread-safe: for one event loop.
    """

    def __init__(self, most: int, rate: float = 0.0, burst: int = 1) -> None:
        """Allow `most` requests at once; a `rate` above 0 limits the requests per second, beyond a `burst`."""
        self._most = most
        self._allowed = float(most)
        self._under_way = 0
        self._changed = asyncio.Condition()
        self._reduced_at = self._paused_until = 0.0
        self._rate, self._burst = rate, burst
        self._free, self._filled_at = float(burst), time.monotonic()

    @property
    def allowed(self) -> int:
        """Return how many requests may be under way at once now."""
        return int(self._allowed)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait until a request may be sent; the block sends it, and its errors are those of the request."""
        await self._wait_for_rate()
        async with self._changed:
            await self._changed.wait_for(lambda: self._under_way < self.allowed)
            self._under_way += 1
        try:
            await asyncio.sleep(max(0.0, self._paused_until - time.monotonic()))
            sent_at = time.monotonic()
            try:
                yield
            except Overloaded as problem:
                self._reduce(sent_at, problem.after_seconds or 0.0)
                raise
            self._allowed = min(self._most, self._allowed + 1 / self._allowed)
        finally:
            self._under_way -= 1
            async with self._changed:
                self._changed.notify_all()

    def _reduce(self, sent_at: float, pause_seconds: float) -> None:
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + min(pause_seconds, MAX_PAUSE_SECONDS))
        if sent_at >= self._reduced_at:  # requests that were sent before belong to the round that is halved already
            self._allowed, self._reduced_at = max(1.0, self._allowed / 2), now

    async def _wait_for_rate(self) -> None:
        if self._rate:
            now = time.monotonic()
            self._free = min(self._burst, self._free + (now - self._filled_at) * self._rate) - 1
            self._filled_at = now
            await asyncio.sleep(max(0.0, -self._free / self._rate))
