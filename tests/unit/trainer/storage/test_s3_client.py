"""A job's storage settings decide how requests are addressed and signed."""

import pytest

from finetune_api.spec import Storage
from finetune_trainer.storage.s3_client import S3Connection

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}


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
