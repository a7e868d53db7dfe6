"""The real Prometheus Operator makes the configuration of a real Prometheus from the chart's objects. That Prometheus
scrapes the operator and a trainer, and sends an alert through a real Alertmanager."""

import base64
import gzip
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dashboards
import pytest
import yaml
from chart import CHART
from http_servers import answering
from prometheus import Prometheus, alertmanager
from prometheus import running as running_prometheus
from waiting import wait_until

from finetune_trainer.monitoring.reporter import Reporter

Kubectl = Callable[..., str]
Object = dict[str, Any]
STACK = "stack"
"""The name of the Prometheus object, and the label by which it selects."""
ALERTMANAGER = "alertmanager"
REFUSED = "rows.jsonl: 0 of 5 rows can be trained on"


@pytest.fixture(scope="module")
def prometheus_operator(program: Any, source: Any, install: Any, running: Any, free_port: Any) -> Iterator[Path]:
    """Its log; its definitions are installed."""
    install(source("prometheus-operator") / "example" / "prometheus-operator-crd")
    flags = (f"--web.listen-address=127.0.0.1:{free_port()}", "--feature-gates=StatusForConfigurationResources=true")
    with running([program("prometheus-operator"), *flags]) as log:
        yield log


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    name = f"system-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def release(helm: str, control_plane: Path, prometheus_operator: Path, namespace: str) -> Iterator[str]:
    """The chart, installed as in docs/monitoring.md; its namespace."""
    where = ("--namespace", namespace, "--kubeconfig", str(control_plane))
    values = {"labels.release": STACK, "interval": "1s", "dashboards": "true"}
    settings = [f"--set=monitoring.{name}={value}" for name, value in values.items()]
    command = [helm, "install", "finetune-operator", str(CHART), "--take-ownership", *settings, *where]
    subprocess.run(command, check=True, capture_output=True)
    yield namespace
    subprocess.run([helm, "uninstall", "finetune-operator", *where], check=True, capture_output=True)


def prometheus(namespace: str) -> Object:
    """A Prometheus object that selects what has the label, in every namespace."""
    chosen = {"matchLabels": {"release": STACK}}
    kinds = ("serviceMonitor", "podMonitor", "rule")
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": STACK, "namespace": namespace},
        "spec": {
            "version": "v2.42.0",
            "scrapeInterval": "1s",
            "evaluationInterval": "1s",
            "alerting": {"alertmanagers": [{"name": ALERTMANAGER, "namespace": namespace, "port": "web"}]},
            **{f"{kind}Selector": chosen for kind in kinds},
            **{f"{kind}NamespaceSelector": {} for kind in kinds},
        },
    }


def generated(kubectl: Kubectl, namespace: str, folder: Path) -> Object:
    """Write the operator's rule files into the folder; return its configuration with their place there."""
    secret = ("get", "secret", f"prometheus-{STACK}", "-n", namespace, "--ignore-not-found", "-o", "json")
    rules = ("get", "configmap", f"prometheus-{STACK}-rulefiles-0", "-n", namespace, "--ignore-not-found", "-o", "json")

    def text() -> str:
        found = kubectl(*secret)
        return (
            gzip.decompress(base64.b64decode(json.loads(found)["data"]["prometheus.yaml.gz"])).decode() if found else ""
        )

    wait_until(lambda: "podMonitor/" in text() and "serviceMonitor/" in text(), lambda: f"both monitors: {text()}")
    files = json.loads(wait_until(lambda: kubectl(*rules), "the rules"))["data"]
    for name, content in files.items():
        (folder / name).write_text(content)
    config: Object = yaml.safe_load(text().replace("$(SHARD)", "0"))  # the reloader in the pod replaces it
    assert config["rule_files"] == [f"/etc/prometheus/rules/prometheus-{STACK}-rulefiles-0/*.yaml"]
    config["rule_files"] = [str(folder / name) for name in files]
    return config


def found_at(part: Object, target: str, known: dict[str, str]) -> None:
    """Put a target in the place of the discovery, without which Debian builds its Prometheus."""
    del part["kubernetes_sd_configs"]
    labels = {f"__meta_kubernetes_{name}": value for name, value in known.items()}
    part["static_configs"] = [{"targets": [target], "labels": labels}]


def of_service(service: Object, port: str) -> dict[str, str]:
    """What Prometheus knows of an endpoint of a Service."""
    meta = service["metadata"]
    where = {"namespace": meta["namespace"], "service_name": meta["name"]}
    ports = {f"{kind}_port_name": port for kind in ("endpoint", "endpointslice")}
    return dashboards.described("service", service) | where | ports


