"""What is sent to a registry, and to whom: a stand-in without a network that follows the protocol, or breaks it."""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from finetune_api.handoff import ExitCode
from finetune_api.output import PackageFormat
from finetune_trainer.errors import StorageUnavailable, TrainerError
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.oci import registry
from finetune_trainer.storage.oci.connection import RegistryConnection
from finetune_trainer.storage.oci.package import Package, build_package
from finetune_trainer.storage.oci.registry import Registry

HOST, PATH, PASSWORD = "registry.example", "team/bot", "pa55word"
KEY = base64.b64encode(f"jo:{PASSWORD}".encode()).decode()
TOKENS = "https://auth.example/token"
Respond = Callable[[httpx2.Request], httpx2.Response | None]


@dataclass
class StandIn:
    """A registry in memory; `fault` may respond in its place."""

    challenge: str = ""
    fault: Respond = lambda _request: None
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    requests: list[httpx2.Request] = field(default_factory=list)
    tokens: int = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        found = self.answer(request)
        return httpx2.Response(found.status_code, headers=found.headers, content=iter([found.content]))

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        body = request.read()
        self.requests.append(request)
        if str(request.url).startswith(TOKENS):
            self.tokens += 1
            return httpx2.Response(200, json={"token": f"token-{self.tokens}"})
        if found := self.fault(request):
            return found
        given = request.headers.get("Authorization", "")
        accepted = f"Basic {KEY}" if self.challenge.startswith("Basic") else f"Bearer token-{self.tokens}"
        if self.challenge and given != accepted:
            return httpx2.Response(401, headers={"WWW-Authenticate": self.challenge})
        return self.respond(request.method, request.url, body)

    def respond(self, method: str, url: httpx2.URL, body: bytes) -> httpx2.Response:
        kind, name = re.fullmatch(rf"/v2/{PATH}/(blobs|manifests)/(.*)", url.path).groups()  # type: ignore[union-attr]
        held = (self.blobs if kind == "blobs" else self.manifests).get(name)
        if method == "POST":
            return httpx2.Response(202, headers={"Location": f"/v2/{PATH}/blobs/uploads/1?_state=a%3Db"})
        if method == "DELETE":
            return httpx2.Response(204)
        if method == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            if kind == "blobs":
                assert dict(url.params) == {"_state": "a=b", "digest": digest}
                self.blobs[digest] = body
            else:
                self.manifests |= {name: body, digest: body}
            return httpx2.Response(201, headers={"Docker-Content-Digest": digest})
        if held is None:
            return httpx2.Response(404, json={"errors": [{"code": "UNKNOWN"}]})
        digest = f"sha256:{hashlib.sha256(held).hexdigest()}"
        headers = {"Docker-Content-Digest": digest, "Content-Length": str(len(held))}
        return httpx2.Response(200, headers=headers, content=b"" if method == "HEAD" else held)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"w" * 10_000)
    (tmp_path / "README.md").write_text("# Helpdesk\n")
    files = {path.name: path for path in tmp_path.iterdir()}
    return build_package(PackageFormat.IMAGE, files, "helpdesk", {}, lambda _: None)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    def make(server: StandIn, **fields: Any) -> Registry:
        given = {"repository": f"{HOST}/{PATH}", "endpoint": f"https://{HOST}", "path": PATH, "key": KEY}
        client = httpx2.Client(transport=httpx2.MockTransport(server))
        monkeypatch.setattr(registry, "open_http", lambda *_: client)
        return Registry(RegistryConnection(**(given | {"secret": "push"} | fields)), 0.3, StopFlag())

    return make


def moved() -> None:
    return


def test_blobs_come_before_the_manifest_and_a_second_push_sends_none(
    connect: Callable[..., Registry], package: Package
) -> None:
    server = StandIn()
    assert connect(server).push(package, "v1", moved) == f"{HOST}/{PATH}@{package.digest}"
    assert set(server.blobs) == {blob.digest for blob in package.blobs}
    assert server.manifests["v1"] == server.manifests[package.digest] == package.manifest
    sent = [request.url.path.rpartition("/")[2] for request in server.requests if request.method == "PUT"]
    assert sent[-1] == "v1"
    server.requests.clear()
    connect(server).push(package, "v1", moved)
    assert {request.method for request in server.requests} == {"HEAD", "GET"}


