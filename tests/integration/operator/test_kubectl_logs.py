"""`kubectl finetune logs` through the real API server; the test plays the kubelet that has them."""

import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from http_servers import QuietHandler

from kubectl_finetune.__main__ import main


class Kubelet(ThreadingHTTPServer):
    """Serves the logs of pods; one that is followed stays open until the pod is let go."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.lines: dict[str, list[str]] = {}
        self.ended: set[str] = set()
        super().__init__(("127.0.0.1", 0), Log)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)


class Log(QuietHandler):
    server: Kubelet

    def do_GET(self) -> None:
        pod = self.path.partition("?")[0].split("/")[3]
        self.send_response(200)
        self.end_headers()
        told = 0
        while True:
            is_last = "follow=true" not in self.path or pod in self.server.ended
            for line in self.server.lines.get(pod, [])[told:]:
                self.wfile.write(f"{line}\n".encode())
                told += 1
            if is_last:
                return
            self.wfile.flush()
            time.sleep(0.05)


@pytest.fixture
def kubelet(world: Any, tmp_path: Path) -> Iterator[Kubelet]:
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=node-1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    server = Kubelet(certificate, key)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    world.add_node()
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_address[1]}},
    }
    world.core.patch_node_status(world.node, {"status": status})
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def logs(
    control_plane: Path, world: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> Callable[..., tuple[str, str]]:
    def call(*options: str) -> tuple[str, str]:
        command = ["kubectl-finetune", "--kubeconfig", str(control_plane), "logs", "one", "-n", world.namespace]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        found = capfd.readouterr()
        assert ended.value.code == 0, found
        return found.out, found.err

    return call


def test_logs_are_those_of_the_newest_pod_or_of_preflight(
    world: Any, operator: Any, kubelet: Kubelet, logs: Callable[..., tuple[str, str]]
) -> None:
    world.create()
    preflight = world.pod_of("one-preflight")
    world.bind(preflight)
    kubelet.lines[preflight.metadata.name] = ["checked 100 rows"]
    trainer = world.pass_preflight()
    world.bind(trainer)
    kubelet.lines[trainer.metadata.name] = ["step 1", "step 2"]
    world.run(trainer)
    world.wait_phase("Training")
    assert logs()[0] == "step 1\nstep 2\n"
    assert logs("--preflight")[0] == "checked 100 rows\n"


def test_following_continues_with_the_next_run_until_the_job_ends(
    world: Any, operator: Any, kubelet: Kubelet, logs: Callable[..., tuple[str, str]]
) -> None:
    world.create()
    seen: list[str] = []

    def live() -> None:
        first = world.pass_preflight()
        world.bind(first)
        kubelet.lines[first.metadata.name] = ["first run"]
        world.run(first)
        world.wait_phase("Training")
        world.end(first, 69, world.report("Failed"))
        kubelet.ended.add(first.metadata.name)
        second = world.pod_of("one-1")
        world.bind(second)
        kubelet.lines[second.metadata.name] = ["second run"]
        world.run(second)
        world.wait_phase("Training")
        world.end(second, 0, world.published())
        kubelet.ended.add(second.metadata.name)
        seen.extend([first.metadata.name, second.metadata.name])

    user = threading.Thread(target=live)
    user.start()
    out, err = logs("-f")
    user.join()
    assert out == "first run\nsecond run\n"
    assert [line for line in err.splitlines() if line.startswith("---")] == [f"--- pod {name}" for name in seen]
