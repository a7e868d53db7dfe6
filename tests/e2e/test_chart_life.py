"""The release's life with a job running: an upgrade from the version before, an uninstall and a new install.

What was deployed before is put back at the end.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed_chart import CHART, NAMESPACE, RELEASE, Chart, helm, name_of, operators
from user import Bench, Job, kubectl, wait_for

pytestmark = [pytest.mark.alone, pytest.mark.nightly]

BEFORE = "0.0.1"
LONG = {"maxSteps": 1000, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}


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
    bench: Bench, chart: Chart, chart_before: Path, tmp_path: Path
) -> None:
    chart.install(tmp_path, chart_before)
    assert version_of(f"deployment/{RELEASE}").endswith(BEFORE)
    job = bench.apply("outlives", hyperparameters=LONG)
    trainer = job.running_pod()

    chart.install(tmp_path, podAnnotations={"example.com/restarted": "now"}, logLevel="DEBUG")
    assert not version_of(f"deployment/{RELEASE}").endswith(BEFORE)
    assert version_of("crd/finetunejobs.finetune.dev") == version_of(f"deployment/{RELEASE}")

    helm("uninstall", RELEASE, "--wait", "--timeout", "120s")
    wait_for("no operator", lambda: not operators(), state=lambda: list(map(name_of, operators())))
    assert kubectl("get", f"clusterrolebinding/{RELEASE}", check=False).returncode != 0
    assert job.status()["phase"] == "Training"
    assert [(pod.metadata.uid, pod.status.phase) for pod in job.pods()] == [(trainer.metadata.uid, "Running")]

    chart.install(tmp_path)
    undisturbed(job, trainer)
