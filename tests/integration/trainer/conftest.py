"""A real S3 server on loopback, and configurations that use it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from finetune_api.spec import Storage as StorageSpec

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key"
START_SECONDS = 90


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, and keys that it accepts."""

    endpoint: str
    tls_endpoint: str
    authority: Path
    access_key: str
    secret_key: str

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=10),
        )

    def spec(self) -> StorageSpec:
        return StorageSpec(endpoint=self.endpoint)


def free_ports(count: int) -> list[int]:
    """Ports whose gRPC twin, 10,000 above, is free too; held together so that they differ."""
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            one = socket.socket()
            one.bind(("127.0.0.1", 0))
            held.append(one)
            port = one.getsockname()[1]
            if port < 55_000:
                ports.append(port)
        return ports
    finally:
        for one in held:
            one.close()


def make_certificates(directory: Path) -> tuple[Path, Path, Path]:
    """A private authority, and a certificate of its own for 127.0.0.1 with its key."""
    authority, certificate, key = directory / "ca.crt", directory / "tls.crt", directory / "tls.key"
    common = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    ca_key = str(directory / "ca.key")
    subprocess.run(
        [*common, "-subj", "/CN=test authority", "-keyout", ca_key, "-out", str(authority)],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [
            *common, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE", "-CA", str(authority), "-CAkey", ca_key,
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return authority, certificate, key


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    directory = tmp_path_factory.mktemp("s3")
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (directory / "identities.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    names += ("s3.port", "s3.port.grpc", "s3.port.https")
    authority, certificate, key = make_certificates(directory)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "weed"),
                "server",
                f"-dir={directory}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=64",
                "-volume.max=1000",
                "-s3",
                f"-s3.config={directory / 'identities.json'}",
                f"-s3.cert.file={certificate}",
                f"-s3.key.file={key}",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                *(f"-{name}={port}" for name, port in ports.items()),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=os.environ | {"HOME": str(directory)},
        )
    server = S3Server(
        endpoint=f"http://127.0.0.1:{ports['s3.port']}",
        tls_endpoint=f"https://127.0.0.1:{ports['s3.port.https']}",
        authority=authority,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
    )
    try:
        _wait_until_it_stores(server, process, directory / "weed.log")
        yield server
    finally:
        # Nothing of it is kept, and its orderly end takes 20 seconds.
        process.kill()
        process.wait()


def _wait_until_it_stores(server: S3Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """The first accepted object shows that master, volume and filer have found each other."""
    deadline = time.monotonic() + START_SECONDS
    client = server.client()
    while True:
        try:
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="probe", Body=b"x")
        except (ClientError, BotoCoreError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the S3 server did not start: {error}\n{tail}") from error
            time.sleep(0.5)
        else:
            return


@pytest.fixture
def bucket(s3_server: S3Server, request: pytest.FixtureRequest) -> str:
    """A new bucket for one test."""
    name = f"b{abs(hash(request.node.nodeid)) % 10**12}"
    s3_server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def aws_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
