"""A pod on the network of the operator and of trainers, which may open connections to their ports."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from free_ports import free_port
from prometheus_client.core import GaugeMetricFamily, Metric
from waiting import wait_until

from finetune_api.handoff import ENV_POD_IP, JobConfig
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import DatasetStatus, Resolved
from finetune_operator.controller import http_server
from finetune_operator.controller.health import Health
from finetune_operator.controller.http_server import serve
from finetune_operator.controller.scrape import Scrape
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.metrics.registry import Metrics
from finetune_trainer.monitoring.http_server import MAX_CONNECTIONS
from finetune_trainer.monitoring.reporter import Reporter

HERE = "127.0.0.1"
FORGED = "0" * 64
TOKEN = "5" * 64


class SlowCollector:
    """A collector that takes as long as ten thousand jobs would."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()
        self.scrapes = 0

    def describe(self) -> Iterator[Metric]:
        """Registered without a scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return one series when the test lets it."""
        self.scrapes += 1
        self.began.set()
        assert self.may_end.wait(60)
        yield GaugeMetricFamily("slow", "One series.", value=1)


async def get(port: int, path: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status


async def connect_silently(port: int, source: str) -> socket.socket:
    """Open a connection from that address, and let the server accept it."""
    opened = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port), 10, (source, 0))
    opened.setblocking(False)
    return opened


def is_open(connection: socket.socket) -> bool:
    try:
        return connection.recv(1 << 20) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


async def wait_for(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


async def test_many_scrapes_at_once_are_one_and_the_probes_answer_meanwhile() -> None:
    metrics, slow = Metrics(), SlowCollector()
    metrics.registry.register(slow)
    queue, ports, count = WorkQueue(1), (free_port(), free_port()), http_server.MAX_CONNECTIONS
    routes = Health(queue).routes, Scrape(queue, WatchCache(), metrics).routes
    runners = [await serve(one, port) for one, port in zip(routes, ports, strict=True)]
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{ports[1]}", connector=connector) as session:
            scrapes = [asyncio.create_task(session.get("/metrics")) for _ in range(count)]
            assert await asyncio.to_thread(slow.began.wait, 60)
            for _ in range(10):
                assert await get(ports[0], "/healthz") == 200
            slow.may_end.set()
            answers = await asyncio.gather(*scrapes)
            assert [answer.status for answer in answers] == [200] * count
            assert all("slow 1.0" in text for text in [await answer.text() for answer in answers])
    finally:
        slow.may_end.set()
        for runner in runners:
            await runner.cleanup()
    assert slow.scrapes == 1


async def test_silent_connections_take_few_file_descriptors_and_no_place_of_another_client() -> None:
    health, port, most = Health(WorkQueue(1)), free_port(), http_server.MAX_CONNECTIONS
    runner = await serve(health.routes, port)
    with ExitStack() as stack:
        other = stack.enter_context(await connect_silently(port, "127.0.0.3"))
        silent = [stack.enter_context(await connect_silently(port, "127.0.0.2")) for _ in range(10 * most)]
        await wait_for(lambda: sum(map(is_open, silent)) < most, "the end of the others")
        for _ in range(3):
            assert await get(port, "/healthz") == 200
        assert is_open(other)
    await runner.cleanup()


async def test_a_silent_client_and_one_that_reads_nothing_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.5)
    port = free_port()
    large = web.Response(body=b"x" * (64 << 20))

    async def respond() -> web.Response:
        return large

    runner = await serve({"/metrics": respond}, port)
    with ExitStack() as stack:
        silent = stack.enter_context(await connect_silently(port, "127.0.0.1"))
        unread, slow = [stack.enter_context(await connect_silently(port, "127.0.0.1")) for _ in range(2)]
        unread.send(b"GET /metrics HTTP/1.1\r\nHost: operator\r\n\r\n")
        slow.send(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        await wait_for(lambda: not runner.server.connections, "the end of all")
        assert not is_open(silent)
        assert not is_open(slow)
    await runner.cleanup()


async def test_a_connection_ends_with_its_answer() -> None:
    health, port = Health(WorkQueue(1)), free_port()
    runner = await serve(health.routes, port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: operator\r\n\r\n")
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await runner.cleanup()


def test_connections_that_say_nothing_take_few_threads_and_no_answer_from_others() -> None:
    reporter = Reporter("uid")
    port = reporter.serve(0)
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(10 * MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=10) as answer:
                assert b'"jobUID":"uid"' in answer.read()
        wait_until(lambda: threading.active_count() - before <= MAX_CONNECTIONS + 2, "the end of the other threads")


@dataclass
class Attempt:
    """Two pods of one attempt, whose processes wait for storage that does not respond."""

    root: Path
    rendezvous_port: int = field(default_factory=free_port)
    peer_link_port: int = field(default_factory=free_port)
    progress_ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])
    pods: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, index: int) -> "subprocess.Popen[bytes]":
        """Start PID 1 of a pod."""
        spec = FineTuneJobSpec.model_validate(
            {
                "objective": "Chat",
                "model": {"uri": "s3://bucket/model"},
                "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
                "output": {"uri": "s3://bucket/out"},
                "storage": {"endpoint": f"http://{HERE}:{free_port()}"},
                "resources": {"numNodes": 2, "gpusPerNode": 1},
            }
        )
        config = JobConfig(
            namespace="team", name="job", uid="uid-1", config_sha256="c" * 64, spec=spec, attempt=1, first_pod=HERE,
            resolved=Resolved(), dataset=DatasetStatus(),
        )  # fmt: skip
        (self.root / "config.json").write_text(config.model_dump_json(by_alias=True, exclude_none=True))
        (self.root / "token").write_text(TOKEN)
        command = [
            sys.executable, "-m", "finetune_trainer", "train", "--config", str(self.root / "config.json"),
            "--workspace", str(self.root / f"workspace-{index}"), "--port", str(self.progress_ports[index]),
            "--termination-log", str(self.root / f"report-{index}"), "--peer-token", str(self.root / "token"),
            "--rendezvous-port", str(self.rendezvous_port), "--peer-link-port", str(self.peer_link_port),
        ]  # fmt: skip
        own = {"JOB_COMPLETION_INDEX": str(index), ENV_POD_IP: HERE}
        own |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        with (self.root / f"log-{index}").open("wb") as log:
            pod = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
        self.pods.append(pod)
        return pod

    def log(self, index: int) -> str:
        """Return what the pod logged."""
        return (self.root / f"log-{index}").read_text()

    def connect(self) -> socket.socket:
        """Connect to the first pod's PID 1 as soon as it listens."""

        def attempt() -> socket.socket | None:
            try:
                return socket.create_connection((HERE, self.peer_link_port), 30)
            except ConnectionRefusedError:
                return None

        return wait_until(attempt, lambda: self.log(0))

    def uid(self) -> str:
        """Return the job's UID, which `/progress` shows to every client."""

        return str(json.loads(wait_until(lambda: self.ask("progress"), lambda: self.log(0)))["jobUID"])

    def ask(self, path: str) -> str:
        """Return what the first pod answers; empty while it does not listen."""
        try:
            with urllib.request.urlopen(f"http://{HERE}:{self.progress_ports[0]}/{path}", timeout=10) as answer:
                return str(answer.read(), "utf-8")
        except OSError:
            return ""


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    one = Attempt(tmp_path)
    yield one
    for pod in one.pods:
        pod.kill()
        pod.wait(60)


