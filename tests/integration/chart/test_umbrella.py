"""The chart as a dependency of a platform team's own chart, as `helm dependency` packs it."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, NAMESPACE, of_kind, pod_spec, read_rendered

NAME = "finetune-operator"
Umbrella = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def charts(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the umbrella charts `plain` and `aliased`, whose dependency is this chart by its path."""
    folder = tmp_path_factory.mktemp("umbrella")
    for name, more in {"plain": {"condition": f"{NAME}.enabled"}, "aliased": {"alias": "tuner"}}.items():
        (folder / name).mkdir()
        dependency = {"name": NAME, "version": ">=0.0.0-0", "repository": f"file://{CHART}", "tags": ["ml"], **more}
        chart = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
        (folder / name / "Chart.yaml").write_text(yaml.safe_dump(chart), encoding="utf-8")
        command = [helm, "dependency", "update", str(folder / name), "--skip-refresh"]
        subprocess.run(command, capture_output=True, check=True)
    return folder


@pytest.fixture
def template(helm: str, charts: Path, tmp_path: Path) -> Umbrella:
    """`helm template` of an umbrella chart with these values."""

    def call(name: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        command = [helm, "template", "release", str(charts / name), "--namespace", NAMESPACE, "--values", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return call


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return read_rendered(done.stdout)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {NAME: {"enabled": True}},
        {"tags": {"ml": True}},
        {"global": {"imageRegistry": "registry.example", "storageClass": "fast"}},
        {NAME: {"enabled": True, "global": {"team": "ml"}, "tags": {"any": True}}},
    ],
    ids=["defaults", "condition", "tags", "global", "all"],
)
def test_an_umbrella_chart_renders_it_with_what_helm_passes_to_a_dependency(
    template: Umbrella, values: dict[str, Any]
) -> None:
    found = objects(template("plain", values))
    assert len(of_kind(found, "CustomResourceDefinition")) == len(of_kind(found, "Deployment")) == 1
    assert pod_spec(found)["serviceAccountName"] == f"release-{NAME}"


@pytest.mark.parametrize("values", [{NAME: {"enabled": False}}, {"tags": {"ml": False}}], ids=["condition", "tags"])
def test_an_umbrella_chart_leaves_it_out_by_condition_and_by_tag(template: Umbrella, values: dict[str, Any]) -> None:
    assert objects(template("plain", values)) == []


def test_an_umbrella_chart_may_rename_it(template: Umbrella) -> None:
    found = objects(template("aliased", {"tuner": {"watchNamespaces": ["a"]}}))
    assert pod_spec(found)["serviceAccountName"] == "release-tuner"
    assert [role["metadata"]["namespace"] for role in of_kind(found, "Role")] == ["a", "system"]


def test_a_misspelt_value_is_refused_by_name_in_an_umbrella_chart_too(template: Umbrella) -> None:
    done = template("plain", {NAME: {"defaultStorage": {"endpont": "http://x"}}})
    assert done.returncode != 0
    assert "endpont" in done.stderr


@pytest.mark.parametrize("name", ["plain", "aliased"])
def test_an_umbrella_chart_is_installed_on_a_real_api_server_and_removed(
    helm: str, charts: Path, control_plane: Path, kubectl: Callable[..., str], name: str
) -> None:
    values = {"crds": {"enabled": False}, "watchNamespaces": ["default"], "networkPolicy": {"enabled": True}}
    file, namespace = charts / f"{name}.yaml", f"umbrella-{name}"
    key = {"plain": NAME, "aliased": "tuner"}[name]
    file.write_text(yaml.safe_dump({key: values, "global": {"team": "ml"}}), encoding="utf-8")
    server = ("--kubeconfig", str(control_plane), "--namespace", namespace)
    install = [helm, "install", namespace, str(charts / name), *server, "--create-namespace", "--values", str(file)]
    subprocess.run(install, capture_output=True, text=True, check=True)
    made = kubectl("get", "deployment,service,role,networkpolicy", "-n", namespace, "-o", "name").split()
    assert f"deployment.apps/{namespace}-{key}" in made
    subprocess.run([helm, "uninstall", namespace, *server], capture_output=True, text=True, check=True)
    assert kubectl("get", "deployment,service,networkpolicy", "-n", namespace, "-o", "name") == ""
    kubectl("delete", "namespace", namespace, "--wait=false")
