"""URLs of servers: what every program takes for one, and which host it is."""

import pytest

from finetune_api.endpoints import is_endpoint, parse_host


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("https://huggingface.co", "huggingface.co"),
        ("http://minio.minio:9000", "minio.minio"),
        ("http://MinIO.minio.svc.cluster.local./path/x", "minio.minio.svc.cluster.local."),
        ("http://10.0.0.1:80/", "10.0.0.1"),
        ("http://[2001:db8::1]:9000/a", "2001:db8::1"),
        ("http://[::ffff:1.2.3.4]", "::ffff:1.2.3.4"),
        ("http://my_bucket.s3:65535", "my_bucket.s3"),
        ("http://2852039166/latest", "2852039166"),
    ],
)
def test_a_url_of_a_server_has_its_host(endpoint: str, host: str) -> None:
    assert parse_host(endpoint) == host


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169。254。169。254",
        "http://①⑥⑨.254.169.254",
        "http://exämple.com",
        "http://xn--a.com\\@evil",
        "http://user@host",
        "https://evil.example\\.s3.example",
        "http://host?x",
        "http://host#x",
        "http://host path",
        "http://host\t",
        "http://host\n",
        "http://[x]",
        "http://[1:2]",
        "http://[::1%25eth0]",
        "http://[::1",
        "http://host:0",
        "http://host:65536",
        "http://host:x",
        "http://",
        "ftp://host",
        "//host",
        "http://host/ä",
    ],
)
def test_what_programs_read_differently_is_no_endpoint(endpoint: str) -> None:
    assert not is_endpoint(endpoint)
