"""The owner of a hub or a store, whose server answers without end, again and again elsewhere, or with odd numbers."""

import gzip
import itertools
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from http_servers import QuietHandler
from listening_server import listening
from trackers import refusing_server

from finetune_api.handoff import ExitCode
from finetune_api.spec import Storage
from finetune_trainer.errors import StorageUnavailable, TrainerError
from finetune_trainer.storage.hub import client, storage
from finetune_trainer.storage.hub.storage import HubStore
from finetune_trainer.storage.hub.uris import HubConnection
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import S3Connection

MIB = 1 << 20
COMMIT = "0" * 40
PINNED = f"hf://acme/tiny@{COMMIT}"
Headers = dict[str, str]
Answer = tuple[int, Headers, Iterator[bytes]]


@contextmanager
def serving(answer: Callable[[str], Answer]) -> Iterator[tuple[str, list[str]]]:
    """A server whose answer to a path is what the test says, and the paths that were asked for."""
    asked: list[str] = []
    ended = threading.Event()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, blocks = answer(self.path)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for block in blocks:
                    if ended.is_set():
                        break
                    self.wfile.write(block)
            except OSError:
                return

        do_HEAD = do_GET

    with listening(Handler) as uri:
        try:
            yield uri, asked
        finally:
            ended.set()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No retries, and small limits."""
    monkeypatch.setattr(client, "MIN_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", MIB)


def refusal(call: Callable[[], object]) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        call()
    return caught.value


def as_json(content: object, **headers: str) -> Answer:
    return 200, headers, iter([json.dumps(content).encode()])


def endless() -> Iterator[bytes]:
    return itertools.repeat(b" " * 65536)


@pytest.mark.parametrize(
    ("status", "headers"),
    [(200, {}), (500, {}), (404, {"X-Error-Code": "RepoNotFound"}), (302, {"Location": "/elsewhere"})],
    ids=["success", "failure", "missing", "redirect"],
)
def test_an_answer_of_a_hub_without_end_takes_a_bounded_memory(status: int, headers: Headers) -> None:
    def answer(path: str) -> Answer:
        return (200, {}, iter([b"no"])) if path == "/elsewhere" else (status, headers, endless())

    with serving(answer) as (uri, _):
        tracemalloc.start()
        try:
            error = refusal(lambda: HubStore(HubConnection(uri)).pin("hf://acme/tiny"))
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
        finally:
            tracemalloc.stop()
    assert error.code in {ExitCode.MODEL_UNAVAILABLE, ExitCode.STORAGE_UNAVAILABLE}
    assert "spec.hub.endpoint" in error.message or status == 500
    if status == 200:
        assert "is larger than the limit of 1,048,576 bytes" in error.message
        assert error.code == ExitCode.MODEL_UNAVAILABLE


def test_a_compressed_answer_of_a_hub_is_not_unpacked() -> None:
    bomb = gzip.compress(b" " * (512 * MIB), 1)
    with serving(lambda _: (200, {"Content-Encoding": "gzip"}, iter([bomb]))) as (uri, _):
        for call in (lambda: HubStore(HubConnection(uri)).pin("hf://acme/tiny"), lambda: read(uri)):
            tracemalloc.start()
            try:
                error = refusal(call)
                assert tracemalloc.get_traced_memory()[1] < 16 * MIB
            finally:
                tracemalloc.stop()
            assert "compressed, although it was requested without compression: check spec.hub.endpoint" in error.message


def read(uri: str) -> bytes | None:
    """Read a file that was listed."""
    store = HubStore(HubConnection(uri))
    address = storage.parse_hub_uri(f"{PINNED}/a")
    store._listings[address.repo, COMMIT] = {"a": storage.Entry("a", 3)}
    return store.read(f"{PINNED}/a")


def test_a_file_of_a_hub_is_read_no_further_than_it_was_listed() -> None:
    with serving(lambda _: (200, {}, endless())) as (uri, _):
        error = refusal(lambda: read(uri))
    assert "is longer than the 3 bytes of the hub's listing" in error.message


def test_an_answer_of_a_hub_that_comes_byte_by_byte_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    tick = threading.Event()

    def slow() -> Iterator[bytes]:
        while not tick.wait(0.02):
            yield b" "

    with serving(lambda _: (200, {}, slow())) as (uri, _):
        error = refusal(lambda: HubStore(HubConnection(uri)).pin("hf://acme/tiny"))
        tick.set()
    assert error.code == ExitCode.STORAGE_UNAVAILABLE
    assert "ReadTimeout" in error.message


def test_redirects_of_a_hub_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda path: (307, {"Location": f"{path}x"}, iter(()))) as (uri, asked):
        error = refusal(lambda: HubStore(HubConnection(uri)).pin("hf://acme/tiny"))
    assert "(TooManyRedirects): check spec.hub.endpoint" in error.message
    assert len(asked) < 50


NESTED = b"[" * 400_000


@pytest.mark.parametrize("answer", [NESTED, b"{", b"[]", b'{"sha": 1}', b'{"sha": ' + b"9" * 5000 + b"}"])
def test_an_answer_that_is_not_a_hubs_is_not_an_internal_error(answer: bytes) -> None:
    with serving(lambda _: (200, {}, iter([answer]))) as (uri, _):
        error = refusal(lambda: HubStore(HubConnection(uri)).pin("hf://acme/tiny"))
    assert error.code == ExitCode.STORAGE_UNAVAILABLE
    assert "spec.hub.endpoint" in error.message


USUAL = {"type": "file", "path": "a", "size": 1, "oid": "0" * 40}
ODD: list[object] = [
    "file",
    [],
    USUAL | {"lfs": "x"},
    USUAL | {"lfs": {"oid": 5, "size": 1}},
    USUAL | {"size": float("inf")},
    USUAL | {"size": float("nan")},
    USUAL | {"size": 10**400},
    USUAL | {"size": -1},
    USUAL | {"size": True},
    USUAL | {"size": "1"},
    USUAL | {"path": None},
    USUAL | {"path": ["a"]},
    {"type": "file"},
]


@pytest.mark.parametrize("item", ODD, ids=str)
def test_an_odd_entry_of_a_listing_is_not_an_internal_error(item: object) -> None:
    with serving(lambda _: as_json([item])) as (uri, _):
        error = refusal(lambda: HubStore(HubConnection(uri)).list(PINNED))
    assert error.code == ExitCode.STORAGE_UNAVAILABLE
    assert "lists its files in an unknown format" in error.message


@pytest.mark.parametrize("entries", [[], [{"type": "directory", "path": "a"}] * 100, [USUAL] * 100])
def test_a_listing_of_a_hub_without_end_ends(monkeypatch: pytest.MonkeyPatch, entries: list[object]) -> None:
    monkeypatch.setattr(storage, "MAX_OBJECTS", 2000)
    pages = itertools.count()

    def page(_: str) -> Answer:
        return as_json(entries, Link=f'<http://hub/?cursor={next(pages)}>; rel="next"')

    with serving(page) as (uri, asked):
        error = refusal(lambda: HubStore(HubConnection(uri)).list(PINNED))
    assert error.code == ExitCode.INVALID_CONFIG
    assert f"spec.model.uri is {PINNED}, which has more than 2,000 files: name" in error.message
    assert len(asked) <= 21


def connect(uri: str) -> S3Store:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    return S3Store(S3Connection(Storage(endpoint=uri), keys))


CALLS: dict[str, Callable[[S3Store], object]] = {
    "probe": lambda store: store.probe("s3://bucket/key"),
    "list": lambda store: store.list("s3://bucket/key"),
    "read": lambda store: store.read("s3://bucket/key"),
    "size": lambda store: store.size("s3://bucket/key"),
    "put": lambda store: store.put("s3://bucket/key", b"x"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("headers", [{}, {"Location": "/again"}, {"x-amz-bucket-region": "eu-west-1"}], ids=str)
def test_a_store_that_redirects_again_and_again_is_refused_with_what_to_check(
    call: str, status: int, headers: Headers
) -> None:
    with refusing_server(status, headers) as (uri, asked):
        error = refusal(lambda: CALLS[call](connect(uri)))
    assert error.code == ExitCode.STORAGE_DENIED
    assert "redirects the request elsewhere: correct spec.storage.endpoint or spec.storage.region" in error.message
    assert len(asked) <= 3


LISTING = (
    '<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated>'
    "<NextContinuationToken>{number}</NextContinuationToken>{contents}</ListBucketResult>"
)
FOLDER = "<Contents><Key>key/a/</Key><Size>0</Size></Contents>"
OBJECT = "<Contents><Key>key/a</Key><Size>0</Size></Contents>"


@pytest.mark.parametrize("contents", ["", FOLDER * 100, OBJECT * 100], ids=["empty", "folders", "objects"])
def test_a_listing_of_a_store_without_end_ends(monkeypatch: pytest.MonkeyPatch, contents: str) -> None:
    monkeypatch.setattr("finetune_trainer.storage.s3.MAX_OBJECTS", 2000)
    numbers = itertools.count()

    def page(_: str) -> Answer:
        return 200, {}, iter([LISTING.format(number=next(numbers), contents=contents).encode()])

    with serving(page) as (uri, asked):
        error = refusal(lambda: connect(uri).list("s3://bucket/key", 2000))
        assert error.code == ExitCode.INVALID_CONFIG
        assert "there are more than 2,000 objects under s3://bucket/key: name a narrower prefix" in error.message
        if contents != OBJECT * 100:
            assert refusal(lambda: connect(uri).first("s3://bucket/key")).code == ExitCode.INVALID_CONFIG
    assert len(asked) <= 44


ODD_LISTINGS = {
    "no XML": "<html",
    "another document": "<html></html>",
    "no key": "<ListBucketResult><Contents><Size>0</Size></Contents></ListBucketResult>",
    "no size": "<ListBucketResult><Contents><Key>key/a</Key></Contents></ListBucketResult>",
    "a text": "<ListBucketResult><Contents><Key>key/a</Key><Size>many</Size></Contents></ListBucketResult>",
    "digits": f"<ListBucketResult><Contents><Key>key/a</Key><Size>{'9' * 5000}</Size></Contents></ListBucketResult>",
    "the same token": "<ListBucketResult><IsTruncated>true</IsTruncated>"
    "<NextContinuationToken>a</NextContinuationToken></ListBucketResult>",
}


@pytest.mark.parametrize("body", ODD_LISTINGS.values(), ids=list(ODD_LISTINGS))
def test_an_odd_listing_of_a_store_is_not_an_internal_error(body: str) -> None:
    with serving(lambda _: (200, {}, iter([body.encode()]))) as (uri, _), suppress(StorageUnavailable):
        connect(uri).list("s3://bucket/key")


@pytest.mark.parametrize("call", ["read", "size", "range", "sha256", "download"])
def test_an_object_without_a_length_is_refused(call: str, tmp_path: Path) -> None:
    calls: dict[str, Callable[[S3Store], object]] = {
        "download": lambda store: store.download("s3://bucket/key", tmp_path / "x"),
        "range": lambda store: store.read_range("s3://bucket/key", 0, 5),
        "sha256": lambda store: store.sha256("s3://bucket/key"),
    }
    with serving(lambda _: (200, {}, iter([b"hello"]))) as (uri, _):
        error = refusal(lambda: (CALLS | calls)[call](connect(uri)))
    assert error.code == ExitCode.STORAGE_UNAVAILABLE
    assert "ength'): check spec.storage.endpoint and any proxy" in error.message


def test_an_object_without_an_end_is_read_no_further_than_its_limit() -> None:
    with serving(lambda _: (200, {"Content-Length": str(1 << 40)}, endless())) as (uri, _):
        error = refusal(lambda: connect(uri).read("s3://bucket/key", MIB))
    assert "is larger than the limit of 1,048,576 bytes" in error.message
