"""A real API server with its controller manager, once for all integration tests; no node, no kubelet."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from preloaded import shared_folder, shared_python
from waiting import wait_until

ROOT = Path(__file__).parents[2]
CLUSTER_PY = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py")]
CLUSTER = [*CLUSTER_PY, "control-plane"]


@contextmanager
def started_control_plane(folder: str) -> Iterator[Path]:
    """Start one; path of an administrator's kubeconfig; the FineTuneJob CRD is installed."""
    command = [*CLUSTER, "up", "--dir", folder, "--controller-manager"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        pytest.fail(f"no control plane on this machine: {run.stderr}")
    try:
        kubeconfig = Path(run.stdout.strip())
        _install_crd(kubeconfig)
        yield kubeconfig
    finally:
        subprocess.run([*CLUSTER, "down", "--dir", folder], check=True, capture_output=True)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The control plane of all tests: path of an administrator's kubeconfig."""
    with started_control_plane(str(tmp_path_factory.mktemp("control-plane"))) as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of one of the cluster's Go programs, built if it is missing."""

    def path(name: str) -> str:
        done = subprocess.run([*CLUSTER_PY, "program", name], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return path


@pytest.fixture(scope="session")
def health(program: Callable[[str], str]) -> Callable[..., list[str]]:
    """What kstatus says of objects, or Flux by the health expressions of a Kustomization; their own code says it."""
    command = program("health")

    def judge(objects: list[dict[str, Any]], expressions: dict[str, str] | None = None) -> list[str]:
        asked = json.dumps([{"object": one, "expressions": expressions} for one in objects])
        done = subprocess.run([command], input=asked, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [one["status"] for one in json.loads(done.stdout)]

    return judge


@pytest.fixture(scope="session")
def trainer_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A stand-in for `sys.executable` whose training libraries are loaded already."""
    with shared_python(shared_folder(tmp_path_factory.getbasetemp(), "trainer-python")) as program:
        yield program


def _install_crd(kubeconfig: Path) -> None:
    from kubernetes import client, config  # here: the trainings need no API server, and it takes two seconds

    crd = yaml.load((ROOT / "crds" / "finetunejobs.yaml").read_text(), yaml.CSafeLoader)
    name = crd["metadata"]["name"]
    with config.new_client_from_config(str(kubeconfig)) as api:
        extensions = client.ApiextensionsV1Api(api)
        extensions.create_custom_resource_definition(crd)

        def is_established() -> bool:
            status = extensions.read_custom_resource_definition_status(name).status
            return any(one.type == "Established" and one.status == "True" for one in status.conditions or [])

        wait_until(is_established, f"{name} is not established")


@pytest.fixture(scope="session")
def tool_path() -> str:
    """A PATH with kubectl and helm on it, first those that the test cluster built."""
    script = 'eval "$("$0" "$1" env)"; printf %s "$PATH"'
    command = ["bash", "-euc", script, *CLUSTER_PY]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout


@pytest.fixture(scope="session")
def helm(tool_path: str) -> str:
    """The helm program."""
    found = shutil.which("helm", path=tool_path)
    assert found
    return found


@pytest.fixture(scope="session")
def kubectl(control_plane: Path, tool_path: str) -> Callable[..., str]:
    """The kubectl of this control plane as an administrator; what it prints."""

    def call(*arguments: str, stdin: str | None = None) -> str:
        command = ["kubectl", "--kubeconfig", str(control_plane), *arguments]
        env = {**os.environ, "PATH": tool_path}
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    return call


LONGEST_FIRST = (
    "test_absence", "test_causes", "test_survival", "test_api_faults", "test_flow", "test_nodes", "test_deadlines",
    "test_release", "test_scale", "test_commands",
    "test_memory", "test_ranks", "test_separate_merge", "test_resume", "test_preflight_pod", "test_gguf",
    "test_verdict", "test_objectives_on_ranks", "test_preference_jobs", "test_preferences", "test_chat",
    "test_correct_answers", "test_distillation_ranks", "test_packing", "test_merge_command", "test_adapter_settings",
    "test_local_run", "test_experts", "test_architectures", "test_models", "test_train", "test_s3_faults",
    "test_trainer_pod", "test_gate",
)  # fmt: skip
"""The longest files. Begun last, one of them would keep one process busy while the other has nothing left to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
