"""What MinIO answers and other S3 servers do not. The tests of storage and of trainer pods run on MinIO by
`S3_SERVER=minio`."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from s3_servers import REGION, S3Server

from finetune_trainer.errors import StorageDenied, StorageUnavailable
from finetune_trainer.storage.s3 import S3Store
from finetune_trainer.storage.s3_client import connect_s3

MIB = 1024 * 1024


@pytest.fixture
def storage(s3_server: S3Server, aws_environment: None) -> S3Store:
    return S3Store(connect_s3(s3_server.spec()))


def set_quota(server: S3Server, bucket: str, size: int) -> None:
    """Limit the bucket's size, by MinIO's own API."""
    url = f"{server.endpoint}/minio/admin/v3/set-bucket-quota?bucket={bucket}"
    signed = AWSRequest("PUT", url, data=json.dumps({"quota": size, "quotatype": "hard"}).encode())
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", REGION).add_auth(signed)
    request = urllib.request.Request(url, signed.data, dict(signed.headers.items()), method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_a_quota_that_is_exceeded_is_named_and_a_later_try_succeeds_once_it_is_raised(
    s3_server: S3Server, storage: S3Store, bucket: str, tmp_path: Path
) -> None:
    """As a full store: a job that has trained for hours keeps its tries."""
    uri, path = f"s3://{bucket}/out/adapter", tmp_path / "adapter"
    path.write_bytes(b"x" * 40 * MIB)  # in several parts
    calls: list[Callable[[], object]] = [
        lambda: storage.put(uri, b"x" * 2 * MIB),
        lambda: storage.put_if_absent(uri, b"x" * 2 * MIB),
        lambda: storage.upload(path, uri),
    ]
    set_quota(s3_server, bucket, MIB)
    for call in calls:
        with pytest.raises(StorageUnavailable, match=r"is full: delete objects there, or raise the bucket's quota \(X"):
            call()
    assert storage.list(f"s3://{bucket}/out") == []
    set_quota(s3_server, bucket, 100 * MIB)
    storage.upload(path, uri)
    assert storage.size(uri) == 40 * MIB


@pytest.mark.parametrize("name", ["n" * 300, "n/" * 600 + "n"])
def test_a_name_that_the_store_does_not_accept_is_the_cause(storage: S3Store, bucket: str, name: str) -> None:
    with pytest.raises(StorageDenied, match="does not accept this name: shorten it, or use other characters"):
        storage.put(f"s3://{bucket}/{name}", b"x")
