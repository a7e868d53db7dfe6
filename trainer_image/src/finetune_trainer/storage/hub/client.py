"""Requests to one hub: tokens for its own address only, time-outs, retries that end with SIGTERM."""

import ssl
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from finetune_api import __version__
from finetune_api.handoff import ExitCode
from finetune_trainer.errors import StorageUnavailable, TrainerError
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.hub.errors import HubBusy, HubUntrusted, connection_error, refusal_error
from finetune_trainer.storage.hub.uris import HubConnection, HubUri
from finetune_trainer.storage.retries import MAX_WAIT, retry

T = TypeVar("T")

TIMEOUT = httpx2.Timeout(20.0, connect=5.0)
MIN_RETRY_SECONDS = 30.0


class HubClient:
    """Requests to one hub; a failing request is retried for `retry_seconds`."""

    def __init__(self, connection: HubConnection, retry_seconds: float, stop: StopFlag) -> None:
        self.endpoint = connection.endpoint
        self.connection = connection
        self._retry_seconds = max(retry_seconds, MIN_RETRY_SECONDS)
        self._stop = stop

    @cached_property
    def _http(self) -> httpx2.Client:
        """Return the client: proxies from the environment; a redirect to another host drops the token."""
        try:
            client = httpx2.Client(verify=self._trust(), timeout=TIMEOUT, follow_redirects=True)
        except (ValueError, ImportError, httpx2.InvalidURL):  # not quoted: a proxy's address may contain a password
            message = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not a proxy address: write http://host:port"
            raise TrainerError(ExitCode.INVALID_CONFIG, message) from None
        weakref.finalize(self, client.close)
        return client

    def _trust(self) -> ssl.SSLContext:
        """Return a context with the image's authorities and the hub's: its files may be served by a public host."""
        own = self.connection.ca_file
        try:
            context = httpx2.create_ssl_context()
        except OSError:
            message = "SSL_CERT_FILE or SSL_CERT_DIR contains no certificate (PEM): correct it, or unset it"
            raise TrainerError(ExitCode.INVALID_CONFIG, message) from None
        try:
            if own:
                context.load_verify_locations(own)
        except OSError:
            message = "the key ca.crt of the Secret named by spec.hub.caSecretRef contains no certificate (PEM)"
            raise TrainerError(ExitCode.INVALID_CONFIG, message) from None
        return context

    def get_json(self, address: HubUri, path: str) -> tuple[Any, str | None]:
        """Return a response of the API, and the query of its next page, if any."""

        def ask() -> tuple[Any, str | None]:
            with self._named(address):
                response = self._http.get(f"{self.endpoint}/api/{path}", headers=self._headers(address))
                hf_raise_for_status(response)
                following = response.links.get("next", {}).get("url")
                return self._json(response, address), httpx2.URL(following).query.decode() if following else None

        return self.retry(ask)

    @contextmanager
    def stream(self, address: HubUri, wanted: str | None = None) -> Iterator[httpx2.Response]:
        """Stream the file at a pinned address, or its `wanted` range if the server supports ranges (206)."""
        headers = self._headers(address) | {"Accept-Encoding": "identity"}
        if wanted:
            headers["Range"] = wanted
        url = hf_hub_url(
            address.repo.name,
            address.path,
            repo_type=address.repo.kind.value,
            revision=address.commit,
            endpoint=self.endpoint,
        )
        with self._named(address), self._http.stream("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            yield response

    def retry(self, call: Callable[[], T]) -> T:
        """Return the call's result; retry while the hub is busy or unreachable."""
        return retry(call, self._pause, self._retry_seconds, self._stop)

    def _pause(self, error: Exception) -> bool | float:
        """Return whether to retry, or the number of seconds that the hub requested."""
        if not isinstance(error, StorageUnavailable) or isinstance(error, HubUntrusted) or self._stop.is_set():
            return False
        wait = error.wait if isinstance(error, HubBusy) else None
        return True if wait is None else min(wait, MAX_WAIT)

    def _headers(self, address: HubUri) -> dict[str, str]:
        token = self.connection.access(address.repo).token
        return build_hf_headers(token=token or False, library_name="finetune-trainer", library_version=__version__)

    def _json(self, response: httpx2.Response, address: HubUri) -> Any:
        try:
            return response.json()
        except ValueError:
            check = f"check {self.connection.endpoint_setting} and any proxy"
            message = f"{address}: the server at {response.url.host} is not a hub: {check}"
            raise StorageUnavailable(message) from None

    @contextmanager
    def _named(self, address: HubUri) -> Iterator[None]:
        """Translate the client's errors into ours."""
        try:
            yield
        except HfHubHTTPError as error:
            raise refusal_error(error, address, self.connection) from None
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise TrainerError(ExitCode.INVALID_CONFIG, f"{self.connection.endpoint_setting}: {error}") from None
        except httpx2.HTTPError as error:
            raise connection_error(error, address, self.connection) from None
