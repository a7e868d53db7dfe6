"""Push a package to one repository of an OCI registry: each blob that it lacks, then the manifest, which is read back.

A key is sent to the registry and to the server of tokens that it names. No redirect is followed.
"""

import hashlib
import json
import re
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx2

from finetune_api import __version__
from finetune_trainer.errors import InvalidConfig, StorageUnavailable, TrainerError, one_line
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.http_client import (
    BUSY,
    ServerBusy,
    ServerUntrusted,
    connection_reason,
    is_untrusted,
    open_http,
    pause,
    proxy_setting,
    retry_after,
)
from finetune_trainer.storage.oci.auth import Challenge, parse_challenge, token_address
from finetune_trainer.storage.oci.connection import PLACE, RegistryConnection
from finetune_trainer.storage.oci.package import MANIFEST, Blob, Package
from finetune_trainer.storage.retries import retry

T = TypeVar("T")

TIMEOUT = httpx2.Timeout(30.0, connect=5.0)
BLOB_TIMEOUT = httpx2.Timeout(300.0, connect=5.0)
"""Of the request with a blob: a registry may copy it within its own storage before it responds."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024
ANSWER_SECONDS = 60.0
"""Limits of one response that is read; registries accept no larger manifests."""
SLOW_BYTES = 10 * 1024 * 1024
"""The time for retries of a blob grows by a second for so many bytes."""
TOKEN_SECONDS = 30.0
"""Age of a token from which an upload begins with a new one: some live for a minute."""
WORDS = 200
"""Characters of the registry's own message that are repeated."""
TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")
REDIRECTS = frozenset({301, 302, 303, 307, 308})

