"""The fields of the status: each number's name has its unit."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.schema.crd import structural_schema
from finetune_api.status import FineTuneJobStatus

UNIT = re.compile(r"(Seconds|PerSecond|Bytes|[pP]ercent|Points|Tokens)$")
COUNTED = re.compile(
    r"([aA]ttempts?|[rR]uns?|[fF]ailures|failuresBeforeMerge|[pP]reemptions|[rR]ows|[sS]teps?|Epochs|epoch|questions|gpus|trainableParameters"
    r"|evaluationsWithoutImprovement|patience)$"
)
"""Names of what is counted, or of its number."""
WITHOUT_UNIT = {
    "observedGeneration",
    "exitCode",
    "heartbeat",
    "seed",
    # figures of the training, in the units that their texts give
    "trainLoss",
    "evalLoss",
    "bestEvalLoss",
    "baselineEvalLoss",
    "learningRate",
    "gradNorm",
    "rewardMargin",
    "rewardAccuracy",
    "reward",
    "evalReward",
    "baselineEvalReward",
    "kl",
    # in the unit of `evaluation.metric`
    "before",
    "after",
    "difference",
    "differenceLow",
    "differenceHigh",
}


def fields(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}{name}", child
        yield from fields(child, f"{path}{name}.")
        yield from fields(child.get("items", {}), f"{path}{name}[].")


NUMBERS = sorted(
    path
    for path, node in fields(structural_schema(FineTuneJobStatus))
    if node.get("type") in {"integer", "number"} and not path.startswith("resolved.")  # as in the spec
)


@pytest.mark.parametrize("path", NUMBERS)
def test_the_name_of_a_number_has_its_unit(path: str) -> None:
    name = path.rpartition(".")[2]
    assert UNIT.search(name) or COUNTED.search(name) or name in WITHOUT_UNIT


def test_the_bookkeeping_of_the_operator_is_marked_as_unstable_and_nothing_else_is() -> None:
    marked = {path for path, node in fields(structural_schema(FineTuneJobStatus)) if "Unstable." in node["description"]}
    internal = {path for path, _ in fields(structural_schema(FineTuneJobStatus)) if re.match(r"internal\b", path)}
    assert marked == internal


def test_lists_maps_and_references_state_how_server_side_apply_merges_them() -> None:
    schema = structural_schema(FineTuneJobStatus)
    found = dict(fields(schema))
    lists = {path: node.get("x-kubernetes-list-type") for path, node in found.items() if node.get("type") == "array"}
    assert lists == {
        "conditions": "map",
        "history": "atomic",
        "avoidedNodeNames": "set",
        "dataset.sources": "atomic",
        "artifacts.keptCheckpoints": "atomic",
        "resolved.targetModules": "set",
        "resolved.excludeModules": "set",
        "resolved.modulesToSave": "set",
        "resolved.targetParameters": "set",
    }
    assert found["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    whole = {path for path, node in found.items() if "additionalProperties" in node or path.endswith("Ref")}
    assert whole >= {"jobRef", "workloadRef", "lineage.libraryVersions", "dataset.rowsByFormat", "failuresByReason"}
    assert {path: found[path].get("x-kubernetes-map-type") for path in whole} == dict.fromkeys(whole, "atomic")


def test_no_name_is_allowed_that_no_number_has() -> None:
    assert {path.rpartition(".")[2] for path in NUMBERS} >= WITHOUT_UNIT
