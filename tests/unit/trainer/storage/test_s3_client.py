"""A job's storage settings decide how requests are addressed and signed."""

import io
import re
import ssl
from pathlib import Path

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, SSLError
from urllib3 import HTTPResponse

from finetune_api.spec import Storage
from finetune_trainer.errors import StorageDenied, TrainerError
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import S3Connection, connect_s3, connect_s3_here, storage_error

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
KEYS_OF_SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
MINIO, EU = "http://minio:9000", "https://s3.eu-central-1.amazonaws.com"


def signed_url(**settings: object) -> str:
    connection = S3Connection(Storage.model_validate(settings), KEYS)
    params = {"Bucket": "rows", "Key": "a.jsonl"}
    return str(connection.client.generate_presigned_url("get_object", Params=params))


@pytest.mark.parametrize(("settings", "region"), [({}, "us-east-1"), ({"region": "eu-west-3"}, "eu-west-3")])
def test_requests_are_signed_for_the_region_of_the_job(settings: dict[str, str], region: str) -> None:
    assert S3Connection(Storage.model_validate(settings), KEYS).client.meta.region_name == region


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"endpoint": "http://minio:9000"}, "http://minio:9000/rows/a.jsonl?"),
        ({"endpoint": "http://minio:9000", "forcePathStyle": True}, "http://minio:9000/rows/a.jsonl?"),
        ({"endpoint": "http://minio:9000", "forcePathStyle": False}, "http://rows.minio:9000/a.jsonl?"),
        ({}, "https://rows.s3.amazonaws.com/a.jsonl?"),
        ({"forcePathStyle": True}, "https://s3.amazonaws.com/rows/a.jsonl?"),
    ],
)
def test_a_bucket_is_in_the_path_or_in_the_host_as_the_job_sets_it(settings: dict[str, object], start: str) -> None:
    assert signed_url(**settings).startswith(start)


