"""Watched and steered as a platform team does: a real Prometheus scrapes operator and trainer through the API server,
a real fault fires an alert, and the plugin steers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus
import pytest
import yaml
from user import Bench, Job, kubectl, wait_for

pytestmark = [pytest.mark.alone, pytest.mark.nightly]

CHART = Path(__file__).parents[2] / "helm" / "finetune-operator"
OPERATOR = "/api/v1/namespaces/finetune-system/services/finetune-operator:metrics/proxy/metrics"
TRAINER = "/api/v1/namespaces/{}/pods/{}:8080/proxy/metrics"
LONG = {"maxSteps": 400, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}


class Watcher(prometheus.Prometheus):
    """A Prometheus that reaches operator and trainers through `kubectl proxy`, on any cluster."""

    def __init__(self, server: prometheus.Prometheus, proxy: str, trainers: Path) -> None:
        self.url = server.url
        self._proxy, self._trainers = proxy, trainers

    def find_trainers(self, job: Job) -> None:
        """Names the pods of a job as the PodMonitor does: Debian's Prometheus cannot look for pods."""
        found = [
            {
                "targets": [self._proxy],
                "labels": {
                    "namespace": job.namespace,
                    "name": job.name,
                    "__metrics_path__": TRAINER.format(job.namespace, pod.metadata.name),
                },
            }
            for pod in job.pods()
        ]
        self._trainers.write_text(json.dumps(found))

    def value(self, expression: str) -> float | None:
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def is_firing(self, alert: str) -> bool:
        (state,) = [rule["state"] for rule in self.rules() if rule["name"] == alert]
        return bool(state == "firing")


def config(proxy: str, rules: Path, trainers: Path) -> str:
    jobs = [
        {
            "job_name": "operator",
            "honor_labels": True,
            "metrics_path": OPERATOR,
            "static_configs": [{"targets": [proxy]}],
        },
        {"job_name": "trainers", "file_sd_configs": [{"files": [str(trainers)], "refresh_interval": "2s"}]},
    ]
    times = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    return yaml.safe_dump({"global": times, "rule_files": [str(rules)], "scrape_configs": jobs})


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    """It has the chart's alerts, which wait for two seconds and not for minutes."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules, trainers = folder / "alerts.yaml", folder / "trainers.json"
    rules.write_text(re.sub(r"(?m)^( *for:) .*$", r"\1 2s", (CHART / "alerts.yaml").read_text()))
    trainers.write_text("[]")
    proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        address = proxy.stdout.readline().rsplit(maxsplit=1)[-1]
        with prometheus.running(config(address, rules, trainers), folder) as server:
            yield Watcher(server, address, trainers)
    finally:
        proxy.kill()
        proxy.communicate()


def finetune(*arguments: str, namespace: str) -> str:
    """The plugin, as kubectl finds it in PATH."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["kubectl", "finetune", *arguments, "-n", namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def replicas(count: int) -> None:
    kubectl("scale", "deployment/finetune-operator", "-n", "finetune-system", f"--replicas={count}")


def trainers(job: Job) -> list[Any]:
    return [pod.metadata.uid for pod in job.pods()]


def test_a_job_is_watched_and_steered_and_an_operator_that_is_away_fires_its_alert(
    bench: Bench, watcher: Watcher
) -> None:
    job = bench.apply("watched", hyperparameters=LONG)
    where = f'{{namespace="{bench.namespace}",name="watched"}}'
    job.running_pod()
    watcher.find_trainers(job)
    wait_for("the trainer's own series", lambda: watcher.value(f"finetune_trainer_step{where}"), state=watcher.targets)
    wait_for("the job's series", lambda: watcher.value(f"finetune_job_train_loss{where}"), state=watcher.targets)
    assert not watcher.is_firing("FineTuneOperatorDown")
    assert "watched" in finetune("list", namespace=bench.namespace)

    finetune("suspend", "watched", namespace=bench.namespace)
    wait_for("no trainer", lambda: not trainers(job), state=job.status)
    finetune("resume", "watched", namespace=bench.namespace)
    resumed = job.running_pod().metadata.uid

    replicas(0)
    try:
        wait_for("the alert", lambda: watcher.is_firing("FineTuneOperatorDown"), state=watcher.rules)
        assert trainers(job) == [resumed]
    finally:
        replicas(1)
    wait_for("the end of the alert", lambda: not watcher.is_firing("FineTuneOperatorDown"), state=watcher.rules)

    status = job.wait("Complete")
    assert (status["runs"], status.get("failures", 0), status.get("preemptions", 0)) == (2, 0, 0)
    wait_for("the job's end", lambda: watcher.value(f'finetune_job_status_phase{where[:-1]},phase="Succeeded"}}') == 1)
    assert status["artifacts"]["reportURI"] in finetune("report", "watched", namespace=bench.namespace)
    job.delete()
    wait_for("no series of the job", lambda: watcher.value(f"finetune_job_info{where}") is None)