def test_a_failed_job_reaches_a_webhook_through_the_charts_objects(
    *,
    release: str,
    kubectl: Kubectl,
    world: Any,
    operator: Any,
    free_port: Any,
    tmp_path: Path,
) -> None:
    received: list[Object] = []
    with ExitStack() as stack:
        hook = stack.enter_context(
            answering("127.0.0.1", 0, lambda _: b"", lambda body: received.append(json.loads(body)))
        )
        alerts = f"127.0.0.1:{free_port()}"
        stack.enter_context(alertmanager(alerts, f"http://127.0.0.1:{hook}/", tmp_path / "alerts"))
        kubectl("apply", "-f", "-", stdin=json.dumps(prometheus(release)))
        (tmp_path / "rules").mkdir()
        config = generated(kubectl, release, tmp_path / "rules")
        monitored, trainers = config["scrape_configs"]
        service = json.loads(kubectl("get", "service", "finetune-operator", "-n", release, "-o", "json"))
        found_at(monitored, f"127.0.0.1:{operator.port}", of_service(service, "metrics"))
        pod = json.loads(kubectl("get", "pod", train(world), "-n", world.namespace, "-o", "json"))
        found_at(trainers, f"127.0.0.1:{serve_trainer(world, stack)}", dashboards.discovered(pod, "progress"))
        (sent,) = config["alerting"]["alertmanagers"]
        found_at(sent, alerts, of_service({"metadata": {"name": ALERTMANAGER, "namespace": release}}, "web"))
        server = stack.enter_context(running_prometheus(yaml.safe_dump(config), tmp_path))
        require_accepted(kubectl, release)
        require_targets(server, world, release)
        require_rules(server)
        fail(world, "broken")
        wait_until(lambda: received, lambda: f"an alert: {server.rules()}")
        (alert,) = received[0]["alerts"]
        assert alert["status"] == "firing"
        expected = {"alertname": "FineTuneJobFailed", "namespace": world.namespace, "name": "broken"}
        assert expected.items() <= alert["labels"].items()
        assert alert["annotations"]["runbook"].startswith("docs/runbooks.md#finetunejobfailed of finetune-operator ")


def train(world: Any) -> str:
    """A job whose trainer runs; its pod."""
    world.create("support-bot")
    pod = world.pass_preflight("support-bot")
    world.run(pod)
    return str(pod.metadata.name)


def serve_trainer(world: Any, stack: ExitStack) -> int:
    """The metrics of a trainer of that job; their port."""
    reporter = Reporter(world.get("support-bot")["metadata"]["uid"])
    reporter.update(metrics={"train_loss": 1.5})
    stack.callback(reporter.close)
    return reporter.serve(0)


def fail(world: Any, name: str) -> None:
    world.create(name)
    pod = world.pod_of(f"{name}-preflight")
    world.run(pod)
    world.end(pod, 65, world.report("Failed", name, message=REFUSED))
    world.wait_phase("Failed", name)


def require_accepted(kubectl: Kubectl, release: str) -> None:
    """The operator's verdict on the ServiceMonitor; it writes none on the other kinds yet."""
    output = "jsonpath={.status.bindings[*].conditions[?(@.type=='Accepted')].status}"
    found = ("get", "servicemonitor", "finetune-operator", "-n", release, "-o", output)
    wait_until(lambda: kubectl(*found) == "True", lambda: kubectl(*found))


def require_targets(server: Prometheus, world: Any, release: str) -> None:
    """Both are found and scraped, and their series name what the dashboards select by."""
    expected = {f"serviceMonitor/{release}/finetune-operator/0", f"podMonitor/{release}/finetune-operator-trainers/0"}
    wait_until(
        lambda: {(one["scrapePool"], one["health"]) for one in server.targets()} == {(one, "up") for one in expected},
        lambda: str(server.targets()),
    )
    of_job = f'finetune_job_info{{namespace="{world.namespace}",name="support-bot"}}'
    wait_until(lambda: server.query(of_job), "the job's series under its own namespace")
    (loss,) = wait_until(lambda: server.query("finetune_trainer_train_loss"), "the trainer's series")
    labels = {"namespace": world.namespace, "name": "support-bot", "attempt": "1"}
    assert labels.items() <= loss["metric"].items()
    assert loss["metric"]["pod"].startswith("support-bot-1-")


def require_rules(server: Prometheus) -> None:
    """Every alert of the chart is evaluated without an error, and none fires."""
    wait_until(lambda: all(rule["health"] == "ok" for rule in server.rules()), lambda: str(server.rules()))
    assert {rule["name"] for rule in server.rules()} == {rule["alert"] for rule in dashboards.rules()}
    assert [alert for rule in server.rules() for alert in rule["alerts"] if alert["state"] == "firing"] == []
