"""URLs of servers that a job names: one pattern for the CRD, and one parser for every program."""

import ipaddress
import re
from urllib.parse import urlsplit

_PORT = "6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AWS = re.compile(r"s3(-fips)?(\.dualstack)?(\.[a-z0-9-]+)?\.amazonaws\.com(\.cn)?")
"""Names of S3 itself. Other names below `amazonaws.com` are those of load balancers and machines of any customer."""
_IPV6 = r"([0-9A-Fa-f]{0,4}:){2,7}([0-9A-Fa-f]{0,4}|[0-9]{1,3}([.][0-9]{1,3}){3})"
ENDPOINT = re.compile(rf'^https?://(\[{_IPV6}\]|[A-Za-z0-9._-]+)(:({_PORT}))?(/[!-"$->A-~]*)?$')
"""ASCII alone: clients turn other digits and full stops into those of another address. No user, query or fragment. The
pattern accepts more in brackets than addresses, which `parse_host` refuses."""
ENDPOINT_MESSAGE = (
    "must be https://host, http://host or http://host:port in ASCII: without user, password and query, and an address "
    "of IPv6 in brackets, for example http://minio.minio:9000"
)

_PLAIN_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")
_PLAIN_PATH = re.compile(r"((?!\.{1,2}(/|$))[A-Za-z0-9._~-]*(/|$))*")
"""A path without dot segments, escapes and backslashes, which clients may resolve to another path."""


def parse_host(endpoint: str) -> str:
    """Return the host of an endpoint, without brackets; raises ValueError if it is not one."""
    if not ENDPOINT.fullmatch(endpoint):
        raise ValueError(ENDPOINT_MESSAGE)
    if "[" in endpoint:
        ipaddress.IPv6Address(endpoint.partition("[")[2].partition("]")[0])
    return urlsplit(endpoint).hostname or ""


def is_endpoint(endpoint: str) -> bool:
    """Return whether `parse_host` accepts the endpoint."""
    try:
        parse_host(endpoint)
    except ValueError:
        return False
    return True


def is_same_server(one: str, other: str) -> bool:
    """Return whether two endpoints are one server: scheme, host, port and path are equal, or both are AWS S3."""
    if not (is_endpoint(one) and is_endpoint(other)):
        return False
    return _parts(one) == _parts(other) or (is_aws_s3(one) and is_aws_s3(other))


def is_aws_s3(endpoint: str) -> bool:
    """Return whether an endpoint is S3 of AWS itself, in any region."""
    return is_endpoint(endpoint) and bool(_AWS.fullmatch(parse_host(endpoint))) and endpoint.startswith("https://")


def matches_pattern(endpoint: str, pattern: str) -> bool:
    """Return whether scheme, host and path match the pattern, in which `*` matches no `/`."""
    scheme, _, rest = endpoint.partition("://")
    wanted_scheme, _, wanted_rest = pattern.partition("://")
    host, _, path = rest.partition("/")
    wanted_host, _, wanted_path = wanted_rest.partition("/")
    return (
        scheme.lower() == wanted_scheme.lower()
        and _PLAIN_HOST.fullmatch(host) is not None
        and _PLAIN_PATH.fullmatch(path) is not None
        and _matches(host.lower(), wanted_host.lower())
        and _matches(path.rstrip("/"), wanted_path.rstrip("/"))
    )


def _matches(text: str, pattern: str) -> bool:
    return re.fullmatch("[^/]*".join(re.escape(part) for part in pattern.split("*")), text) is not None


def is_loopback(endpoint: str) -> bool:
    """Return whether the host of an endpoint is this machine: `localhost`, or a loopback address."""
    host = parse_host(endpoint)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(endpoint: str) -> tuple[str, str | None, int | None, str]:
    url = urlsplit(endpoint)
    return url.scheme, url.hostname, url.port or _DEFAULT_PORTS[url.scheme], url.path.rstrip("/")
