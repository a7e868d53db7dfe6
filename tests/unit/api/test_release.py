"""FineTuneRelease: its CRD is bounded and described as that of FineTuneJobs, and nothing installs it by default."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from finetune_api.release import FineTuneReleaseSpec, FineTuneReleaseStatus, ReleaseConditionType, ReleaseReason
from finetune_api.schema.crd import RELEASE, build_crd, chart_yaml

ROOT = Path(__file__).parents[3]
SCHEMA = build_crd(RELEASE)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
VLLM = {"url": "http://vllm:8000", "adapterName": "bot", "volume": {"claimName": "adapters", "path": "/adapters"}}


def nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        yield from nodes(node["items"], f"{path}[]")


FIELDS = [(path, node) for block in ("spec", "status") for path, node in nodes(SCHEMA[block], block)]


def test_every_field_is_described_and_bounded() -> None:
    assert [path for path, node in FIELDS if "[]" not in path[-2:] and not node.get("description")] == []
    strings = [(path, node) for path, node in FIELDS if node.get("type") == "string"]
    assert [path for path, node in strings if not {"maxLength", "enum", "format"} & set(node)] == []
    integers = [(path, node) for path, node in FIELDS if node.get("type") == "integer"]
    assert [path for path, node in integers if not {"minimum", "maximum"} <= set(node)] == []
    assert [path for path, node in FIELDS if node.get("type") == "array" and "maxItems" not in node] == []


def test_names_follow_the_conventions_of_the_group() -> None:
    assert [path for path, node in FIELDS if node.get("format") == "date-time" and not path.endswith("Time")] == []
    assert [path for path, _ in FIELDS if re.search(r"(?<=[a-z0-9])(Uri|Url|Sha256|Uid)(?=[A-Z]|$)", path)] == []
    assert SCHEMA["status"]["default"] == {"observedGeneration": -1}


def test_the_columns_show_what_answers_and_since_when() -> None:
    columns = build_crd(RELEASE)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [one["name"] for one in columns if not one.get("priority")] == ["Ready", "Reason", "Since", "Age"]


def test_neither_the_chart_nor_the_kustomization_installs_the_definition_by_default() -> None:
    assert "{{- if and .Values.crds.enabled .Values.release.enabled }}" in chart_yaml(RELEASE)
    values = yaml.safe_load((ROOT / "helm" / "finetune-operator" / "values.yaml").read_text())
    assert values["release"] == {"enabled": False, "kserve": False}
    assert "release" not in (ROOT / "crds" / "kustomization.yaml").read_text()


def test_the_smallest_release_has_the_safe_defaults() -> None:
    spec = FineTuneReleaseSpec.model_validate({"jobRef": {"name": "bot"}, "target": {"vllm": VLLM}})
    assert (spec.rollback, spec.progress_deadline_seconds, spec.require) == ("OnFailure", 900, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"adapterName": "a/b"}, "adapterName"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"volume": {"claimName": "a", "path": "/a/../.. b"}}, "path"),
    ],
)
def test_a_name_that_leads_out_of_the_volume_and_a_url_that_is_none_are_refused(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        FineTuneReleaseSpec.model_validate({"jobRef": {"name": "bot"}, "target": {"vllm": VLLM | change}})


def test_a_status_of_a_newer_version_is_read_without_its_new_fields() -> None:
    found = FineTuneReleaseStatus.model_validate({"observedGeneration": -1, "fromTheFuture": 1})
    assert found.to_wire() == {"observedGeneration": -1}


@pytest.mark.parametrize("reason", [*ReleaseReason, *ReleaseConditionType])
def test_the_guide_has_each_reason_and_condition(reason: str) -> None:
    assert f"`{reason}`" in (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
