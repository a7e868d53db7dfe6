"""A client of the API server for the benches: plain JSON, many threads, and watches that reconnect."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson
import urllib3
from kubernetes import client, config

Object = dict[str, Any]
PAUSE_SECONDS = 0.5


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


class KubeApi:
    """The API server of a kubeconfig."""

    def __init__(self, kubeconfig: Path, threads: int = 16) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        configuration.connection_pool_maxsize = threads
        self._host = configuration.host
        self._pool: urllib3.PoolManager = client.ApiClient(configuration).rest_client.pool_manager

    def call(self, verb: str, path: str, body: Object | None = None, kind: str = "application/json") -> Object:
        """Send a request; raises ApiError if it is refused."""
        headers = {"Accept": "application/json", "Content-Type": kind}
        data = orjson.dumps(body) if body is not None else None
        answer = self._pool.request(verb, self._host + path, body=data, headers=headers, retries=3, timeout=60)
        if answer.status >= 400:
            raise ApiError(answer.status, answer.data.decode(errors="replace"))
        return cast("Object", orjson.loads(answer.data))

    def patch_status(self, path: str, status: Object) -> None:
        """Patch a status as a kubelet does; one of an object that is gone has no effect."""
        try:
            self.call("PATCH", f"{path}/status", {"status": status}, "application/strategic-merge-patch+json")
        except ApiError as problem:
            if problem.status != 404:
                raise

    def watch(self, path: str) -> Iterator[tuple[str, Object]]:
        """Yield type and object of every event forever, first those that exist; after a pause all come again."""
        url = f"{self._host}{path}{'&' if '?' in path else '?'}watch=true"
        while True:
            try:
                answer = self._pool.request("GET", url, preload_content=False, retries=False)
                for line in answer:
                    event = orjson.loads(line)
                    yield event["type"], event["object"]
            except urllib3.exceptions.HTTPError:
                time.sleep(PAUSE_SECONDS)
