"""Controllers of other projects as processes, against the API server of the integration tests: there is no node, the
test plays the kubelet. Their definitions come from their Go modules."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kserve_world import KServe
from other_tests import load_tests
from waiting import wait_until

_control_plane = load_tests("integration/conftest.py")
_operator = load_tests("integration/operator/conftest.py")
CLUSTER_PY = _control_plane.CLUSTER_PY
World = _operator.World
control_plane = _control_plane.control_plane
program = _control_plane.program
tool_path = _control_plane.tool_path
helm = _control_plane.helm
kubectl = _control_plane.kubectl
access = _operator.access
world = _operator.world
operator = _operator.operator
operator_in = _operator.operator_in
operator_python = _operator.operator_python
operator_with = _operator.operator_with


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """vLLM, which the other tests of this folder need, is not needed here."""


Process = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def spec() -> dict[str, object]:
    """The spec of a job that the operator accepts."""
    return dict(_operator.SPEC)


@pytest.fixture(scope="session")
def source() -> Callable[[str], Path]:
    """The folder with the source of a program's module."""

    def folder(name: str) -> Path:
        command = [*_control_plane.CLUSTER_PY, "source", name]
        return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())

    return folder


@pytest.fixture(scope="session")
def other_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A second cluster: path of an administrator's kubeconfig."""
    with _control_plane.started_control_plane(str(tmp_path_factory.mktemp("other"))) as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def install(kubectl: Callable[..., str]) -> Callable[..., None]:
    """Create the definitions in a folder or a file, with options of kubectl, and wait until they are served."""

    def create(path: Path, *options: str) -> None:
        names = kubectl("apply", "--server-side", "-o", "name", "-f", str(path), *options).split()

        def is_served(definition: Any) -> bool:
            states = definition.get("status", {}).get("conditions") or []
            return any((one["type"], one["status"]) == ("Established", "True") for one in states)

        def are_served() -> bool:  # `kubectl wait` fails for a definition without conditions, as each is at first
            found = json.loads(kubectl("get", "-o", "json", *names, *options))
            return all(map(is_served, found.get("items", [found])))

        wait_until(are_served, f"{path} is not served")

    return create


@pytest.fixture(scope="session")
def running(control_plane: Path, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """Run a controller as an administrator until the block ends; its log."""

    @contextmanager
    def run(command: list[str], **environment: str) -> Iterator[Path]:
        log = tmp_path_factory.mktemp("controller") / "log"
        env = os.environ | {"KUBECONFIG": str(control_plane)} | environment
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=log.parent)
        try:
            yield log
            assert process.poll() is None, f"{command[0]} has ended: {log.read_text()[-3000:]}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return run


@pytest.fixture(scope="module")
def operator_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Any]]:
    """Run the operator for all namespaces of a cluster, with its documented rights, during the tests of a file."""
    started: list[Any] = []

    def start(kubeconfig: Path) -> Any:
        folder = tmp_path_factory.mktemp("operator")
        started.append(_operator.Operator(_operator.Access(kubeconfig, folder), "", folder))
        return started[-1].start()

    yield start
    for one in started:
        one.kill()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of 127.0.0.1 on which nothing listens."""

    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as free:
            return int(free.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def kserve(source: Any, kubectl: Any) -> KServe:
    """KServe with its own configuration, which its controllers share."""
    found = KServe(source("llmisvc"), kubectl)
    found.configure()
    return found