def read_to_the_end(connection: socket.socket) -> bytes:
    found = b""
    try:
        while data := connection.recv(4096):
            found += data
    except ConnectionError:
        pass
    return found


def test_the_uid_of_a_job_opens_no_connection_between_its_pods(attempt: Attempt) -> None:
    """The neighbour has everything that `/progress` shows; it cannot take a pod's place, and not end the attempt."""
    attempt.start(0)
    uid = attempt.uid()
    for proof in ("", f" {FORGED[:32]} {FORGED}"):
        with attempt.connect() as neighbour:
            neighbour.sendall(f"hello {uid}/1 1{proof}\nfailed 1 64\nsmaller 1\n".encode())
            assert b"ok" not in read_to_the_end(neighbour)
    attempt.start(1)
    wait_until(lambda: "started rank 1 of 2" in attempt.log(1), lambda: attempt.log(0) + attempt.log(1))
    with attempt.connect() as neighbour:
        neighbour.sendall(f"hello {uid}/1 1 {FORGED[:32]} {FORGED}\nfailed 1 64\n".encode())
        assert b"ok" not in read_to_the_end(neighbour)
    assert [pod.poll() for pod in attempt.pods] == [None, None], attempt.log(0)
    shown = [attempt.ask("progress"), attempt.ask("metrics"), attempt.log(0), attempt.log(1)]
    assert all(shown)
    assert not [text for text in shown if TOKEN in text]


def test_a_neighbour_in_the_first_pods_place_cannot_end_the_others(attempt: Attempt) -> None:
    with socket.create_server((HERE, attempt.peer_link_port)) as server:
        server.settimeout(60)
        pod = attempt.start(1)
        for text in ("ok\ndone\n", f"nonce {FORGED[:32]}\nok {FORGED}\ndone {FORGED}\nfailed 0 64\n"):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                connection.sendall(text.encode())
                read_to_the_end(connection)
        server.accept()[0].close()
        assert pod.poll() is None, attempt.log(1)
        assert "started rank" not in attempt.log(1)
