"""A hub behind TLS with an authority of its own, and behind a proxy."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from proxy import Proxy

from finetune_api.handoff import ExitCode
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.errors import StorageUnavailable, TrainerError
from finetune_trainer.storage.hub.storage import HubStore
from finetune_trainer.storage.hub.uris import HubConnection, connect_hub
from finetune_trainer.storage.protocol import sha256_file

TINY = "hf://acme/tiny"
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.storage.hub.client.MIN_RETRY_SECONDS", 0.1)
    for name in (*PROXY_VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "models" / "acme" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    return tmp_path / "hub"


@pytest.fixture
def hub(repositories: Path) -> Iterator[Hub]:
    with Hub(repositories).serving() as running:
        yield running


@pytest.fixture
def tls_hub(repositories: Path, certificates: tuple[Path, Path, Path]) -> Iterator[Hub]:
    _, certificate, key = certificates
    with Hub(repositories).serving(certificate=(certificate, key)) as running:
        yield running


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy().serving() as running:
        yield running


def storage(hub: Hub, directory: Path, **settings: Any) -> HubStore:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": TINY},
            "dataset": {"train": {"uri": "hf://datasets/acme/qa"}},
            "output": {"uri": "s3://bucket/out"},
            "hub": {"endpoint": hub.endpoint} | settings,
        }
    )
    return HubStore(connect_hub(spec, tokens_dir=directory / "tokens", ca_dir=directory))


def host(url: str) -> str:
    return url.partition("://")[2]


def test_an_own_authority_is_trusted_when_it_is_given_and_only_then(
    tls_hub: Hub, certificates: tuple[Path, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StorageUnavailable, match=r"certificate is not trusted .* set spec\.hub\.caSecretRef"):
        storage(tls_hub, tmp_path).pin(TINY)
    assert tls_hub.requests == []
    assert caplog.text == ""  # one try is enough
    (tmp_path / "ca.crt").write_bytes(certificates[0].read_bytes())
    trusting = storage(tls_hub, tmp_path, caSecretRef={"name": "ca"})
    trusting.download(f"{TINY}/model.safetensors", tmp_path / "model")
    assert sha256_file(tmp_path / "model") == sha256_file(tls_hub.root / "models/acme/tiny/model.safetensors")


def test_outside_a_cluster_the_authority_is_that_of_the_environment(
    tls_hub: Hub, certificates: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = HubConnection(tls_hub.endpoint, is_here=True)
    with pytest.raises(StorageUnavailable, match="name its authority's file in SSL_CERT_FILE"):
        HubStore(connection).pin(TINY)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[0]))
    assert HubStore(connection).pin(TINY)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    with pytest.raises(TrainerError, match="SSL_CERT_FILE or SSL_CERT_DIR contains no certificate") as caught:
        HubStore(connection).pin(TINY)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_an_authority_that_is_none_is_an_invalid_config(tls_hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("not a certificate")
    with pytest.raises(TrainerError, match=r"spec\.hub\.caSecretRef contains no certificate") as caught:
        storage(tls_hub, tmp_path, caSecretRef={"name": "ca"}).pin(TINY)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_http_at_an_https_port_and_the_other_way_round_is_reported(hub: Hub, tls_hub: Hub, tmp_path: Path) -> None:
    for one in (hub, tls_hub):
        scheme, _, rest = one.endpoint.partition("://")
        one.endpoint = f"{'http' if scheme == 'https' else 'https'}://{rest}"
        with pytest.raises(StorageUnavailable, match=r"spec\.hub\.endpoint"):
            storage(one, tmp_path).pin(TINY)


def test_a_proxy_carries_every_request_to_a_hub_over_tls(
    tls_hub: Hub, proxy: Proxy, certificates: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    (tmp_path / "ca.crt").write_bytes(certificates[0].read_bytes())
    trusting = storage(tls_hub, tmp_path, caSecretRef={"name": "ca"})
    trusting.download(f"{TINY}/model.safetensors", tmp_path / "model")
    assert set(proxy.asked) == {
        ("CONNECT", host(tls_hub.endpoint)),
        ("CONNECT", host(tls_hub.files_endpoint)),
    }


def test_a_proxy_carries_plain_requests_but_for_the_hosts_in_no_proxy(
    hub: Hub, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    storage(hub, tmp_path).download(f"{TINY}/model.safetensors", tmp_path / "model")
    assert set(proxy.asked) == {("GET", host(hub.endpoint)), ("GET", host(hub.files_endpoint))}
    proxy.asked.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    storage(hub, tmp_path).pin(TINY)
    assert proxy.asked == []


def test_a_proxy_that_is_gone_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with pytest.raises(StorageUnavailable, match=r"check spec\.hub\.endpoint, the network, and HTTP_PROXY, whose"):
        storage(hub, tmp_path).pin(TINY)


@pytest.mark.parametrize("address", ["ftp://proxy:21", "127.0.0.1:1:2", "socks5://127.0.0.1:1"])
def test_a_proxy_that_is_none_is_an_invalid_config(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", address)
    with pytest.raises(TrainerError, match=r"is not a proxy address: write http://host:port") as caught:
        storage(hub, tmp_path).pin(TINY)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_password_of_a_proxy_is_never_shown(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for address in ("http://me:s3cr3t@127.0.0.1:1", "ftp://me:s3cr3t@proxy:21", "http://me:s3cr3t/@127.0.0.1:1"):
        monkeypatch.setenv("HTTP_PROXY", address)
        with pytest.raises(TrainerError) as caught:
            storage(hub, tmp_path).pin(TINY)
        assert "s3cr3t" not in caught.value.message + caplog.text
