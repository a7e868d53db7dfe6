"""S3-compatible storage: boto3 with its transfer manager; failures become one of three named errors."""

# ruff: noqa: D102 - the protocol documents the methods

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError
from s3transfer.futures import TransferFuture
from s3transfer.subscribers import BaseSubscriber
from urllib3.exceptions import HTTPError

from finetune_trainer.errors import KeysRefused, ObjectMissing, ObjectReplaced, StorageUnavailable
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.protocol import (
    CHUNK_BYTES,
    MAX_OBJECTS,
    MAX_READ_BYTES,
    Entry,
    OnBytes,
    Store,
    count_error,
    join_uri,
    sha256_blocks,
    size_error,
)
from finetune_trainer.storage.retries import retry
from finetune_trainer.storage.s3_client import S3Connection, error_code, http_status, is_missing, storage_error
from finetune_trainer.storage.transfers import SMALL_BYTES

T = TypeVar("T")

TRANSFER = TransferConfig(multipart_threshold=SMALL_BYTES, multipart_chunksize=SMALL_BYTES, max_concurrency=4)
BLOCK_BYTES = 256 * 1024
"""Of a small object, received between two signs of life."""
CONFLICT_TRIES = 5
SHORTEST_PAGE = 100
"""Objects that a page of a listing counts for at least, so that empty pages and those of folder markers end too."""
# Any other OSError comes from this machine, for example a full disk. HTTPError is of urllib3, whose error of TLS in the
# middle of a body botocore passes on as it is.
NETWORK_ERRORS = (BotoCoreError, Boto3Error, RetriesExceededError, ConnectionError, TimeoutError, HTTPError)
NOT_S3 = (ResponseParserError, KeyError, ValueError)
"""Raised for a response without a field that every store sends, or with one that cannot be read."""


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _quote(etag: str) -> str:
    return f'"{etag}"'


class _Expect(BaseSubscriber):  # type: ignore[misc]
    """Have every part of a download come from the object with this ETag."""

    def __init__(self, etag: str) -> None:
        self._etag = etag

    def on_queued(self, future: TransferFuture, **_: object) -> None:
        """Give the transfer its ETag before the first request."""
        future.meta.provide_object_etag(_quote(self._etag))