def test_a_push_that_broke_sends_only_what_is_missing(connect: Callable[..., Registry], package: Package) -> None:
    sent: list[str] = []

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method == "PUT":
            sent.append(request.url.path)
            if len(sent) == 2:
                raise httpx2.ReadError("reset")
        return None

    server = StandIn(fault=fault)
    connect(server).push(package, "v1", moved)
    assert len(sent) == len(package.blobs) + 2  # the one that broke, and the manifest


def test_a_user_is_asked_for_before_its_password_is_sent(connect: Callable[..., Registry], package: Package) -> None:
    server = StandIn(challenge='Basic realm="registry"')
    connect(server).push(package, "v1", moved)
    assert "Authorization" not in server.requests[0].headers
    assert all(request.headers["Authorization"] == f"Basic {KEY}" for request in server.requests[1:])


def test_a_token_is_fetched_with_the_password_and_again_when_it_expires(
    connect: Callable[..., Registry], package: Package
) -> None:
    expired: list[int] = []

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method == "PUT" and not expired:
            expired.append(server.tokens)
            return httpx2.Response(401, headers={"WWW-Authenticate": server.challenge})
        return None

    server = StandIn(challenge=f'Bearer realm="{TOKENS}",service="registry",scope="*"', fault=fault)
    connect(server).push(package, "v1", moved)
    assert server.manifests["v1"] == package.manifest
    assert server.tokens == 2
    for request in server.requests:
        given = request.headers.get("Authorization", "")
        is_for_tokens = request.url.host == "auth.example"
        assert given.startswith("Basic " if is_for_tokens else ("Bearer ", "")), "the registry never gets the password"
        if is_for_tokens:
            assert dict(request.url.params)["scope"] == f"repository:{PATH}:pull,push"


def test_without_a_secret_a_token_is_requested_without_a_password(
    connect: Callable[..., Registry], package: Package
) -> None:
    server = StandIn(challenge=f'Bearer realm="{TOKENS}"')
    connect(server, key=None, secret=None).push(package, "v1", moved)
    assert not any("Basic" in request.headers.get("Authorization", "") for request in server.requests)


def on(method: str, response: httpx2.Response, path: str = "") -> Respond:
    return lambda request: response if request.method == method and path in request.url.path else None


def redirect(status: int = 307) -> httpx2.Response:
    return httpx2.Response(status, headers={"Location": "https://evil.test/v2/x"})


def words(status: int, code: str = "DENIED") -> httpx2.Response:
    message = f"{code} jo:{PASSWORD} {KEY} https://signed.example/?X-Amz-Signature=hidden"
    return httpx2.Response(status, json={"errors": [{"code": code, "message": message}]})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (on("POST", redirect()), r"redirects the push \(307\), which is not followed"),
        (on("PUT", redirect(308)), r"redirects the push \(308\)"),
        (on("GET", redirect(), "manifests"), "redirects"),
        (on("POST", httpx2.Response(202, headers={"Location": "https://evil.test/up"})), "upload on another host"),
        (on("POST", httpx2.Response(202, headers={"Location": "//evil.test/up"})), "upload on another host"),
        (on("POST", httpx2.Response(202, headers={"Location": "https://["})), "upload on another host"),
        (on("PUT", httpx2.Response(201, headers={"Docker-Content-Digest": "sha256:00"})), "stored other content than"),
        (on("GET", httpx2.Response(200, content=b"{}"), "manifests"), "does not return the manifest .* as it was"),
        (on("HEAD", httpx2.Response(200, headers={"Content-Length": "7"}), "blobs"), "with another size"),
        (on("PUT", httpx2.Response(201)), "accepted sha256:.*, and does not have it"),
        (on("POST", words(403)), r"no such repository \(403: DENIED DENIED jo:… … …\): create the repository"),
        (on("POST", words(404, "NAME_UNKNOWN")), "404: NAME_UNKNOWN.*or correct spec.output.oci"),
        (on("PUT", words(413)), r"refuses the push \(413"),
        (on("PUT", words(503)), r"fails or is busy \(503"),
        (on("GET", httpx2.Response(200, content=b"x" * 5_000_000), "manifests"), "above the limit of 4,194,304 bytes"),
        (on("POST", httpx2.Response(500, content=b"x" * 5_000_000)), "above the limit of 4,194,304 bytes"),
        (on("POST", httpx2.Response(403, content=b'{"errors": 7}')), r"\(403\)"),
    ],
)
@pytest.mark.parametrize("challenge", ["", f'Bearer realm="{TOKENS}"', 'Basic realm="x"'])
def test_a_registry_that_breaks_the_protocol_gets_nothing_more_and_no_other_host_anything(
    connect: Callable[..., Registry], package: Package, fault: Respond, said: str, challenge: str
) -> None:
    server = StandIn(challenge, lambda request: fault(request) if "Authorization" in request.headers or not challenge
                     else None)  # fmt: skip
    with pytest.raises(TrainerError, match=said) as caught:
        connect(server).push(package, "v1", moved)
    assert {request.url.host for request in server.requests} <= {HOST, "auth.example"}
    for secret in (PASSWORD, KEY, "token-1", "X-Amz-Signature"):
        assert secret not in caught.value.message


