"""The Prometheus Operator and the Prometheus that it makes run as pods of a real cluster. That Prometheus finds the
operator and a trainer by the chart's objects and its own discovery, and the alert of a failed job fires in it."""

import json
import subprocess
import sys
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dashboards
import pytest
import yaml
from deployed_chart import NAMESPACE, RELEASE, Chart, helm
from prometheus import Prometheus
from user import Bench, Job, kubectl, wait_for

Object = dict[str, Any]
CLUSTER_PY = [sys.executable, str(Path(__file__).parents[2] / "cluster" / "cluster.py")]
STACK = "stack"
"""The name of the Prometheus object, and the label by which it selects."""
CHART = str(Path(__file__).parents[3] / "helm" / "finetune-operator")
LONG = {"maxSteps": 2000, "perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 1, "maxLength": 128}
OFF = {"operator": False, "trainers": False, "alerts": False}
FEATURE = "--feature-gates=StatusForConfigurationResources=true"


def cluster(*arguments: str) -> str:
    """What a command of tests/cluster prints."""
    return subprocess.run([*CLUSTER_PY, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def manifests(folder: Path, namespace: str) -> Iterator[Object]:
    """The objects of a folder, in that namespace."""
    for path in sorted(folder.glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            if not one["kind"].startswith("ClusterRole"):
                one["metadata"]["namespace"] = namespace
            for subject in one.get("subjects", ()):
                subject["namespace"] = namespace
            if one["kind"] == "Deployment":
                run_here(one["spec"]["template"]["spec"])
            if one["kind"] not in {"ServiceMonitor", "Prometheus"}:
                yield one


def run_here(pod: Object) -> None:
    """Let the pod of the Prometheus Operator, and those that it makes, have the images of this cluster."""
    (container,) = pod["containers"]
    container["image"] = cluster("program-image", "prometheus-operator", "/bin/operator")
    reloader = cluster("program-image", "prometheus-config-reloader", "/bin/prometheus-config-reloader")
    container["args"] = [f"--prometheus-config-reloader={reloader}", FEATURE]


@pytest.fixture(scope="module")
def stack(chart: Chart) -> Iterator[str]:
    """A namespace with the Prometheus Operator, installed by the manifests of its own module. The chart is put back
    after its definitions are gone, which would have it create objects of them."""
    module = Path(cluster("source", "prometheus-operator"))
    name = f"monitoring-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    definitions = ("-f", str(module / "example" / "prometheus-operator-crd"))
    rights = module / "example" / "rbac"
    objects = [one for part in ("prometheus-operator", "prometheus") for one in manifests(rights / part, name)]
    text = yaml.safe_dump_all(objects)
    try:
        kubectl("apply", "--server-side", *definitions)
        kubectl("apply", "--server-side", "-f", "-", stdin=text)
        kubectl("rollout", "status", "deployment/prometheus-operator", "-n", name, "--timeout=300s")
        yield name
        kubectl("delete", "prometheus", "--all", "-n", name)
    finally:
        kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=text)
        kubectl("delete", "--ignore-not-found", "--timeout=120s", *definitions)
        kubectl("delete", "namespace", name, "--timeout=120s")


class Server(Prometheus):
    """The Prometheus of the pod, through the API server."""

    def __init__(self, namespace: str) -> None:
        self._proxy = f"/api/v1/namespaces/{namespace}/services/prometheus-operated:web/proxy/api/v1"

    def _get(self, path: str, **parameters: object) -> Any:
        query = urllib.parse.urlencode(parameters)
        return json.loads(kubectl("get", "--raw", f"{self._proxy}/{path}?{query}").stdout)["data"]


@pytest.fixture(scope="module")
def server(stack: str) -> Server:
    """A Prometheus that selects what has the label, in every namespace, once its pod is ready."""
    chosen = {"matchLabels": {"release": STACK}}
    kinds = ("serviceMonitor", "podMonitor", "rule")
    spec = {
        "image": cluster("program-image", "prometheus", "/bin/prometheus"),
        "version": "v3.16.0",
        "serviceAccountName": "prometheus",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 2000},
        "scrapeInterval": "1s",
        "evaluationInterval": "1s",
        **{f"{kind}Selector": chosen for kind in kinds},
        **{f"{kind}NamespaceSelector": {} for kind in kinds},
    }
    meta = {"name": STACK, "namespace": stack}
    found = {"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": meta, "spec": spec}
    kubectl("apply", "-f", "-", stdin=json.dumps(found))
    available = ("prometheus", STACK, "-n", stack, "-o", "jsonpath={.status.availableReplicas}")
    wait_for(
        "the pod of Prometheus",
        lambda: kubectl("get", *available).stdout == "1",
        state=lambda: kubectl("describe", "pods", "-n", stack).stdout,
    )
    return Server(stack)


@pytest.fixture(scope="module")
def monitored(server: Server, chart: Chart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The deployed chart with its objects for the Prometheus Operator, by the command of docs/monitoring.md."""
    settings = [f"--set=monitoring.{one}" for one in (f"labels.release={STACK}", "interval=1s")]
    helm("upgrade", RELEASE, CHART, "--reset-then-reuse-values", *settings)
    yield server
    chart.put_back(tmp_path_factory.mktemp("values"), monitoring=OFF)  # helm removes no kind that is gone


def require_targets(server: Prometheus, job: Job) -> None:
    """The operator and the trainer are found and scraped, and their series name what the dashboards select by."""
    of_operator, of_trainer = f"serviceMonitor/{NAMESPACE}/{RELEASE}/0", f"podMonitor/{NAMESPACE}/{RELEASE}-trainers/0"
    labels = {"namespace": job.namespace, "name": job.name, "attempt": "1"}

    def found() -> list[tuple[str, str]]:
        own = [
            one
            for one in server.targets()
            if one["scrapePool"] == of_operator or labels.items() <= one["labels"].items()
        ]
        return sorted((one["scrapePool"], one["health"]) for one in own)

    wait_for("both targets", lambda: found() == [(of_trainer, "up"), (of_operator, "up")], state=server.targets)
    selected = f'{{namespace="{job.namespace}",name="{job.name}"}}'
    wait_for("the job's series under its own namespace", lambda: server.query(f"finetune_job_info{selected}"))
    (loss,) = wait_for("the trainer's series", lambda: server.query(f"finetune_trainer_train_loss{selected}"))
    assert loss["metric"]["pod"] == job.running_pod().metadata.name


def require_alert(server: Prometheus, job: Job) -> None:
    """Every alert of the chart is evaluated without an error, and that of the failed job fires."""
    expected = {"alertname": "FineTuneJobFailed", "namespace": job.namespace, "name": job.name}

    def firing() -> list[Object]:
        alerts = [alert for rule in server.rules() for alert in rule["alerts"] if alert["state"] == "firing"]
        return [one for one in alerts if expected.items() <= one["labels"].items()]

    (alert,) = wait_for("the alert", firing, state=server.rules)
    assert alert["annotations"]["runbook"].startswith(f"docs/runbooks.md#finetunejobfailed of {RELEASE} ")
    assert {rule["name"] for rule in server.rules()} == {rule["alert"] for rule in dashboards.rules()}
    assert {rule["health"] for rule in server.rules()} == {"ok"}


def test_a_prometheus_of_the_prometheus_operator_scrapes_operator_and_trainer_and_a_failed_job_fires(
    monitored: Prometheus, bench: Bench
) -> None:
    trained = bench.apply("watched", hyperparameters=LONG, evaluation={"steps": 1000})
    failed = bench.apply("broken", dataset={"train": {"uri": bench.uri("missing.jsonl")}, "validationSplitPercent": 10})
    trained.running_pod()
    require_targets(monitored, trained)
    failed.wait("Failed")
    require_alert(monitored, failed)
