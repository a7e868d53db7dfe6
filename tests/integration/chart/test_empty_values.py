"""A value that is left empty in a values file: Helm drops its key and its default before it checks the schema."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, of_kind, pod_spec, template

EVERYTHING = {
    "crds": {"enabled": False},
    "admissionPolicy": {"enabled": True},
    "networkPolicy": {"enabled": True, "egress": {"enabled": True}},
    "flowSchema": {"enabled": True},
    "monitoring": {"dashboards": True, "scrapeAnnotations": True},
    "release": {"enabled": True},
}
"""Every object that the chart can have, without the CRD, which is large and depends on no value."""
EMPTY: dict[type, Any] = {list: [], dict: {}}


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the values file that sets these."""
    values: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, name = path.split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return values


LEAVES = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))))


class Charts:
    """The chart with all its objects and a few values more."""

    def __init__(self, helm: str, folder: Path) -> None:
        self._helm, self._folder = helm, folder

    def template(self, more: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        words = ["--api-versions", "monitoring.coreos.com/v1"]
        for name, values in ("everything", EVERYTHING), ("more", more):
            file = self._folder / f"{name}.yaml"
            file.write_text(yaml.safe_dump(values), encoding="utf-8")
            words += ["--values", str(file)]
        return template(self._helm, *words)

    def render(self, more: dict[str, Any]) -> list[Any]:
        done = self.template(more)
        assert done.returncode == 0, done.stderr
        assert "nil>" not in done.stdout
        return [_without_empty(one) for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]


def _without_empty(value: Any) -> Any:
    """Return what the API server stores, for which `value:` and `value: ""` of a variable are the same."""
    if isinstance(value, dict):
        return {name: _without_empty(one) for name, one in value.items() if one is not None and one != ""}
    return [_without_empty(one) for one in value] if isinstance(value, list) else value


@pytest.fixture
def charts(helm: str, tmp_path: Path) -> Charts:
    return Charts(helm, tmp_path)


def test_every_value_that_is_left_empty_is_an_empty_one_or_named_as_missing(charts: Charts) -> None:
    """Never a 0 or a `<nil>`, nor a switch that is off because its value is missing."""
    refused = charts.template(nested(dict.fromkeys(LEAVES)))
    assert refused.returncode != 0
    missing = set(
        refused.stderr.partition("without a value in a values file: ")[2].partition(": set a value")[0].split(", ")
    )
    switches_and_numbers = {path for path, value in LEAVES.items() if isinstance(value, bool | int)}
    assert missing >= switches_and_numbers - {"unreachableTolerationSeconds"}  # whose `""` is documented
    optional = LEAVES.keys() - missing
    given = charts.render(nested({path: EMPTY.get(type(LEAVES[path]), "") for path in optional}))
    assert charts.render(nested(dict.fromkeys(optional))) == given


@pytest.mark.parametrize("path", ["image.repository", "crds.keep", "replicas", "monitoring.pendingFor"])
def test_a_missing_value_is_the_only_one_that_is_named(charts: Charts, path: str) -> None:
    assert f"values file: {path}: set a value" in charts.template(nested({path: None})).stderr


def test_without_a_user_the_platform_chooses_one(charts: Charts) -> None:
    pod = pod_spec(charts.render({"runAsUser": None, "trainer": {"runAsUser": None}}))
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    variables = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert variables["FINETUNE_TRAINER_RUN_AS_USER"] is None


def test_a_zero_that_is_given_stays_a_zero(charts: Charts) -> None:
    (deployment,) = of_kind(charts.render({"replicas": 0, "revisionHistoryLimit": 0}), "Deployment")
    assert (deployment["spec"]["replicas"], deployment["spec"]["revisionHistoryLimit"]) == (0, 0)
