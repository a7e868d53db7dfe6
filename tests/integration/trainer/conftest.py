"""A real S3 server on loopback, configurations that use it, and the surroundings of one job."""

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
