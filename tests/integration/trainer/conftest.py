"""A real S3 server on loopback, configurations that use it, and the surroundings of one job."""

import os
from pathlib import Path

import pytest
from s3_world import aws_environment, bucket, certificates, s3_server
from trainer_world import model_folder, rows_file, tokenizer_json, world

__all__ = [
    "aws_environment",
    "bucket",
    "certificates",
    "model_folder",
    "rows_file",
    "s3_server",
    "tokenizer_json",
    "world",
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `S3_SERVER`, select the tests here that use the S3 server."""
    if "S3_SERVER" in os.environ:
        here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
        others = {item for item in here if "s3_server" not in getattr(item, "fixturenames", ())}
        config.hook.pytest_deselected(items=list(others))
        items[:] = [item for item in items if item not in others]
