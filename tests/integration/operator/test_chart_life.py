"""What is left of FineTuneJobs when the chart goes: all of them, or none, as `crds.keep` says."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, ROOT
from kubernetes.client.exceptions import ApiException

CRD = "crd/finetunejobs.finetune.dev"


@pytest.fixture
def release(helm: str, control_plane: Path, kubectl: Callable[..., str]) -> Iterator[Callable[..., None]]:
    """helm in a namespace of its own. The CRD, which all tests share, is there again at the end."""
    namespace = f"system-{uuid.uuid4().hex[:6]}"

    def run(*words: str) -> None:
        where = ("--namespace", namespace, "--create-namespace", "--kubeconfig", str(control_plane))
        where = where if words[0] == "install" else (*where[:2], *where[3:])
        done = subprocess.run([helm, *words, *where], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    yield run
    if not kubectl("get", CRD, "--ignore-not-found"):
        kubectl("create", "-f", str(ROOT / "crds" / "finetunejobs.yaml"))
        # `kubectl wait` fails on an object that has no conditions yet.
        kubectl("wait", CRD, "--for=jsonpath={.status.acceptedNames.kind}=FineTuneJob", "--timeout=30s")
        kubectl("wait", CRD, "--for=condition=Established", "--timeout=30s")
    kubectl("delete", "namespace", namespace, "--ignore-not-found", "--wait=false")


def is_there(world: Any) -> bool:
    try:
        return bool(world.get())
    except ApiException as gone:
        if gone.status != 404:
            raise
        return False


def test_an_uninstalled_chart_leaves_every_job_and_is_installed_again_over_them(world: Any, release: Any) -> None:
    release("install", "first", str(CHART), "--take-ownership")
    uid = world.create()["metadata"]["uid"]
    release("uninstall", "first")
    assert world.get()["metadata"]["uid"] == uid
    release("install", "first", str(CHART))
    assert world.get()["metadata"]["uid"] == uid
    release("uninstall", "first")
    with pytest.raises(AssertionError, match="ownership"):
        release("install", "another", str(CHART))
    release("install", "another", str(CHART), "--take-ownership")
    assert world.get()["metadata"]["uid"] == uid
    release("uninstall", "another")


def test_jobs_are_deleted_with_the_chart_if_requested(
    world: Any, release: Any, wait: Any, kubectl: Callable[..., str]
) -> None:
    release("install", "first", str(CHART), "--take-ownership", "--set", "crds.keep=false")
    world.create()
    release("uninstall", "first")
    wait(lambda: not is_there(world) and not kubectl("get", CRD, "--ignore-not-found"), "no CRD")


def test_an_umbrella_chart_is_installed_and_upgraded_with_the_values_of_its_dependency(
    world: Any, release: Any, helm: str, kubectl: Callable[..., str], tmp_path: Path
) -> None:
    dependency = {"name": "finetune-operator", "version": ">=0.0.0-0", "repository": f"file://{CHART}"}
    chart = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
    subprocess.run([helm, "dependency", "update", str(tmp_path), "--skip-refresh"], capture_output=True, check=True)
    release("install", "platform", str(tmp_path), "--take-ownership")
    uid = world.create()["metadata"]["uid"]
    release("upgrade", "platform", str(tmp_path), "--set", "finetune-operator.replicas=2")
    chosen = ("-A", "-l", "app.kubernetes.io/instance=platform", "-o", "jsonpath={.items[*].spec.replicas}")
    assert kubectl("get", "deployments", *chosen) == "2"
    release("uninstall", "platform")
    assert world.get()["metadata"]["uid"] == uid
