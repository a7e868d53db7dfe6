"""The chart with many values: valid by Kubernetes' own schemas, and taken without a warning by a real API server."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart import CHART, NAMESPACE, of_kind, pod_spec, render

from finetune_operator.settings import Settings

VERSIONS = ("1.31.0", "1.37.0")
"""The oldest Kubernetes that the chart allows, and the newest that has schemas here."""
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
CRD = "CustomResourceDefinition"
Objects = list[dict[str, Any]]
DIGEST = "sha256:" + "1" * 64
MATRIX: dict[str, dict[str, Any]] = {
    "default": {},
    "namespaced": {"watchNamespaces": ["a", "b"]},
    "namespaces-only": {
        "watchNamespaces": ["a", "b"],
        "crds": {"enabled": False},
        "rbac": {"aggregateToDefaultRoles": False},
        "networkPolicy": {"enabled": True},
    },
    "openshift": {"runAsUser": "", "trainer": {"runAsUser": ""}},
    "user-of-the-platform": {"runAsUser": 1000650000, "trainer": {"runAsUser": 1000650000}},
    "digests": {
        "image": {"digest": DIGEST},
        "trainer": {"image": {"digest": DIGEST}},
        "preflight": {"image": {"repository": "registry.example/preflight", "digest": DIGEST}},
    },
    "policies": {"networkPolicy": {"enabled": True}},
    "admission-policy": {"admissionPolicy": {"enabled": True}, "allowed": {"serviceAccounts": ["team/trainer"]}},
    "releases": {"release": {"enabled": True, "kserve": True}},
    "no-limits": {"preflight": {"memoryLimit": "", "workspaceLimit": ""}},
    "policies-narrow": {
        "watchNamespaces": ["a"],
        "networkPolicy": {
            "enabled": True,
            "scrapers": [
                {
                    "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["ops"]}]},
                    "podSelector": {"matchLabels": {"app": "prometheus"}},
                },
                {"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.2.0/24"]}},
            ],
            "apiServerCIDRs": ["10.0.0.1/32", "10.96.0.1/32"],
            "apiServerPorts": [16443],
            "dnsPorts": [53, 5353],
        },
    },
    "policies-without-scrapers": {"networkPolicy": {"enabled": True, "scrapers": []}},
    "policies-of-the-chart-alone": {
        "watchNamespaces": ["a"],
        "networkPolicy": {"enabled": True, "trainingPods": False, "egress": {"enabled": False}},
    },
    "egress": {
        "networkPolicy": {
            "trainingPods": False,
            "egress": {
                "enabled": True,
                "rules": [
                    {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}, {"port": "https"}]},
                    {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minio"}}}]},
                    {"ports": [{"protocol": "UDP", "port": 5000, "endPort": 5100}]},
                ],
            },
        },
    },
    "no-crd": {"crds": {"enabled": False}},
    "crd-goes": {"crds": {"keep": False}},
    "foreign-account": {"serviceAccount": {"create": False, "name": "ours"}, "rbac": {"create": False}},
    "foreign-defaults": {
        "defaultStorage": {
            "endpoint": "https://s3.example.com",
            "region": "eu-1",
            "forcePathStyle": False,
            "credentialsSecret": "s3",
            "caSecret": "ca",
        },
        "defaultHub": {"endpoint": "https://hub.example.com", "caSecret": "ca", "tokenSecret": "hf"},
        "proxy": {"http": "http://proxy.example:3128", "https": "http://proxy.example:3128", "noProxy": ".example"},
        "allowed": {
            "env": ["NCCL_*"],
            "podAnnotations": ["k8s.v1.cni.cncf.io/*"],
            "podLabels": ["example.com/cost-centre"],
            "images": ["registry.example/trainer"],
            "serviceAccounts": ["team/trainer"],
            "priorityClasses": ["high"],
            "workloadPriorityClasses": ["urgent"],
            "runtimeClasses": [],
            "tolerations": ["nvidia.com/*"],
            "nodeSelectors": ["node-role.kubernetes.io/gpu"],
            "modelCacheClaims": ["team/models"],
            "sourceClaims": ["team/rows"],
            "maxGracePeriodSeconds": 600,
            "storageEndpoints": ["https://*.example.com"],
            "storagePrefixes": ["s3://bucket/{namespace}/", "s3://shared/models/"],
            "hubEndpoints": ["https://hub.example.com"],
            "registryEndpoints": ["https://registry.example.com"],
            "trackingEndpoints": ["http://mlflow.mlflow:5000"],
            "rewardEndpoints": ["http://grader.team-a:8000/score"],
            "releaseEndpoints": ["http://vllm.team-a.svc:8000"],
        },
    },
    "names": {"nameOverride": "tuner", "fullnameOverride": "a" * 63, "commonLabels": {"team": "ml"}},
    "numbers-as-names": {
        "watchNamespaces": ["1e3"],
        "nameOverride": "123",
        "crds": {"enabled": False},
        "serviceAccount": {"name": "789"},
        "networkPolicy": {"enabled": True},
        "admissionPolicy": {"enabled": True},
        "flowSchema": {"enabled": True},
        "monitoring": {"dashboards": True, "scrapeAnnotations": True},
        "commonLabels": {"team": "1e3"},
        "trainer": {"defaultRequests": {"cpu": 0.5, "memory": 2147483648}},
        "replicas": 2,
    },
    "dot-in-the-name": {"monitoring": {"scrapeAnnotations": True}, "crds": {"enabled": False}},
    "all-off": {
        "crds": {"enabled": False},
        "rbac": {"create": False, "aggregateToDefaultRoles": False},
        "serviceAccount": {"create": False},
        "networkPolicy": {"enabled": False},
        "resources": {"requests": None, "limits": None},
    },
    "all-on": {
        "image": {"repository": "registry.example/operator", "digest": DIGEST, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "preflight": {"image": {"repository": "registry.example/preflight", "tag": "1"}},
        "flowSchema": {"enabled": True, "priorityLevel": "workload-low", "matchingPrecedence": 500},
        "trainer": {
            "image": {"repository": "registry.example/trainer", "tag": "1"},
            "runAsUser": "1000",
            "simulatedGpus": True,
            "defaultRequests": {"cpu": 2, "memory": ""},
            "defaults": {
                "imagePullSecrets": [{"name": "pull"}],
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
                "nodeSelector": {"node-role.kubernetes.io/gpu": ""},
                "runtimeClassName": "sandboxed",
                "podLabels": {"team": "ml"},
                "podAnnotations": {"karpenter.sh/do-not-disrupt": "true"},
                "startDeadlineSeconds": 604800,
                "activeDeadlineSeconds": "86400",
                "ttlSecondsAfterFinished": 0,
            },
            "cpuPods": {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": []},
            "nodeAvoidance": "Preferred",
            "nodeShutdownSeconds": 25,
        },
        "watchNamespaces": ["a", "b"],
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
        "networkPolicy": {"enabled": True},
        "monitoring": {
            "operator": True,
            "trainers": True,
            "alerts": True,
            "dashboards": True,
            "labels": {"release": "stack"},
            "interval": "1m",
            "runbookUrl": "https://docs.example/runbooks.md",
            "pendingFor": "3h",
            "finishedJobSeconds": 86400,
            "scrapeAnnotations": True,
        },
        "logFormat": "text",
        "logLevel": "DEBUG",
        "progressIntervalSeconds": 30,
        "resyncSeconds": 600,
        "workers": 32,
        "apiQps": 100,
        "apiBurst": 200,
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        "replicas": 3,
        "revisionHistoryLimit": 3,
        "unreachableTolerationSeconds": 30,
        "extraEnv": [
            {"name": "PLAIN", "value": "1"},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
        ],
        "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]
                }
            }
        },
        "podAnnotations": {"example.com/a": "1"},
        "podLabels": {"tier": "back"},
        "deploymentAnnotations": {"reloader.stakater.com/auto": "true"},
        "serviceAnnotations": {"prometheus.io/scrape": "true"},
        "commonLabels": {"team": "ml"},
    },
}
NAMESPACES = (NAMESPACE, "a", "b", "456", "1e3")
RELEASES = {"numbers-as-names": ("123", "456"), "dot-in-the-name": ("my.release", NAMESPACE)}
"""Name and namespace of the release, of rows in which they matter."""


@pytest.fixture(scope="module")
def rendered(helm: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Objects]:
    """The objects of each row; of the CRD, which is large and depends on no value, one copy."""
    folder = tmp_path_factory.mktemp("matrix")
    found = {}
    for row, values in MATRIX.items():
        file = folder / f"{row}.yaml"
        file.write_text(json.dumps(values), encoding="utf-8")
        release, namespace = RELEASES.get(row, ("release", NAMESPACE))
        documents = render(helm, "--values", str(file), "--namespace", namespace, release=release)
        found[row] = [one for one in documents if one["kind"] != CRD or row == "default"]
    return found


@pytest.fixture(scope="module")
def namespaces(kubectl: Callable[..., str]) -> Iterator[None]:
    """Those that the matrix names, all under the restricted Pod Security Standard."""
    made = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
        for name in NAMESPACES
    ]
    kubectl("apply", "-f", "-", stdin=_documents(made))
    yield
    kubectl("delete", "namespace", *NAMESPACES, "--wait=false")


def _documents(objects: Objects) -> str:
    """Return them in JSON, in which a name that is a number is quoted."""
    return "\n---\n".join(json.dumps(one) for one in objects)


@pytest.mark.parametrize("row", MATRIX)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_by_the_schemas_of_that_kubernetes(
    rendered: dict[str, Objects], row: str, version: str
) -> None:
    for document in rendered[row]:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.usefixtures("namespaces")
def test_a_real_api_server_takes_every_object_without_a_warning(
    rendered: dict[str, Objects], kubectl: Callable[..., str]
) -> None:
    documents = [document for row in rendered.values() for document in row]
    server = ("apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-")
    taken = kubectl(*server, stdin=_documents(documents))
    assert len(taken.splitlines()) == len(documents) > 100


def test_names_that_are_numbers_stay_text_and_reach_the_operator(
    rendered: dict[str, Objects], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = rendered["numbers-as-names"]
    found = [text for one in documents for text in _texts_of_maps(one, ("labels", "matchLabels", "selector"))]
    found += [text for one in documents for text in _values_of(one, ("name", "namespace", "serviceAccountName"))]
    assert [text for text in found if not isinstance(text, str)] == []
    assert {"123", "456", "789", "1e3"} <= set(found)
    (container,) = pod_spec(documents)["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "pod"))
    read = Settings()
    assert (read.default_cpu_request, read.default_memory_request) == ("0.5", "2147483648")
    assert (read.watch_namespaces, read.lease_namespace) == (["1e3"], "456")


def test_a_services_name_has_no_dot_and_begins_with_a_letter(rendered: dict[str, Objects]) -> None:
    made = {row: [one["metadata"]["name"] for one in of_kind(rendered[row], "Service")] for row in RELEASES}
    assert made == {
        "numbers-as-names": ["r-123-metrics", "r-123"],
        "dot-in-the-name": ["my-release-finetune-operator-metrics", "my-release-finetune-operator"],
    }


def _texts_of_maps(node: Any, names: tuple[str, ...]) -> Iterator[Any]:
    for value in _values_of(node, names):
        yield from (text for text in value.values() if not isinstance(text, dict)) if isinstance(value, dict) else ()


def _values_of(node: Any, names: tuple[str, ...]) -> Iterator[Any]:
    if isinstance(node, list):
        for one in node:
            yield from _values_of(one, names)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in names:
                yield value
            yield from _values_of(value, names)


def test_the_matrix_sets_every_value_that_the_chart_has() -> None:
    """A value that no row sets is a value that nobody has seen rendered."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    chosen = {path for row in MATRIX.values() for path in _paths(row, schema)}
    assert set(_paths(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8")), schema)) - chosen == {
        "image.tag",
    }


def _paths(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        here = f"{path}{name}"
        inner = schema["properties"].get(name, {})
        if isinstance(value, dict) and "properties" in inner:
            yield from _paths(value, inner, f"{here}.")
        else:
            yield here


def test_a_value_with_a_misspelt_part_is_refused_at_any_depth() -> None:
    """Everything that has parts says which, except affinity, volumes and the values of a parent chart."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert sorted(_open(schema, "")) == [
        "affinity.nodeAffinity",
        "affinity.podAffinity",
        "affinity.podAntiAffinity",
        "extraVolumes",
        "global",
    ]


def _open(node: dict[str, Any], path: str) -> Iterator[str]:
    if node.get("type") == "object" and "additionalProperties" not in node:
        yield path
    for name, child in (node.get("properties", {}) | node.get("definitions", {})).items():
        yield from _open(child, f"{path}.{name}".lstrip("."))
    for part in ("items", "additionalProperties"):
        if isinstance(node.get(part), dict):
            yield from _open(node[part], path)