def mount(folder: Path, version: int, **keys: str) -> None:
    """Replace the files of a mounted Secret as the kubelet does: a new folder, then the link to it."""
    data = folder / f"..{version}"
    data.mkdir(parents=True)
    for name, text in keys.items():
        (data / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").replace(folder / "..data")


def test_a_request_is_signed_with_the_keys_that_the_mounted_secret_has_now(tmp_path: Path) -> None:
    def rotate(number: int) -> None:
        mount(tmp_path, number, **{name: f"{name}-{number}" for name in KEYS_OF_SECRET})

    rotate(1)
    connection = connect_s3(Storage.model_validate({"credentialsSecretRef": {"name": "s3"}}), tmp_path)
    signed: list[tuple[str, str]] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        key = re.search(r"Credential=([^/]+)", text_of(request.headers["Authorization"]))
        signed.append((key[1] if key else "", text_of(request.headers["X-Amz-Security-Token"])))
        return AWSResponse(request.url, 200, {}, HTTPResponse(io.BytesIO()))

    connection.client.meta.events.register("before-send.s3", answer)
    store = S3Store(connection, 0.0, StopFlag())
    for number in (1, 2, 3):
        if number == 2:
            rotate(2)
        if number == 3:  # a Secret without keys does not end a run whose keys are still valid
            mount(tmp_path, 3)
        store.put("s3://bucket/key", b"")
    assert signed == [
        ("AWS_ACCESS_KEY_ID-1", "AWS_SESSION_TOKEN-1"),
        ("AWS_ACCESS_KEY_ID-2", "AWS_SESSION_TOKEN-2"),
        ("AWS_ACCESS_KEY_ID-2", "AWS_SESSION_TOKEN-2"),
    ]


def refuse_key(request: AWSPreparedRequest) -> AWSResponse:
    body = io.BytesIO(b"<Error><Code>InvalidAccessKeyId</Code></Error>")
    return AWSResponse(request.url, 403, {}, HTTPResponse(body, preload_content=False))


def test_a_trainer_whose_key_was_revoked_waits_until_the_kubelet_has_mounted_the_new_one(tmp_path: Path) -> None:
    """The kubelet replaces the files about a minute after the Secret has changed; a checkpoint may be due then."""
    mount(tmp_path, 1, **{name: f"{name}-1" for name in KEYS_OF_SECRET})
    connection = connect_s3(Storage.model_validate({"credentialsSecretRef": {"name": "s3"}}), tmp_path)
    valid, refused_requests = [1], []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        if f"AWS_ACCESS_KEY_ID-{valid[0]}/" in text_of(request.headers["Authorization"]):
            return AWSResponse(request.url, 200, {}, HTTPResponse(io.BytesIO()))
        refused_requests.append(request.url)
        if len(refused_requests) == 2:
            mount(tmp_path, 2, **{name: f"{name}-2" for name in KEYS_OF_SECRET})
        return refuse_key(request)

    connection.client.meta.events.register("before-send.s3", answer)
    store = S3Store(connection, 60.0, StopFlag())
    store.put("s3://bucket/first", b"")
    valid[0] = 2
    store.put("s3://bucket/checkpoint", b"")
    assert len(refused_requests) == 2


def test_a_key_that_never_was_valid_is_denied_at_the_first_request(tmp_path: Path) -> None:
    mount(tmp_path, 1, **{name: name for name in KEYS_OF_SECRET})
    connection = connect_s3(Storage.model_validate({"credentialsSecretRef": {"name": "s3"}}), tmp_path)
    requests: list[str] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        requests.append(request.url)
        return refuse_key(request)

    connection.client.meta.events.register("before-send.s3", answer)
    with pytest.raises(StorageDenied, match="the access key is unknown"):
        S3Store(connection, 60.0, StopFlag()).put("s3://bucket/first", b"")
    assert len(requests) == 1


@pytest.mark.parametrize(("endpoint", "has_checksum"), [(None, True), (EU, True), (MINIO, False)])
def test_what_is_written_to_aws_has_a_checksum_which_it_requires_in_a_bucket_with_object_lock(
    tmp_path: Path, endpoint: str | None, *, has_checksum: bool
) -> None:
    """A small object, a small file, and a file of two parts; some other stores refuse the checksums."""
    connection = S3Connection(Storage(endpoint=endpoint), KEYS)
    written: list[bool] = []

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        if request.method == "PUT":
            written.append("x-amz-sdk-checksum-algorithm" in request.headers)
        body = b"<R><UploadId>1</UploadId></R>" if request.method == "POST" else b""
        headers = {"ETag": "e"}
        return AWSResponse(request.url, 200, headers, HTTPResponse(io.BytesIO(body), headers, preload_content=False))

    connection.client.meta.events.register("before-send.s3", answer)
    store = S3Store(connection, 0.0, StopFlag())
    store.put("s3://bucket/owner.json", b"{}")
    for size in (1, 20_000_000):
        (tmp_path / "file").write_bytes(b"x" * size)
        store.upload(tmp_path / "file", "s3://bucket/file")
    assert written == [has_checksum] * 4


def test_a_store_that_refuses_conditional_writes_is_asked_whether_the_object_exists() -> None:
    """As Alibaba Cloud OSS does: it answers 501 where other stores ignore the condition."""
    connection = S3Connection(Storage(endpoint="https://oss.example"), KEYS)
    objects: dict[str, bytes] = {}

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        status, body = 200, b""
        if "If-None-Match" in request.headers:
            status, body = 501, b"<Error><Code>NotImplemented</Code></Error>"
        elif request.method == "PUT":
            objects[request.url] = request.body.read() if hasattr(request.body, "read") else request.body
        elif request.url in objects:
            body = objects[request.url]
        else:
            status, body = 404, b"<Error><Code>NoSuchKey</Code></Error>"
        headers = {"Content-Length": str(len(body))}
        return AWSResponse(request.url, status, headers, HTTPResponse(io.BytesIO(body), headers, preload_content=False))

    connection.client.meta.events.register("before-send.s3", answer)
    store = S3Store(connection, 60.0, StopFlag())
    assert store.put_if_absent("s3://bucket/owner.json", b"{}")
    assert not store.put_if_absent("s3://bucket/owner.json", b"another's")
    assert store.read("s3://bucket/owner.json") == b"{}"


class Garbled(io.BytesIO):
    """A body whose second block fails its check of TLS, as through a broken middlebox or network card."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] decryption failed or bad record mac")
        return super().read(1)


def test_a_body_that_tls_refuses_in_the_middle_is_requested_again() -> None:
    connection = S3Connection(Storage(), KEYS)
    bodies = [Garbled(b"rows"), io.BytesIO(b"rows")]

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        headers = {"Content-Length": "4"}
        return AWSResponse(request.url, 200, headers, HTTPResponse(bodies.pop(0), headers, preload_content=False))

    connection.client.meta.events.register("before-send.s3", answer)
    assert S3Store(connection, 60.0, StopFlag()).read("s3://bucket/a.jsonl") == b"rows"
    assert bodies == []


def text_of(header: str | bytes) -> str:
    return header.decode() if isinstance(header, bytes) else header


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")


@pytest.mark.usefixtures("no_aws")
@pytest.mark.parametrize(
    ("own", "asked", "named", "endpoint"),
    [
        (None, None, [], None),
        (None, EU, [], EU),
        (None, MINIO, [MINIO], MINIO),
        (MINIO, None, [], MINIO),
        (MINIO, f"{MINIO}/", [], f"{MINIO}/"),
        (MINIO, EU, [EU], EU),
        (None, MINIO, [], "refused"),
        (MINIO, EU, [], "refused"),
        (MINIO, "http://minio:9001", ["http://minio"], "refused"),
    ],
)
def test_requests_are_signed_for_the_store_of_the_keys_or_one_that_the_user_names(
    monkeypatch: pytest.MonkeyPatch, own: str | None, asked: str | None, named: list[str], endpoint: str | None
) -> None:
    if own:
        monkeypatch.setenv("AWS_ENDPOINT_URL", own)
    if endpoint != "refused":
        assert connect_s3_here(Storage(endpoint=asked), named).spec.endpoint == endpoint
        return
    with pytest.raises(TrainerError, match=r"spec\.storage\.endpoint is .* add --send-keys-to"):
        connect_s3_here(Storage(endpoint=asked), named)


@pytest.mark.usefixtures("no_aws")
@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL_S3", "minio:9000"), ("AWS_PROFILE", "nobodys")])
def test_a_wrong_setting_of_aws_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TrainerError, match=rf"AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the AWS profile: .*{value}"):
        connect_s3_here(None)


def refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "ListObjectsV2")


FAILURES = [
    (refused("InvalidAccessKeyId"), "spec.storage.credentialsSecretRef", "into the environment or the AWS profile"),
    (refused("InvalidAccessKeyId"), "the access key is unknown", "for another store than AWS, set AWS_ENDPOINT_URL"),
    (NoCredentialsError(), "spec.storage.credentialsSecretRef", "into the environment or the AWS profile"),
    (refused("NoSuchBucket"), "or spec.storage.endpoint", "or AWS_ENDPOINT_URL"),
    (refused("PermanentRedirect"), "set spec.storage.region", "set AWS_DEFAULT_REGION"),
    (SSLError(endpoint_url="x", error="e"), "set spec.storage.caSecretRef", "set AWS_CA_BUNDLE"),
    (EndpointConnectionError(endpoint_url="x"), "check spec.storage.endpoint and", "check AWS_ENDPOINT_URL and"),
    (refused("Other"), "access is denied", "access is denied"),
    (refused("QuotaExceeded"), "raise the bucket's quota", "raise the bucket's quota"),  # Ceph's
]


@pytest.mark.usefixtures("no_aws")
def test_a_failure_names_the_setting_of_a_job_or_of_this_machine() -> None:
    pod, machine = S3Connection(Storage(), KEYS), connect_s3_here(Storage())
    for error, field, variable in FAILURES:
        assert field in storage_error(error, "s3://bucket/out", pod).message
        message = storage_error(error, "s3://bucket/out", machine).message
        assert variable in message
        assert "spec." not in message


@pytest.mark.usefixtures("no_aws")
def test_the_endpoint_of_a_manifest_or_of_an_option_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", MINIO)
    lost = EndpointConnectionError(endpoint_url="x")
    manifest = connect_s3_here(Storage(endpoint=MINIO))
    assert "check spec.storage.endpoint and" in storage_error(lost, "s3://b", manifest).message
    option = connect_s3_here(Storage(endpoint=MINIO), option="--endpoint")
    assert "check --endpoint and" in storage_error(lost, "s3://b", option).message
    default = connect_s3_here(None, option="--endpoint")
    assert "check AWS_ENDPOINT_URL or --endpoint and" in storage_error(lost, "s3://b", default).message


@pytest.mark.usefixtures("no_aws")
@pytest.mark.parametrize(("asked", "region"), [(None, "eu-west-3"), (Storage(region="eu-west-1"), "eu-west-1")])
def test_the_region_of_this_machine_counts_if_the_manifest_names_none(
    monkeypatch: pytest.MonkeyPatch, asked: Storage | None, region: str
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    assert connect_s3_here(asked).client.meta.region_name == region