@pytest.mark.parametrize(
    ("challenge", "key", "said"),
    [
        ('Basic realm="x"', None, r"requires a user \(401\): set spec\.output\.oci\.credentialsSecretRef"),
        ('Basic realm="x"', "b3RoZXI6eA==", r"refuses the password in the Secret push \(401\): correct it"),
        ("Negotiate", KEY, r"refuses the password in the Secret push \(401\)"),
        ('Bearer realm="http://auth.example/token"', KEY, "without TLS, which gets no password"),
    ],
)
def test_a_challenge_that_cannot_be_answered_is_refused(
    connect: Callable[..., Registry], package: Package, challenge: str, key: str | None, said: str
) -> None:
    server = StandIn(challenge)
    with pytest.raises(TrainerError, match=said) as caught:
        connect(server, key=key).push(package, "v1", moved)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert {request.url.host for request in server.requests} == {HOST}


@pytest.mark.parametrize("content", [b"{}", b"[]", b"no", b'{"token": "a\\nb"}'])
def test_a_server_of_tokens_without_one_is_refused(
    connect: Callable[..., Registry], package: Package, content: bytes
) -> None:
    server = StandIn(f'Bearer realm="https://{HOST}/token"', on("GET", httpx2.Response(200, content=content), "/token"))
    with pytest.raises(TrainerError, match="server of tokens returns none"):
        connect(server).push(package, "v1", moved)


def test_a_registry_behind_a_proxy_that_ends_tls_is_reached_as_the_job_names_it(
    connect: Callable[..., Registry], package: Package
) -> None:
    location = {"Location": f"http://{HOST}:5000/v2/{PATH}/blobs/uploads/1?_state=a%3Db"}
    server = StandIn(fault=on("POST", httpx2.Response(202, headers=location)))
    connect(server).push(package, "v1", moved)
    assert {str(request.url.copy_with(path="/", query=None)) for request in server.requests} == {f"https://{HOST}/"}


def test_a_redirect_of_a_blob_means_that_it_exists(connect: Callable[..., Registry], package: Package) -> None:
    server = StandIn()
    connect(server).push(package, "v1", moved)
    server.requests.clear()
    server.fault = on("HEAD", redirect(), "blobs")
    connect(server).push(package, "v1", moved)
    assert not any(request.method == "PUT" for request in server.requests)


def test_the_check_begins_an_upload_and_cancels_it(connect: Callable[..., Registry]) -> None:
    server = StandIn(challenge='Basic realm="x"')
    connect(server).check()
    assert [request.method for request in server.requests] == ["POST", "POST", "DELETE"]
    assert server.blobs == server.manifests == {}
    server.fault = on("POST", words(403))
    with pytest.raises(TrainerError, match="the push is forbidden"):
        connect(server).check()


def test_a_registry_that_never_answers_is_left_after_the_time_for_retries(
    connect: Callable[..., Registry], package: Package
) -> None:
    def silent(_request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("timed out")

    with pytest.raises(StorageUnavailable, match=r"cannot be reached \(ReadTimeout\): check spec\.output\.oci"):
        connect(StandIn(fault=silent)).push(package, "v1", moved)
