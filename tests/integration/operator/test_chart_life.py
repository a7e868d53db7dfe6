"""What is left of FineTuneJobs when the chart goes: all of them, or none, as `crds.keep` says."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
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


def test_jobs_are_deleted_with_the_chart_if_requested(
    world: Any, release: Any, wait: Any, kubectl: Callable[..., str]
) -> None:
    release("install", "first", str(CHART), "--take-ownership", "--set", "crds.keep=false")
    world.create()
    release("uninstall", "first")
    wait(lambda: not is_there(world) and not kubectl("get", CRD, "--ignore-not-found"), "no CRD")
