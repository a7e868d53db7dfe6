"""Watched and steered as a platform team does: a real Prometheus scrapes operator and trainer through the API server,
a real fault fires an alert, and the plugin steers."""

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

CHART = Path(__file__).parents[2] / "helm" / "finetune-operator"
OPERATOR = "/api/v1/namespaces/finetune-system/services/finetune-operator:http/proxy/metrics"
LONG = {"maxSteps": 400, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "maxLength": 128}


def config(proxy: str, namespace: str, rules: Path) -> str:
    """Finds the trainers as a PodMonitor does, and reaches all through `kubectl proxy`, on any cluster."""
    labels = [
        {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": target}
        for source, target in [("namespace", "namespace"), ("pod_annotation_finetune_dev_job_name", "name")]
    ]
    through = [
        {
            "source_labels": ["__meta_kubernetes_namespace", "__meta_kubernetes_pod_name"],
            "separator": "/",
            "regex": "(.*)/(.*)",
            "target_label": "__metrics_path__",
            "replacement": "/api/v1/namespaces/$1/pods/$2:8080/proxy/metrics",
        },
        {"target_label": "__address__", "replacement": proxy},
    ]
    found = {
        "role": "pod",
        "api_server": f"http://{proxy}",
        "namespaces": {"names": [namespace]},
        "selectors": [{"role": "pod", "label": "app.kubernetes.io/component=trainer"}],
    }
    running = {"source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"}
    jobs = [
        {
            "job_name": "operator",
            "honor_labels": True,
            "metrics_path": OPERATOR,
            "static_configs": [{"targets": [proxy]}],
        },
        {"job_name": "trainers", "kubernetes_sd_configs": [found], "relabel_configs": [running, *labels, *through]},
    ]
    times = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    return yaml.safe_dump({"global": times, "rule_files": [str(rules)], "scrape_configs": jobs})


@pytest.fixture(scope="module")
def watcher(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[prometheus.Prometheus]:
    """A Prometheus with the chart's alerts, which wait for two seconds and not for minutes."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules = folder / "alerts.yaml"
    rules.write_text(re.sub(r"(?m)^( *for:) .*$", r"\1 2s", (CHART / "alerts.yaml").read_text()))
    proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        address = proxy.stdout.readline().rsplit(maxsplit=1)[-1]
        with prometheus.running(config(address, bench.namespace, rules), folder) as server:
            yield server
    finally:
        proxy.kill()
        proxy.wait()


def finetune(*arguments: str, namespace: str) -> str:
    """The plugin, as kubectl finds it in PATH."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["kubectl", "finetune", *arguments, "-n", namespace]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def value(server: prometheus.Prometheus, expression: str) -> float | None:
    found = server.query(expression)
    return float(found[0]["value"][1]) if found else None


def firing(server: prometheus.Prometheus) -> set[str]:
    return {rule["name"] for rule in server.rules() if rule["state"] == "firing"}


def replicas(count: int) -> None:
    kubectl("scale", "deployment/finetune-operator", "-n", "finetune-system", f"--replicas={count}")


def trainers(job: Job) -> list[Any]:
    return [pod.metadata.uid for pod in job.pods()]


def test_a_job_is_watched_and_steered_and_an_operator_that_is_away_fires_its_alert(
    bench: Bench, watcher: prometheus.Prometheus
) -> None:
    job = bench.apply("watched", hyperparameters=LONG)
    where = f'{{namespace="{bench.namespace}",name="watched"}}'
    job.running_pod()
    wait_for("the trainer's own series", lambda: value(watcher, f"finetune_trainer_step{where}"), state=watcher.targets)
    wait_for("the job's series", lambda: value(watcher, f"finetune_job_train_loss{where}"), state=watcher.targets)
    assert "FineTuneOperatorDown" not in firing(watcher)
    assert "watched" in finetune("list", namespace=bench.namespace)

    finetune("suspend", "watched", namespace=bench.namespace)
    wait_for("no trainer", lambda: not trainers(job), state=job.status)
    finetune("resume", "watched", namespace=bench.namespace)
    resumed = job.running_pod().metadata.uid

    replicas(0)
    try:
        wait_for("the alert", lambda: "FineTuneOperatorDown" in firing(watcher), state=watcher.rules)
        assert trainers(job) == [resumed]
    finally:
        replicas(1)
    wait_for("the end of the alert", lambda: "FineTuneOperatorDown" not in firing(watcher), state=watcher.rules)

    status = job.wait("Complete")
    assert (status["runs"], status.get("failures", 0), status.get("preemptions", 0)) == (2, 0, 0)
    wait_for("the job's end", lambda: value(watcher, f'finetune_job_status_phase{where[:-1]},phase="Succeeded"}}') == 1)
    assert status["artifacts"]["reportUri"] in finetune("report", "watched", namespace=bench.namespace)
    job.delete()
    wait_for("no series of the job", lambda: value(watcher, f"finetune_job_info{where}") is None)
