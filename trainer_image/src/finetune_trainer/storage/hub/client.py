"""Requests to one hub: tokens for its own address only, limits of size and time, retries that end with SIGTERM."""

import json
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any, TypeVar

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from finetune_api import __version__
from finetune_trainer.errors import InvalidConfig, StorageUnavailable, TrainerError
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.http_client import open_http, pause
from finetune_trainer.storage.hub.errors import CODES, connection_error, refusal_error
from finetune_trainer.storage.hub.uris import HubConnection, HubUri
from finetune_trainer.storage.retries import retry

T = TypeVar("T")

TIMEOUT = httpx2.Timeout(20.0, connect=5.0)
MAX_ANSWER_BYTES = 16 * 1024 * 1024
ANSWER_SECONDS = 120.0
"""Limits of one response of the API; a page of 1,000 files has less than 1 MiB."""
MAX_REDIRECTS = 10
MIN_RETRY_SECONDS = 30.0
CA_FIELD = "spec.hub.caSecretRef"


class HubClient:
    """Requests to one hub; a failing request is retried for `retry_seconds`."""

    def __init__(self, connection: HubConnection, retry_seconds: float, stop: StopFlag) -> None:
        self.endpoint = connection.endpoint
        self.connection = connection
        self._retry_seconds = max(retry_seconds, MIN_RETRY_SECONDS)
        self._stop = stop

    @cached_property
    def _http(self) -> httpx2.Client:
        """Return the client; it follows no redirect, because it would read its body."""
        client = open_http(self.connection.ca_file, TIMEOUT, CA_FIELD)
        weakref.finalize(self, client.close)
        return client

    def get_json(self, address: HubUri, path: str) -> tuple[Any, str | None]:
        """Return a response of the API, and the query of its next page, if any."""

        def ask() -> tuple[Any, str | None]:
            with self._named(address), self._open(f"{self.endpoint}/api/{path}", address, {}) as response:
                following = response.links.get("next", {}).get("url")
                return self._read_json(response, address), httpx2.URL(following).query.decode() if following else None

        return self.retry(ask)

    @contextmanager
    def stream(self, address: HubUri, wanted: str | None = None) -> Iterator[httpx2.Response]:
        """Stream the file at a pinned address, or its `wanted` range if the server supports ranges (206)."""
        url = hf_hub_url(
            address.repo.name,
            address.path,
            repo_type=address.repo.kind.value,
            revision=address.commit,
            endpoint=self.endpoint,
        )
        with self._named(address), self._open(url, address, {"Range": wanted} if wanted else {}) as response:
            yield response

    @contextmanager
    def _open(self, url: str, address: HubUri, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """Open a successful response, after redirects. Of any other one no body is read: it may have no end."""
        own = self._headers(address) | {"Accept-Encoding": "identity"}
        request = self._http.build_request("GET", url, headers=own | dict(headers))
        for _ in range(MAX_REDIRECTS):
            with closing(self._http.send(request, stream=True)) as response:
                if response.next_request:  # without the token if it is for another host
                    request = response.next_request
                    continue
                if not response.is_success:
                    hf_raise_for_status(_without_body(response))
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise self._not_usable(address, "compressed, although it was requested without compression")
                yield response
                return
        raise httpx2.TooManyRedirects("too many redirects", request=request)

    def retry(self, call: Callable[[], T]) -> T:
        """Return the call's result; retry while the hub is busy or unreachable."""
        return retry(call, lambda error: pause(error, self._stop), self._retry_seconds, self._stop)

    def _headers(self, address: HubUri) -> dict[str, str]:
        token = self.connection.access(address.repo).token
        return build_hf_headers(token=token or False, library_name="finetune-trainer", library_version=__version__)

    def _read_json(self, response: httpx2.Response, address: HubUri) -> Any:
        deadline = time.monotonic() + ANSWER_SECONDS
        body = bytearray()
        for block in response.iter_raw():
            body += block
            if len(body) > MAX_ANSWER_BYTES:
                raise self._not_usable(address, f"larger than the limit of {MAX_ANSWER_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout("the response is too slow", request=response.request)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            check = f"check {self.connection.endpoint_setting} and any proxy"
            message = f"{address}: the server at {response.url.host} is not a hub: {check}"
            raise StorageUnavailable(message) from None

    def _not_usable(self, address: HubUri, why: str) -> TrainerError:
        where = f"{address}: the response of {self.endpoint} is {why}"
        return TrainerError(
            CODES[address.repo.kind], f"{where}: check {self.connection.endpoint_setting} and any proxy"
        )

    @contextmanager
    def _named(self, address: HubUri) -> Iterator[None]:
        """Translate the client's errors into ours."""
        try:
            yield
        except HfHubHTTPError as error:
            raise refusal_error(error, address, self.connection) from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise InvalidConfig(f"{self.connection.endpoint_setting}: {error}") from None
        except httpx2.HTTPError as error:
            raise connection_error(error, address, self.connection) from None


def _without_body(response: httpx2.Response) -> httpx2.Response:
    """Return the response's status and headers, which have what our errors need."""
    headers = {
        name: value for name, value in response.headers.items() if name.startswith("x-") or name == "retry-after"
    }
    return httpx2.Response(response.status_code, headers=headers, content=b"", request=response.request)
