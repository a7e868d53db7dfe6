"""The release's life with a job running: an upgrade from the version before, an uninstall and a new install.

What was deployed before is put back at the end.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from user import Bench, Job, kubectl, wait_for

pytestmark = [pytest.mark.alone, pytest.mark.nightly]

CHART = Path(__file__).parents[2] / "helm" / "finetune-operator"
NAMESPACE, RELEASE = "finetune-system", "finetune-operator"
BEFORE = "0.0.1"
LONG = {"maxSteps": 1000, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}


class Release:
    """The deployed release, and the values that it was deployed with."""

    def __init__(self) -> None:
        self.values = yaml.safe_load(helm("get", "values", RELEASE, "--output", "yaml")) or {}

    def install(self, folder: Path, chart: Path = CHART, **values: Any) -> None:
        """Installs or upgrades it, until another operator than before is ready and alone."""
        before = {pod.metadata.uid for pod in operators()}
        file = folder / "values.yaml"
        file.write_text(yaml.safe_dump(self.values | values), encoding="utf-8")
        helm("upgrade", "--install", RELEASE, str(chart), "--values", str(file), "--wait", "--timeout", "180s")
        wait_for("another operator, alone", lambda: self._alone(before), state=lambda: list(map(name_of, operators())))

    def _alone(self, before: set[str]) -> list[Any]:
        pods = operators()
        ready = [pod for pod in pods if all(one.ready for one in pod.status.container_statuses or [])]
        return pods if len(pods) == len(ready) == 1 and pods[0].metadata.uid not in before else []


def helm(*arguments: str) -> str:
    command = ["helm", *arguments, "--namespace", NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def operators() -> list[Any]:
    selector = "app.kubernetes.io/component=operator"
    return list(client.CoreV1Api().list_namespaced_pod(NAMESPACE, label_selector=selector).items)


def name_of(pod: Any) -> str:
    return str(pod.metadata.name)


@pytest.fixture(scope="module")
def release(_kubeconfig: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    found = Release()
    yield found
    folder = tmp_path_factory.mktemp("restored")
    (folder / "values.yaml").write_text(yaml.safe_dump(found.values), encoding="utf-8")
    values = ("--values", str(folder / "values.yaml"))
    helm("upgrade", "--install", RELEASE, str(CHART), *values, "--wait", "--timeout", "180s")


@pytest.fixture
def chart_before(tmp_path: Path) -> Path:
    """The chart under an earlier version, as a user has it before an upgrade."""
    folder = tmp_path / "chart"
    shutil.copytree(CHART, folder)
    about = yaml.safe_load((folder / "Chart.yaml").read_text(encoding="utf-8"))
    (folder / "Chart.yaml").write_text(
        yaml.safe_dump(about | {"version": BEFORE, "appVersion": BEFORE}), encoding="utf-8"
    )
    return folder


def undisturbed(job: Job, trainer: Any) -> None:
    """The job comes to its end, and this pod alone has run it."""
    status = job.wait("Complete")
    (run,) = status["history"]
    assert (run["podUID"], run["result"]) == (trainer.metadata.uid, "Succeeded")
    counters = ("attempts", "runs", "failures", "preemptions")
    assert [status.get(name, 0) for name in counters] == [1, 1, 0, 0]


def version_of(kind: str) -> str:
    path = "jsonpath={.metadata.labels.helm\\.sh/chart}"
    return kubectl("get", kind, "-n", NAMESPACE, "-o", path).stdout


def test_a_running_job_outlives_an_upgrade_an_uninstall_and_a_new_install(
    bench: Bench, release: Release, chart_before: Path, tmp_path: Path
) -> None:
    release.install(tmp_path, chart_before)
    assert version_of(f"deployment/{RELEASE}").endswith(BEFORE)
    job = bench.apply("outlives", hyperparameters=LONG)
    trainer = job.running_pod()

    release.install(tmp_path, podAnnotations={"example.com/restarted": "now"}, logLevel="DEBUG")
    assert not version_of(f"deployment/{RELEASE}").endswith(BEFORE)
    assert version_of("crd/finetunejobs.finetune.dev") == version_of(f"deployment/{RELEASE}")

    helm("uninstall", RELEASE, "--wait", "--timeout", "120s")
    wait_for("no operator", lambda: not operators(), state=lambda: list(map(name_of, operators())))
    assert kubectl("get", f"clusterrolebinding/{RELEASE}", check=False).returncode != 0
    assert job.status()["phase"] == "Training"
    assert [(pod.metadata.uid, pod.status.phase) for pod in job.pods()] == [(trainer.metadata.uid, "Running")]

    release.install(tmp_path)
    undisturbed(job, trainer)
