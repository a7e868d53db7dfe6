"""The control plane of the tests is closed to other users of the machine, and to pages in its browsers."""

import http.client
import json
import ssl
from contextlib import closing
from pathlib import Path

import pytest

PAGE = {"Origin": "https://page.example", "Content-Type": "application/json"}
EVERYTHING = json.dumps({"key": "AA==", "range_end": "AA=="})


@pytest.fixture
def etcd(control_plane: Path) -> int:
    """The port of etcd."""
    return int(json.loads((control_plane.parent / "ports.json").read_text())["etcd"])


def test_etcd_answers_only_a_certificate_of_its_own_authority(etcd: int, control_plane: Path) -> None:
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(http.client.HTTPConnection("127.0.0.1", etcd, timeout=10))
    with pytest.raises(OSError, match=r"certificate required|reset|EOF|alert"):
        ask(http.client.HTTPSConnection("127.0.0.1", etcd, timeout=10, context=trusting_all()))
    of_the_cluster = trusting_all()
    pki = control_plane.parent / "pki"
    of_the_cluster.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    with pytest.raises(OSError, match=r"certificate|reset|EOF|alert"):
        ask(http.client.HTTPSConnection("127.0.0.1", etcd, timeout=10, context=of_the_cluster))


def test_etcd_has_no_gateway_for_pages_and_names_no_other_origin(etcd: int, control_plane: Path) -> None:
    of_the_api_server = trusting_all()
    pki = control_plane.parent / "pki"
    of_the_api_server.load_cert_chain(pki / "apiserver-etcd-client.crt", pki / "apiserver-etcd-client.key")
    answer = ask(http.client.HTTPSConnection("127.0.0.1", etcd, timeout=10, context=of_the_api_server))
    assert answer.status == 404
    assert answer.getheader("Access-Control-Allow-Origin") is None


def test_the_keys_are_for_their_owner_alone(control_plane: Path) -> None:
    pki = control_plane.parent / "pki"
    assert pki.stat().st_mode & 0o077 == 0
    assert [one.name for one in [control_plane, *pki.glob("*.key")] if one.stat().st_mode & 0o077] == []


def ask(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Ask for every key of etcd, as a page could."""
    with closing(connection):
        connection.request("POST", "/v3/kv/range", body=EVERYTHING, headers=PAGE)
        return connection.getresponse()


def trusting_all() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