class S3Store(Store):
    """Objects in one S3-compatible store.

    `retry_seconds` limits the retries of an unreachable store, on top of botocore's own, and of keys that are refused
    after they were valid: the kubelet mounts new ones about a minute after the Secret has changed. The retries end when
    `stop` is set, because the grace period after SIGTERM is short.
    """

    def __init__(self, connection: S3Connection, retry_seconds: float = 0.0, stop: StopFlag | None = None) -> None:
        self._connection = connection
        self._client = connection.client
        self._retry_seconds = retry_seconds
        self._stop = stop or StopFlag()
        self._had_valid_keys = False

    def probe(self, uri: str) -> None:
        """List one key with short time-outs."""
        bucket, key = split_uri(uri)
        client, prefix = self._connection.quick_client, f"{key.rstrip('/')}/"
        self._retry(uri, lambda: client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1))

    def download(self, uri: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one object to a local file, parts in parallel; it appears only when complete."""
        self._download_parts(uri, path, "", on_bytes)

    def _download_parts(self, uri: str, path: Path, etag: str, on_bytes: OnBytes | None) -> None:
        bucket, key = split_uri(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        subscribers: list[BaseSubscriber] = [ProgressCallbackInvoker(on_bytes)] if on_bytes else []
        subscribers += [_Expect(etag)] if etag else []

        def receive() -> None:
            with create_transfer_manager(self._client, TRANSFER) as manager:
                manager.download(bucket, key, str(path), None, subscribers).result()

        self._retry(uri, receive)

    def download_entry(self, uri: str, entry: Entry, path: Path, on_bytes: OnBytes | None = None) -> None:
        """Copy one listed object; a small one with one request, without the threads of a transfer manager.

        Raises ObjectReplaced if its ETag is no longer the listed one.
        """
        source = join_uri(uri, entry.key)
        if entry.size >= SMALL_BYTES:
            self._download_parts(source, path, entry.etag, on_bytes)
            return
        bucket, key = split_uri(source)
        expected = {"IfMatch": _quote(entry.etag)} if entry.etag else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")

        def receive() -> bool:
            """Return whether the object is still no longer than it was listed."""
            received = 0
            with (
                closing(self._client.get_object(Bucket=bucket, Key=key, **expected)["Body"]) as body,
                part.open("wb") as file,
            ):
                for block in body.iter_chunks(BLOCK_BYTES):
                    received += file.write(block)
                    if received > entry.size:
                        return False
                    if on_bytes:
                        on_bytes(0)  # counted once, whatever is repeated
            part.replace(path)
            return True

        try:
            is_received = self._retry(source, receive)
        finally:
            part.unlink(missing_ok=True)
        if not is_received:
            self.download(source, path, on_bytes)
        elif on_bytes:
            on_bytes(entry.size)

    def upload(self, path: Path, uri: str, on_bytes: OnBytes | None = None) -> None:
        """Copy one local file to an object, large files in parts."""
        bucket, key = split_uri(uri)

        size = path.stat().st_size
        subscribers = [ProgressCallbackInvoker(on_bytes)] if on_bytes else None

        def send() -> None:
            if size >= SMALL_BYTES:  # by its name: of an open file, ten parts would be in memory
                with create_transfer_manager(self._client, TRANSFER) as manager:
                    manager.upload(str(path), bucket, key, None, subscribers).result()
            else:  # without the threads that a transfer manager starts for each object
                with path.open("rb") as file:
                    self._client.put_object(Bucket=bucket, Key=key, Body=file)

        self._retry(uri, send)
        if on_bytes and size < SMALL_BYTES:
            on_bytes(size)

    def put(self, uri: str, data: bytes) -> None:
        bucket, key = split_uri(uri)
        self._retry(uri, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data))

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write a small object with `If-None-Match: *`.

        A retry inside botocore may find its own first write, so a refusal counts as written if the bytes are the same.
        In a store that does not implement the condition, the object is read before it is written.
        """
        bucket, key = split_uri(uri)
        for pause in range(CONFLICT_TRIES):
            try:
                self._retry(
                    uri, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*"), raw=True
                )
            except ClientError as error:
                status = http_status(error)
                if status == 412:
                    return self.read(uri) == data
                if status == 501:
                    if (found := self.read(uri)) is not None:
                        return found == data
                    self.put(uri, data)
                    return True
                if status != 409:
                    raise storage_error(error, uri, self._connection) from None
                time.sleep(0.2 * 2**pause)
                continue
            return True
        raise StorageUnavailable(f"{uri}: conflicting writes at {self._connection.endpoint}; try again")

    def remove(self, uri: str) -> None:
        """Remove one object; S3 also confirms it if there was none."""
        bucket, key = split_uri(uri)
        self._retry(uri, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def read(self, uri: str, limit: int = MAX_READ_BYTES) -> bytes | None:
        bucket, key = split_uri(uri)

        def get() -> bytes:
            with closing(self._client.get_object(Bucket=bucket, Key=key)["Body"]) as body:
                data = bytes(body.read(limit + 1))
            if len(data) > limit:
                raise size_error(uri, limit)
            return data

        try:
            return self._retry(uri, get)
        except ObjectMissing:
            return None

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        bucket, key = split_uri(uri)
        wanted = f"bytes={start}-{start + length - 1}"
        return self._retry(
            uri, lambda: bytes(self._client.get_object(Bucket=bucket, Key=key, Range=wanted)["Body"].read(length))
        )

    def list(self, uri: str, limit: int = MAX_OBJECTS) -> "list[Entry]":
        """Return every object under a prefix, without folder markers."""
        found = self._retry(uri, lambda: list(islice(self._entries(uri), limit + 1)))
        if len(found) > limit:
            raise count_error(uri, limit)
        return found

    def first(self, uri: str, besides: tuple[str, ...] = ()) -> Entry | None:
        """Return one object under a prefix; reads as few pages as necessary."""
        return self._retry(
            uri, lambda: next((entry for entry in self._entries(uri) if not entry.key.startswith(besides)), None)
        )

    def _entries(self, uri: str) -> Iterator[Entry]:
        bucket, key = split_uri(uri)
        prefix = f"{key.rstrip('/')}/" if key else ""
        count = 0
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            if count > MAX_OBJECTS:
                raise count_error(uri, MAX_OBJECTS)
            items = page.get("Contents", [])
            count += max(len(items), SHORTEST_PAGE)
            for item in items:
                if not item["Key"].endswith("/"):
                    yield Entry(item["Key"][len(prefix) :], int(item["Size"]), str(item.get("ETag", "")).strip('"'))

    def size(self, uri: str) -> int | None:
        bucket, key = split_uri(uri)
        try:
            return self._retry(uri, lambda: int(self._client.head_object(Bucket=bucket, Key=key)["ContentLength"]))
        except ObjectMissing:
            return None

    def sha256(self, uri: str, on_bytes: OnBytes | None = None) -> str:
        bucket, key = split_uri(uri)

        def digest() -> str:
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
            return sha256_blocks(body.iter_chunks(CHUNK_BYTES), on_bytes)

        return self._retry(uri, digest)

    def _retry(self, uri: str, call: Callable[[], T], *, raw: bool = False) -> T:
        def named() -> T:
            with self._named(uri, raw=raw):
                found = call()
            self._had_valid_keys = True
            return found

        return retry(named, self._is_worth_a_retry, self._retry_seconds, self._stop)

    def _is_worth_a_retry(self, error: Exception) -> bool:
        is_unavailable = isinstance(error, StorageUnavailable) and not isinstance(error, ObjectReplaced)
        is_passing = is_unavailable or (isinstance(error, KeysRefused) and self._had_valid_keys)
        return is_passing and not self._stop.is_set()

    @contextmanager
    def _named(self, uri: str, *, raw: bool = False) -> Iterator[None]:
        """Translate the client's errors into ours; with `raw`, a refused precondition is raised unchanged."""
        try:
            yield
        except ClientError as error:
            status = http_status(error)
            if raw and status in {409, 412, 501}:
                raise
            if is_missing(error):
                raise self._missing(uri, error) from None
            if status == 412:
                raise ObjectReplaced(uri) from None
            raise storage_error(error, uri, self._connection) from None
        except S3DownloadFailedError:  # a part of another object, or not of the listed one
            raise ObjectReplaced(uri) from None
        except NETWORK_ERRORS as error:
            raise storage_error(error, uri, self._connection) from None
        except NOT_S3 as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else type(error).__name__
            message = f"the response is not one of S3 ({what}): check {self._connection.names.endpoint} and any proxy"
            raise StorageUnavailable(f"{uri} at {self._connection.endpoint}: {message}") from None

    def _missing(self, uri: str, found: ClientError) -> Exception:
        """Return which is missing: a 404 to HEAD does not name it, so the bucket is checked.

        Keys that may list only a prefix are refused there; a store refuses only for a bucket that exists.
        """
        missing = ObjectMissing(f"{uri} does not exist at {self._connection.endpoint}")
        if error_code(found) == "NoSuchKey":
            return missing
        bucket, _ = split_uri(uri)
        try:
            self._client.head_bucket(Bucket=bucket)
        except ClientError as error:
            status = http_status(error)
            return missing if status == 403 else storage_error(error, uri, self._connection, bucket_only=True)
        except BotoCoreError as error:
            return storage_error(error, uri, self._connection)
        return missing
