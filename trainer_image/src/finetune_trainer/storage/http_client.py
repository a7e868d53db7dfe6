"""The HTTP client of hubs and registries, and its errors in words."""

import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from finetune_trainer.errors import InvalidConfig, StorageUnavailable, causes
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.retries import MAX_WAIT
from finetune_trainer.storage.watch import Left

DEFAULT_LIMITS = httpx2.Limits(max_connections=100, max_keepalive_connections=20)
"""Those of the library."""
TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")
"""A key or token that fits in a header."""
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class ServerBusy(StorageUnavailable):
    """The server is busy; `wait` is its Retry-After in seconds, if any."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class ServerUntrusted(StorageUnavailable):
    """TLS fails; a retry would fail too."""


def open_http(
    ca_file: Path | None,
    timeout: httpx2.Timeout,
    ca_field: str,
    *,
    follow_redirects: bool = False,
    limits: httpx2.Limits = DEFAULT_LIMITS,
) -> httpx2.Client:
    """Return a client with proxies from the environment, and the authority of `ca_field` next to the image's."""
    try:
        context = build_trust(ca_file, ca_field)
        return httpx2.Client(verify=context, timeout=timeout, follow_redirects=follow_redirects, limits=limits)
    except (ValueError, ImportError, httpx2.InvalidURL):  # not quoted: a proxy's address may contain a password
        message = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not a proxy address: write http://host:port"
        raise InvalidConfig(message) from None


def build_trust(ca_file: Path | None, ca_field: str) -> ssl.SSLContext:
    """Return a context with the image's authorities and the server's: its files may be served by a public host."""
    try:
        context = httpx2.create_ssl_context()
    except OSError:
        message = "SSL_CERT_FILE or SSL_CERT_DIR contains no certificate (PEM): correct it, or unset it"
        raise InvalidConfig(message) from None
    try:
        if ca_file:
            context.load_verify_locations(ca_file)
    except OSError:
        raise InvalidConfig(f"the key ca.crt of the Secret named by {ca_field} contains no certificate (PEM)") from None
    return context


def is_untrusted(error: BaseException) -> bool:
    """Return whether TLS fails."""
    return any(isinstance(one, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in str(one) for one in causes(error))


def connection_reason(error: BaseException) -> str:
    """Return the system's message, if any; the client's own messages may contain addresses."""
    found = next((one.strerror for one in causes(error) if isinstance(one, OSError) and one.strerror), None)
    return f"{type(error).__name__}: {found}" if found else type(error).__name__


def proxy_setting(endpoint: str) -> str:
    """Return what to check about proxies."""
    address = urlsplit(endpoint)
    if getproxies().get(address.scheme) and not proxy_bypass(address.hostname or ""):
        return f"{address.scheme.upper()}_PROXY, whose proxy is used"
    return "HTTPS_PROXY if a proxy is needed"


def retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds that a busy server requests, if any."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() and len(value) < 6 else None


def pause(error: Exception, stop: StopFlag) -> bool | float:
    """Return whether to retry after an error, or the number of seconds that the server requested."""
    if not isinstance(error, StorageUnavailable) or isinstance(error, ServerUntrusted | Left) or stop.is_set():
        return False
    wait = error.wait if isinstance(error, ServerBusy) else None
    return True if wait is None else min(wait, MAX_WAIT)
