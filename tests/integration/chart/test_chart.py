"""What the Helm chart installs: exact rights, closed values, nothing privileged. Rendered by the real helm."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import finetune_api
from finetune_operator.settings import Settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "helm" / "finetune-operator"
RIGHTS = {
    ("finetune.dev", "finetunejobs"): ["get", "list", "watch"],
    ("finetune.dev", "finetunejobs/status"): ["patch"],
    ("batch", "jobs"): ["get", "list", "watch", "create", "patch", "delete"],
    ("", "pods"): ["list", "watch"],
    ("", "configmaps"): ["get", "list", "create", "delete"],
    ("", "services"): ["get", "list", "create", "delete"],
    ("", "events"): ["list", "create"],
    ("kueue.x-k8s.io", "workloads"): ["list", "watch", "patch"],
}


@pytest.fixture(scope="module")
def helm() -> str:
    """The helm on the PATH, else the one that the test cluster built."""
    script = 'eval "$("$0" "$1" env)"; command -v helm'
    cluster = [sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py")]
    return (
        shutil.which("helm")
        or subprocess.run(
            ["bash", "-euc", script, *cluster], capture_output=True, text=True, check=True, env=os.environ
        ).stdout.strip()
    )


def render(helm: str, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [helm, "template", "release", str(CHART), "--namespace", "system", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def environment(helm: str, *arguments: str) -> dict[str, Any]:
    (deployment,) = of_kind(render(helm, *arguments), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def rights(role: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    return {
        (group, name): rule["verbs"]
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for name in rule["resources"]
    }


def test_the_operator_gets_exactly_these_rights(helm: str) -> None:
    (role,) = of_kind(render(helm), "ClusterRole")
    assert rights(role) == RIGHTS


def test_the_documented_rights_are_the_granted_ones() -> None:
    text = (ROOT / "operator" / "README.md").read_text(encoding="utf-8")
    (documented,) = re.findall(r"```yaml\n(rules:\n.*?)```", text, flags=re.DOTALL)
    assert rights(yaml.safe_load(documented)) == RIGHTS


def test_a_namespaced_operator_gets_roles_and_no_cluster_role(helm: str) -> None:
    documents = render(helm, "--set", "watchNamespaces={a,b}")
    assert of_kind(documents, "ClusterRole") == []
    assert [role["metadata"]["namespace"] for role in of_kind(documents, "Role")] == ["a", "b"]
    assert all(rights(role) == RIGHTS for role in of_kind(documents, "Role"))


def test_a_misspelt_value_is_refused_by_name(helm: str) -> None:
    done = subprocess.run(
        [helm, "template", "release", str(CHART), "--set", "defaultStorage.endpont=http://x"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "endpont" in done.stderr


def test_the_crd_is_installed_by_value_and_kept_on_uninstall(helm: str) -> None:
    (crd,) = of_kind(render(helm), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    plain = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text(encoding="utf-8"))
    assert crd["spec"] == plain["spec"]
    assert of_kind(render(helm, "--set", "crds.enabled=false"), "CustomResourceDefinition") == []


def test_the_operator_runs_restricted(helm: str) -> None:
    (deployment,) = of_kind(render(helm), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_every_setting_that_the_chart_passes_is_one_that_the_operator_reads(helm: str) -> None:
    prefix = Settings.model_config["env_prefix"]
    read = {f"{prefix}{name}".upper() for name in Settings.model_fields}
    assert set(environment(helm)) - read == set()


@pytest.mark.parametrize(
    ("given", "passed"),
    [("1000650000", "1000650000"), ('"1000650000"', "1000650000"), ("65532", "65532"), ('""', ""), ("0", "0")],
)
def test_a_user_id_in_a_values_file_reaches_the_operator_as_digits(
    helm: str, tmp_path: Path, given: str, passed: str
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f"trainer: {{runAsUser: {given}}}", encoding="utf-8")
    assert environment(helm, "--values", str(values))["FINETUNE_TRAINER_RUN_AS_USER"] == passed


def test_chart_and_code_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["appVersion"] == finetune_api.__version__


def test_hub_and_proxy_values_reach_the_operator(helm: str) -> None:
    given = environment(
        helm,
        *("--set", "defaultHub.endpoint=https://mirror.example,defaultHub.tokenSecret=hf,defaultHub.caSecret=ca"),
        *("--set", "proxy.https=http://proxy.example:3128,allowed.hubEndpoints={https://*.example,http://hub.hub}"),
        *("--set", "allowed.trackingEndpoints={http://mlflow.mlflow:5000}"),
    )
    assert given["FINETUNE_DEFAULT_HUB_ENDPOINT"] == "https://mirror.example"
    assert (given["FINETUNE_DEFAULT_HUB_TOKEN_SECRET"], given["FINETUNE_DEFAULT_HUB_CA_SECRET"]) == ("hf", "ca")
    assert given["FINETUNE_HTTPS_PROXY"] == "http://proxy.example:3128"
    assert given["FINETUNE_NO_PROXY"] == "localhost,127.0.0.1,.svc,.cluster.local"
    assert given["FINETUNE_ALLOWED_HUB_ENDPOINTS"] == "https://*.example,http://hub.hub"
    assert given["FINETUNE_ALLOWED_TRACKING_ENDPOINTS"] == "http://mlflow.mlflow:5000"


def test_a_proxy_with_a_password_is_refused_before_it_stands_in_a_pod(helm: str) -> None:
    done = subprocess.run(
        [helm, "template", "release", str(CHART), "--set", "proxy.http=http://user:secret@proxy:3128"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "proxy" in done.stderr