Moved = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; of a success, the body is read only if it was requested."""

    response: httpx2.Response
    body: bytes = b""

    @property
    def status(self) -> int:
        """Return the status code."""
        return self.response.status_code

    def header(self, name: str) -> str:
        """Return a header; empty without it."""
        return str(self.response.headers.get(name, ""))


class Registry:
    """One repository to push to; a failing step is retried for `retry_seconds`."""

    def __init__(self, connection: RegistryConnection, retry_seconds: float, stop: StopFlag) -> None:
        self.connection = connection
        self._base = f"{connection.endpoint}/v2/{connection.path}"
        self._retry_seconds, self._stop = retry_seconds, stop
        self._authorization, self._authorized = "", 0.0

    def check(self) -> None:
        """Raise if nothing can be pushed: begin an upload and cancel it."""
        self._ask("DELETE", self._retry(self._begin))  # a registry that cannot cancel one forgets it

    def push(self, package: Package, tag: str, moved: Moved) -> str:
        """Push what the registry lacks, the manifest last; return the reference by digest."""
        for blob in package.blobs:
            self._retry(partial(self._push_blob, blob, moved), blob.size / SLOW_BYTES)
        self._retry(partial(self._push_manifest, package, tag))
        return f"{self.connection.repository}@{package.digest}"

    def _push_blob(self, blob: Blob, moved: Moved) -> None:
        moved()
        if self._has(blob):
            return
        location = self._begin()
        address = f"{location}{'&' if '?' in location else '?'}digest={blob.digest}"

        def content() -> Iterator[bytes]:
            for block in blob.chunks():
                moved()
                yield block

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        done = self._ask("PUT", address, headers, content=content, timeout=BLOB_TIMEOUT)
        self._require(done, {201})
        self._require_digest(done, blob.digest)
        if not self._has(blob):
            raise StorageUnavailable(f"{self._where}: the registry accepted {blob.digest}, and does not have it")

    def _begin(self) -> str:
        """Begin an upload; return its address, always at the registry's own."""
        if self._authorization.startswith("Bearer") and time.monotonic() - self._authorized > TOKEN_SECONDS:
            self._authorization = ""
        answer = self._require(self._ask("POST", f"{self._base}/blobs/uploads/"), {202})
        try:
            found = urlsplit(urljoin(f"{self._base}/", answer.header("Location")))
        except ValueError:
            found = urlsplit("")
        if found.hostname != urlsplit(self._base).hostname:
            raise self._refused("the registry names an upload on another host, which is not followed")
        return f"{self.connection.endpoint}{found.path}{f'?{found.query}' if found.query else ''}"

    def _has(self, blob: Blob) -> bool:
        """Return whether the registry has the blob; it redirects only to one that it has."""
        answer = self._ask("HEAD", f"{self._base}/blobs/{blob.digest}")
        if answer.status == 404:
            return False
        if answer.status in REDIRECTS:
            return True
        self._require(answer, {200})
        self._require_digest(answer, blob.digest)
        if answer.header("Content-Length") not in {"", str(blob.size)}:
            raise self._refused(f"the registry has {blob.digest} with another size: remove that blob there")
        return True

    def _push_manifest(self, package: Package, tag: str) -> None:
        """Push the manifest unless the tag is its own already, which a registry may have made fixed; read it back."""
        accept = {"Accept": MANIFEST}
        tagged = self._ask("HEAD", f"{self._base}/manifests/{tag}", accept)
        if tagged.status != 200 or tagged.header("Docker-Content-Digest") != package.digest:
            done = self._ask(
                "PUT", f"{self._base}/manifests/{tag}", {"Content-Type": MANIFEST}, content=package.manifest
            )
            self._require(done, {201})
            self._require_digest(done, package.digest)
        back = self._ask("GET", f"{self._base}/manifests/{package.digest}", accept, reads=True)
        self._require(back, {200})
        if f"sha256:{hashlib.sha256(back.body).hexdigest()}" != package.digest:
            raise self._refused(f"the registry does not return the manifest {package.digest} as it was pushed")

    def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes | Callable[[], Iterator[bytes]] = b"",
        timeout: httpx2.Timeout | None = None,
        reads: bool = False,
    ) -> Answer:
        """Return the response to a request; one that is refused for want of a key is sent again with it."""

        def send() -> Answer:
            own = {"Authorization": self._authorization} if self._authorization else {}
            body = content() if callable(content) else content
            return self._send(method, url, {**(headers or {}), **own}, body, timeout=timeout, reads=reads)

        answer = send()
        if answer.status == 401 and (authorization := self._authorize(answer)) != self._authorization:
            self._authorization, self._authorized = authorization, time.monotonic()
            answer = send()
        return answer

    def _authorize(self, answer: Answer) -> str:
        """Return the header that a challenge asks for; the same one if there is nothing to answer."""
        challenge, key = parse_challenge(answer.response.headers.get_list("WWW-Authenticate")), self.connection.key
        if challenge is None or (challenge.scheme == "basic" and key is None):
            return self._authorization
        return f"Basic {key}" if challenge.scheme == "basic" else self._fetch_token(challenge)

    def _fetch_token(self, challenge: Challenge) -> str:
        connection = self.connection
        address = token_address(challenge, connection.path, is_insecure=connection.is_insecure)
        if address is None:
            raise self._refused("the registry names a server of tokens without TLS, which gets no password")
        own = {"Authorization": f"Basic {connection.key}"} if connection.key else {}
        answer = self._require(self._send("GET", address, own, reads=True), {200})
        try:
            content = json.loads(answer.body)
            token = content.get("token") or content.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            raise self._refused("the registry's server of tokens returns none")
        return f"Bearer {token}"

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | Iterator[bytes] = b"",
        *,
        timeout: httpx2.Timeout | None = None,
        reads: bool,
    ) -> Answer:
        own = {"User-Agent": f"finetune-trainer/{__version__}", "Accept-Encoding": "identity"}
        try:
            request = self._http.build_request(
                method, url, headers={**own, **headers}, content=content, timeout=timeout or TIMEOUT
            )
            with closing(self._http.send(request, stream=True)) as response:
                is_read = method != "HEAD" and (reads or not response.is_success)
                return Answer(response, self._read(response) if is_read else b"")
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
            raise self._refused("the registry returns an address that is none") from None
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None

    def _read(self, response: httpx2.Response) -> bytes:
        deadline, body = time.monotonic() + ANSWER_SECONDS, bytearray()
        for block in response.iter_raw():
            body += block
            if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                raise self._refused(f"a response is above the limit of {MAX_ANSWER_BYTES:,} bytes or too slow")
        return bytes(body)

    def _require(self, answer: Answer, expected: Collection[int]) -> Answer:
        """Return the answer; raise if its status is not an expected one."""
        if answer.status not in expected:
            raise self._refusal(answer)
        return answer

    def _require_digest(self, answer: Answer, digest: str) -> None:
        if answer.header("Docker-Content-Digest") not in {"", digest}:
            raise self._refused(f"the registry stored other content than {digest}")

    def _refusal(self, answer: Answer) -> TrainerError:
        status, words = answer.status, self._quote(_words(answer.body))
        said = f"{status}: {words}" if words else str(status)
        if status in BUSY:
            return ServerBusy(f"{self._where}: the registry fails or is busy ({said}): try again later",
                              retry_after(answer.response))  # fmt: skip
        if status == 401 and self.connection.key is None:
            return self._refused(f"the registry requires a user ({said}): set {PLACE}.credentialsSecretRef")
        if status == 401:
            return self._refused(f"the registry refuses the password in {self.connection.holder} ({said}): correct it")
        if status in {403, 404, 405}:
            fix = f"create the repository, give the user of {self.connection.holder} the right to push, or correct"
            return self._refused(f"the push is forbidden, or there is no such repository ({said}): {fix} {PLACE}")
        if status in REDIRECTS:
            return self._refused(f"the registry redirects the push ({status}), which is not followed: correct {PLACE}")
        return self._refused(f"the registry refuses the push ({said})")

    def _unreachable(self, error: httpx2.HTTPError) -> StorageUnavailable:
        if is_untrusted(error):
            fix = f"set {PLACE}.caSecretRef, or insecure for a registry without TLS"
            return ServerUntrusted(f"{self._where}: the certificate is not trusted or TLS fails: {fix}")
        if isinstance(error, httpx2.ProxyError):
            return StorageUnavailable(f"{self._where}: the proxy in HTTPS_PROXY or HTTP_PROXY refuses the connection")
        why, proxy = connection_reason(error), proxy_setting(self.connection.endpoint)
        return StorageUnavailable(
            f"{self._where}: the registry cannot be reached ({why}): check {PLACE}, the network, and {proxy}"
        )

    def _refused(self, why: str) -> TrainerError:
        return InvalidConfig(f"{self._where}: {why}")

    def _quote(self, words: str) -> str:
        """Return the registry's words in one line, without keys and without addresses, which may be signed."""
        for secret in (self.connection.key, self.connection.password, self._authorization.partition(" ")[2]):
            words = words.replace(secret, "…") if secret else words
        return one_line(re.sub(r"https?://\S+", "…", words), WORDS)

    @property
    def _where(self) -> str:
        return f"oci://{self.connection.repository}"

    def _retry(self, call: Callable[[], T], more_seconds: float = 0.0) -> T:
        return retry(call, lambda error: pause(error, self._stop), self._retry_seconds + more_seconds, self._stop)

    @cached_property
    def _http(self) -> httpx2.Client:
        """Return the client; it keeps no cookies, by which some registries recognise a browser."""
        client = open_http(self.connection.ca_file, TIMEOUT, f"{PLACE}.caSecretRef")
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        weakref.finalize(self, client.close)
        return client


def _words(body: bytes) -> str:
    """Return code and message of a registry's first error; empty for anything else."""
    try:
        first: Any = json.loads(body)["errors"][0]
        return f"{first.get('code', '')} {first.get('message', '')}".strip()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""
