"""The connection to the API server, and its rate limit."""

import asyncio
import os
import time
from typing import Any
from urllib.parse import urlencode

import kubernetes
import urllib3

from finetune_api import names
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

    def request(self, verb: str, path: str, body: bytes | None, query: dict[str, Any]) -> urllib3.BaseHTTPResponse:
        """Send one request, without retries: the work queue retries."""
        wanted = {name: value for name, value in query.items() if value not in {"", None}}
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        content = "application/merge-patch+json" if verb == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": names.MANAGED_BY}
        for item in self._configuration.auth_settings().values():
            if item["in"] == "header" and item["value"]:
                headers[item["key"]] = item["value"]
        pool: urllib3.PoolManager = self._client.rest_client.pool_manager
        return pool.request(verb, url, body=body, headers=headers, timeout=self._timeout, retries=False)

    def close(self) -> None:
        """Close the connections."""
        self._client.rest_client.pool_manager.clear()


class TokenBucket:
    """A rate limit of `rate` per second with a `burst`. Not thread-safe: for one event loop."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._free = float(burst)
        self._at = time.monotonic()
        self._paused_until = 0.0

    def pause(self, seconds: float) -> None:
        """Let no token be taken for some seconds, at most `MAX_PAUSE_SECONDS`."""
        self._paused_until = max(self._paused_until, time.monotonic() + min(seconds, MAX_PAUSE_SECONDS))

    async def acquire(self) -> None:
        """Take one token; wait for it if there is none, in the order of the calls."""
        now = time.monotonic()
        self._free = min(self._burst, self._free + (now - self._at) * self._rate) - 1
        self._at = now
        if self._free < 0:
            await asyncio.sleep(-self._free / self._rate)
        if (left := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left)
