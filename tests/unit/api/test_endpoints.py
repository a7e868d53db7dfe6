"""URLs of servers: what every program takes for one, and which host it is."""

import pytest

from finetune_api.endpoints import is_aws_s3, is_endpoint, is_loopback, is_same_server, parse_host


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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://hub.example", "https://HUB.example:443/", True),
        ("http://minio:9000/s3/", "http://minio:9000/s3", True),
        ("https://s3.amazonaws.com", "https://s3.eu-central-1.amazonaws.com", True),
        ("https://hub.example", "http://hub.example", False),
        ("https://hub.example", "https://hub.example:8443", False),
        ("https://hub.example", "https://hub.example.evil", False),
        ("https://hub.example/team-a", "https://hub.example/team-b", False),
        ("https://hub.example/A", "https://hub.example/a", False),
        ("https://s3.amazonaws.com", "http://s3.amazonaws.com", False),
        ("", "", False),
        ("databricks", "databricks", False),
    ],
)
def test_two_urls_are_one_server_if_scheme_host_port_and_path_are_equal(one: str, other: str, same: bool) -> None:
    assert is_same_server(one, other) is is_same_server(other, one) is same


@pytest.mark.parametrize(
    ("endpoint", "is_aws"),
    [
        ("https://s3.amazonaws.com", True),
        ("https://s3.us-gov-west-1.amazonaws.com/", True),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", True),
        ("https://s3-fips.us-east-1.amazonaws.com", True),
        ("https://s3.cn-north-1.amazonaws.com.cn", True),
        ("http://s3.amazonaws.com", False),
        ("https://s3-1234567890.us-east-1.elb.amazonaws.com", False),
        ("https://ec2-192-0-2-1.compute-1.amazonaws.com", False),
        ("https://abc.execute-api.us-east-1.amazonaws.com", False),
        ("https://s3.amazonaws.com.evil.example", False),
        ("https://evils3.amazonaws.com", False),
        ("", False),
    ],
)
def test_s3_of_aws_is_recognised_and_no_customers_host(endpoint: str, is_aws: bool) -> None:
    assert is_aws_s3(endpoint) is is_aws


@pytest.mark.parametrize(
    ("endpoint", "here"),
    [
        ("http://localhost:5000", True),
        ("http://LOCALHOST", True),
        ("http://127.0.0.1:9000", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:80", True),
        ("http://localhost.example", False),
        ("http://127.0.0.1.example", False),
        ("http://10.0.0.1", False),
        ("http://2130706433", False),
        ("http://0.0.0.0", False),
    ],
)
def test_this_machine_is_a_loopback_address_or_localhost(endpoint: str, here: bool) -> None:
    assert is_loopback(endpoint) is here
