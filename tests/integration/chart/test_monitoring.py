"""What the chart gives to a monitoring stack: by value, and only where the cluster knows the kinds."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, render

from finetune_api import names
from finetune_api.names import Component
from finetune_operator.manifests import jobs as manifests

ROOT = Path(__file__).parents[3]
KINDS = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
UP = "finetune_operator_build_info"
HAS_OPERATOR = ("--api-versions", "monitoring.coreos.com/v1")


def one(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def test_a_cluster_without_the_prometheus_operator_gets_none_of_its_kinds(helm: str) -> None:
    assert {document["kind"] for document in render(helm)} & {*KINDS, "ConfigMap"} == set()
    assert {document["kind"] for document in render(helm, *HAS_OPERATOR)} >= KINDS


@pytest.mark.parametrize(
    ("value", "kind"), [("operator", "ServiceMonitor"), ("trainers", "PodMonitor"), ("alerts", "PrometheusRule")]
)
def test_each_of_them_can_be_left_out_and_labelled(helm: str, value: str, kind: str) -> None:
    kinds = {document["kind"] for document in render(helm, *HAS_OPERATOR, "--set", f"monitoring.{value}=false")}
    assert kinds & KINDS == KINDS - {kind}
    labelled = one(render(helm, *HAS_OPERATOR, "--set", "monitoring.labels.release=stack"), kind)
    assert labelled["metadata"]["labels"]["release"] == "stack"


def test_the_service_monitor_finds_the_service_and_keeps_the_jobs_namespaces(helm: str) -> None:
    documents = render(helm, *HAS_OPERATOR, "--set", "monitoring.scrapeAnnotations=true")
    monitor = one(documents, "ServiceMonitor")["spec"]
    chosen = monitor["selector"]["matchLabels"].items()
    services = [document for document in documents if document["kind"] == "Service"]
    (found,) = [service for service in services if chosen <= service["metadata"]["labels"].items()]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in found["spec"]["ports"]}
    assert endpoint["honorLabels"]


def test_the_pod_monitor_finds_trainers_and_names_their_job(helm: str, trainer_template: dict[str, Any]) -> None:
    monitor = one(render(helm, *HAS_OPERATOR), "PodMonitor")["spec"]
    labels = trainer_template["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["namespaceSelector"] == {"any": True}
    (endpoint,) = monitor["podMetricsEndpoints"]
    (container,) = trainer_template["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
    (name, attempt) = (rule["sourceLabels"][0] for rule in endpoint["relabelings"])
    assert name == f"__meta_kubernetes_pod_annotation_{as_label(names.ANNOTATION_JOB_NAME)}"
    assert attempt == f"__meta_kubernetes_pod_label_{as_label(names.LABEL_ATTEMPT)}"
    few = one(render(helm, *HAS_OPERATOR, "--set", "watchNamespaces={a,b}"), "PodMonitor")["spec"]
    assert few["namespaceSelector"] == {"matchNames": ["a", "b"]}


def as_label(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


@pytest.fixture
def trainer_template(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = manifests.build_attempt(*job, "registry.example/trainer:1", 1).job["spec"]["template"]
    assert found["metadata"]["labels"][names.LABEL_COMPONENT] == Component.TRAINER
    assert names.ANNOTATION_JOB_NAME in found["metadata"]["annotations"]
    return found


@pytest.fixture
def job() -> Any:
    from finetune_operator.kube.objects import FineTuneJob
    from finetune_operator.settings import Settings

    meta = {"namespace": "team", "name": "one", "uid": "uid", "resourceVersion": "1", "generation": 1}
    example = yaml.safe_load((ROOT / "crds" / "examples" / "demo.yaml").read_text(encoding="utf-8"))
    settings = Settings(trainer_image="registry.example/trainer:1")
    return FineTuneJob.from_object({"metadata": meta, "spec": example["spec"]}), settings


def test_the_rules_are_those_of_the_file_with_the_runbooks_address(helm: str) -> None:
    address = "https://wiki.example/runbooks"
    rule = one(render(helm, *HAS_OPERATOR, "--set", f"monitoring.runbookUrl={address}"), "PrometheusRule")
    text = (CHART / "alerts.yaml").read_text(encoding="utf-8")
    own = text.replace(f"absent({UP})", f'absent({UP}{{namespace="system", service="release-finetune-operator"}})')
    assert rule["spec"] == yaml.safe_load(own.replace("RUNBOOK_URL", address))
    assert "RUNBOOK_URL" not in str(rule)


def test_an_operator_that_is_down_is_reported_although_that_of_another_release_is_scraped(helm: str) -> None:
    documents = render(helm, *HAS_OPERATOR)
    (alert,) = [
        rule
        for group in one(documents, "PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
        if rule["alert"] == "FineTuneOperatorDown"
    ]
    (service,) = [document for document in documents if document["kind"] == "Service"]
    place = f'namespace="{service["metadata"]["namespace"]}", service="{service["metadata"]["name"]}"'
    assert alert["expr"] == f"absent({UP}{{{place}}})"


def test_without_the_service_monitor_the_labels_of_the_scrape_are_not_known(helm: str) -> None:
    rule = one(render(helm, *HAS_OPERATOR, "--set", "monitoring.operator=false"), "PrometheusRule")
    assert f"absent({UP})" in str(rule)


def test_without_the_runbooks_address_an_alert_names_their_file_and_version_and_has_no_dead_link(helm: str) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["version"]
    groups = one(render(helm, *HAS_OPERATOR), "PrometheusRule")["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        named = rule["annotations"]["runbook"]
        assert named == f"docs/runbooks.md#{rule['alert'].lower()} of finetune-operator {version}"
        assert f"\n## {rule['alert']}\n" in (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")


def test_the_wait_of_queued_jobs_is_a_value(helm: str) -> None:
    for given, wait in (("", "0s"), ("monitoring.pendingFor=3h", "3h")):
        groups = one(render(helm, *HAS_OPERATOR, "--set", given), "PrometheusRule")["spec"]["groups"]
        waits = {rule["alert"]: rule.get("for") for group in groups for rule in group["rules"]}
        assert waits["FineTuneJobPendingLong"] == wait
        assert waits["FineTuneJobNoProgress"] == "10m"


def test_the_documented_inhibition_is_of_alerts_that_exist_by_labels_that_they_have() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(inhibit_rules:.*?)```", text, flags=re.DOTALL)
    groups = yaml.safe_load((CHART / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    rules = yaml.safe_load(block)["inhibit_rules"]
    named = {name for rule in rules for side in ("source", "target") for name in _alerts(rule[f"{side}_matchers"])}
    assert named <= alerts
    assert [rule.get("equal") for rule in rules] == [None, ["namespace", "name"], ["namespace", "name"]]


def _alerts(matchers: list[str]) -> list[str]:
    (names,) = [found for one in matchers for found in re.findall(r'^alertname=~?"?([\w|]+)"?$', one)]
    return str(names).split("|")


def test_dashboards_are_config_maps_that_grafanas_sidecar_loads(helm: str) -> None:
    documents = render(helm, "--set", "monitoring.dashboards=true")
    found = [document for document in documents if document["kind"] == "ConfigMap"]
    assert all(document["metadata"]["labels"]["grafana_dashboard"] == "1" for document in found)
    shipped = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in CHART.glob("dashboards/*.json")}
    loaded = {name: json.loads(text) for document in found for name, text in document["data"].items()}
    assert loaded == {f"finetune-{name}": dashboard for name, dashboard in shipped.items()}
    assert set(shipped) == {"fleet.json", "job.json", "operator.json"}


def test_without_the_prometheus_operator_a_service_with_annotations_can_be_had(helm: str) -> None:
    documents = render(helm, "--set", "monitoring.scrapeAnnotations=true")
    services = [document for document in documents if document["kind"] == "Service"]
    (found,) = [service for service in services if "annotations" in service["metadata"]]
    assert found["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    assert found["metadata"]["annotations"]["prometheus.io/port"] == str(found["spec"]["ports"][0]["port"])


@pytest.mark.parametrize(
    "value", ["monitoring.dashbords=true", "monitoring.interval=soon", "monitoring.runbookUrl=a b"]
)
def test_a_misspelt_value_of_the_monitoring_is_refused(helm: str, value: str) -> None:
    command = [helm, "template", "release", str(CHART), "--set", value]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "monitoring" in done.stderr
