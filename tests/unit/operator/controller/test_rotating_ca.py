"""The API server gets a certificate of another authority, and the CA file of the service account is replaced."""

import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
import yaml
from aiohttp import web
from job_world import KEY
from kubernetes.config import kube_config

from finetune_operator.cluster import Cluster
from finetune_operator.controller.rotating_ca import RotatingConnection
from finetune_operator.kube.errors import RetryLater
from finetune_operator.metrics.registry import Metrics
from finetune_operator.settings import Settings

JOB = {"metadata": {"namespace": "team", "name": "one", "uid": "u"}, "spec": {}}
Rotate = Callable[[str], Any]


def certify(folder: Path, name: str) -> Path:
    """Write a certificate that is its own authority, and its key."""
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    path = folder / f"{name}.crt"
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(path)]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)
    return path


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[tuple[int, Rotate]]:
    """Serve with the certificate of one authority, and with another one after `rotate`; the port stays the same."""
    for name in ("old", "new"):
        certify(tmp_path, name)
    runners: list[web.AppRunner] = []
    port = 0

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(JOB)

    async def rotate(name: str) -> None:
        nonlocal port
        for runner in runners:
            await runner.cleanup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
        port = runners[-1].addresses[0][1]

    await rotate("old")
    (tmp_path / "ca.crt").write_bytes((tmp_path / "old.crt").read_bytes())
    yield port, rotate
    for runner in runners:
        await runner.cleanup()


def replace_ca(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes((tmp_path / "new.crt").read_bytes())


async def test_the_watches_trust_a_replaced_ca_without_a_restart(api: tuple[int, Rotate], tmp_path: Path) -> None:
    port, rotate = api
    url = f"https://127.0.0.1:{port}/"
    info = RotatingConnection.of(kopf.ConnectionInfo(server=url, ca_path=str(tmp_path / "ca.crt"), token="t"))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=info.as_ssl_context())) as session:
        assert (await session.get(url)).status == 200
        await rotate("new")
        with pytest.raises(aiohttp.ClientError):
            await session.get(url)
        replace_ca(tmp_path)
        assert (await session.get(url)).status == 200


async def test_requests_trust_a_replaced_ca_without_a_restart(
    api: tuple[int, Rotate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, rotate = api
    server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(tmp_path / "ca.crt")}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {
        "clusters": [{"name": "c", "cluster": server}],
        "contexts": [context],
        "users": [{"name": "u", "user": {}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config | {"apiVersion": "v1", "kind": "Config", "current-context": "x"}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))  # read at the import
    cluster = Cluster(Settings(trainer_image="registry.example/trainer:1"), Metrics())
    assert (await cluster.get_job(KEY)).uid == "u"
    await rotate("new")
    with pytest.raises(RetryLater):
        await cluster.get_job(KEY)
    replace_ca(tmp_path)
    assert (await cluster.get_job(KEY)).uid == "u"
    await cluster.close()
