"""The CRD that is generated from the types: structural, bounded, described, and up to date on disk."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.schema.crd import build_crd, generated_files
from finetune_api.spec import FIXED, FineTuneJobSpec

ROOT = Path(__file__).parents[4]
EXAMPLES = sorted((ROOT / "crds" / "examples").rglob("*.yaml"))


def nodes(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from nodes(node[key], f"{path}[]")


def parts(block: str) -> list[tuple[str, dict[str, Any]]]:
    schema = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return list(nodes(schema["properties"][block], block))


@pytest.mark.parametrize("block", ["spec", "status"])
def test_every_list_map_and_string_has_a_bound(block: str) -> None:
    unbounded = [
        path
        for path, node in parts(block)
        if (node.get("type") == "array" and "maxItems" not in node)
        or ("additionalProperties" in node and "maxProperties" not in node)
        or (node.get("type") == "string" and not {"maxLength", "enum", "format"} & set(node))
    ]
    assert unbounded == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("spec.resources.requests", "or the limit of a resource that has one"),
        ("spec.activeDeadlineSeconds", "trainer and merge pods"),
        ("spec.backoffLimit", "preflight has three retries of its own"),
    ],
)
def test_a_limit_states_which_pods_it_counts_and_a_default_where_it_comes_from(path: str, words: str) -> None:
    assert words in dict(parts("spec"))[path]["description"]


MERGED_BY = {
    "spec.resources.claims": ["name"],
    "spec.scheduling.topologySpreadConstraints": ["topologyKey", "whenUnsatisfiable"],
    "spec.trainer.env": ["name"],
    "spec.trainer.imagePullSecrets": ["name"],
    "status.conditions": ["type"],
}
"""Lists whose entries have a name; those of a pod are merged as Kubernetes merges them."""


@pytest.mark.parametrize("block", ["spec", "status"])
def test_every_list_states_how_server_side_apply_merges_it(block: str) -> None:
    kinds = {path: node.get("x-kubernetes-list-type") for path, node in parts(block) if node.get("type") == "array"}
    assert set(kinds.values()) <= {"atomic", "set", "map"}
    assert {path for path, kind in kinds.items() if kind == "map"} == {
        path for path in MERGED_BY if path[:4] == block[:4]
    }


def test_an_entry_of_a_merged_list_has_every_field_that_names_it() -> None:
    lists = [(path, node) for block in ("spec", "status") for path, node in parts(block) if path in MERGED_BY]
    for path, node in lists:
        assert node["x-kubernetes-list-map-keys"] == MERGED_BY[path]
        assert set(MERGED_BY[path]) <= set(node["items"]["required"])
    assert len(lists) == len(MERGED_BY)


def test_every_map_of_the_spec_and_every_reference_states_how_server_side_apply_merges_it() -> None:
    found = parts("spec")
    maps = {path: node.get("x-kubernetes-map-type") for path, node in found if "additionalProperties" in node}
    assert set(maps.values()) == {"atomic", "granular"}
    references = [node for path, node in found if path.endswith("Ref")]
    assert len(references) > 5
    assert {node.get("x-kubernetes-map-type") for node in references} == {"atomic"}


def test_an_empty_map_that_the_types_refuse_is_refused_by_the_api_server() -> None:
    limits = {path: node.get("minProperties") for path, node in parts("spec") if "minProperties" in node}
    maps = ("dataset.columns", "dataset.train.sources[].columns", "tuning.lora.rankPattern", "tuning.lora.alphaPattern")
    assert limits == {f"spec.{path}": 1 for path in maps}


@pytest.mark.parametrize("block", ["spec", "status"])
def test_every_object_has_a_description(block: str) -> None:
    opaque = [
        path
        for path, node in parts(block)
        if node.get("type") == "object" and not {"properties", "additionalProperties"} & set(node)
    ]
    assert opaque == []


@pytest.mark.parametrize("block", ["spec", "status"])
def test_every_property_is_described(block: str) -> None:
    silent = [
        path for path, node in parts(block) if "." in path and not path.endswith("[]") and not node.get("description")
    ]
    assert silent == []


def test_every_optional_field_of_the_spec_names_its_default() -> None:
    required = {f"{path}.{name}" for path, node in parts("spec") for name in node.get("required", [])} | {
        "spec.objective",
        "spec.model",
        "spec.dataset",
        "spec.output",
    }
    silent = [
        path
        for path, node in parts("spec")
        if "." in path
        and not path.endswith("[]")
        and path not in required
        and node.get("type") != "object"
        and "Default:" not in node.get("description", "")
    ]
    assert silent == []


def test_the_generated_files_match_the_types() -> None:
    stale = [str(path) for path, text in generated_files(ROOT).items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make generate`"


def test_the_crd_stays_small_enough_for_a_client_side_apply() -> None:
    # kubectl keeps it in an annotation, and all annotations of an object take at most 256 KiB.
    applied = json.dumps(build_crd(), separators=(",", ":"))
    assert len(applied) < 225_000


def test_no_rule_reads_a_quantity_for_each_entry_of_a_map() -> None:
    # Kubernetes 1.31 does not estimate the length of a quantity, and refuses a CRD with such a rule as too expensive.
    loop = re.compile(r"self\.\w+\.(all|exists)\(.*quantity\(")
    rules = re.findall(r'"rule": "((?:[^"\\]|\\.)*)"', json.dumps(build_crd()))
    assert len(rules) > 100
    assert [rule for rule in rules if loop.search(rule)] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_valid_job(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        if document["kind"] == "FineTuneJob":
            FineTuneJobSpec.model_validate(document["spec"], strict=False)


@pytest.mark.parametrize("name", [one.name for one in FIXED if not one.is_optional])
def test_a_write_of_the_status_decides_with_one_comparison_that_a_field_is_fixed(name: str) -> None:
    (field,) = (node for path, node in parts("spec") if path == f"spec.{name}")
    (rule,) = (
        one["rule"]
        for one in field["x-kubernetes-validations"]
        if one["message"].startswith(f"{name} is fixed when the job is created")
    )
    assert rule.split(" || ")[0] == "self == oldSelf"
