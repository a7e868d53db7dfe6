"""A real S3 server on loopback, and configurations that use it."""

from s3_world import aws_environment, bucket, certificates, s3_server

__all__ = ["aws_environment", "bucket", "certificates", "s3_server"]
