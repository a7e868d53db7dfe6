"""MinIO as a process."""

from collections.abc import Iterator

import pytest
from s3_servers import S3Server, start_s3
from s3_world import aws_environment, bucket

__all__ = ["aws_environment", "bucket"]


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Require no vLLM, which the tests in the folder above need."""


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from start_s3(tmp_path_factory.mktemp("minio"), "minio")
