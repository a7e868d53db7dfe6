"""A job's storage settings decide how requests are addressed and signed."""

import pytest

from finetune_api.spec import Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.s3_client import S3Connection, connect_s3_here

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


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")


MINIO, EU = "http://minio:9000", "https://s3.eu-central-1.amazonaws.com"


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
