"""The API conventions of Kubernetes that a program can check; operator/decisions has those that it cannot, and the
reasons of the differences that are listed here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.names import Reason
from finetune_api.schema.crd import COLUMNS, build_crd

RECORD = Path(__file__).parents[4] / "operator" / "decisions" / "0043-the-api-follows-the-conventions-of-kubernetes.md"
KUBERNETES = re.compile(r"^spec\.scheduling\.(affinity|tolerations|topologySpreadConstraints)\b")
"""Fields with the names, types and values of the pod's own."""
LIBRARY_VALUES = {
    "spec.hyperparameters.lrSchedulerType",
    "spec.hyperparameters.optim",
    "spec.dpo.lossType",
    "spec.rlhf.lossType",
    "spec.rlhf.scaleRewards",
}
"""Enums with the values of transformers and TRL."""
DECIMALS = {
    "spec.dataset.train.sources[].weight",
    "spec.tuning.lora.dropout",
    "spec.tuning.lora.loraPlusLrRatio",
    "spec.hyperparameters.numTrainEpochs",
    "spec.hyperparameters.learningRate",
    "spec.hyperparameters.warmupSteps",
    "spec.hyperparameters.decaySteps",
    "spec.hyperparameters.minLrRatio",
    "spec.hyperparameters.neftuneNoiseAlpha",
    "spec.hyperparameters.weightDecay",
    "spec.hyperparameters.adamBeta1",
    "spec.hyperparameters.adamBeta2",
    "spec.hyperparameters.adamEpsilon",
    "spec.hyperparameters.maxGradNorm",
    "spec.dpo.beta",
    "spec.dpo.labelSmoothing",
    "spec.dpo.sftWeight",
    "spec.kto.beta",
    "spec.kto.desirableWeight",
    "spec.kto.undesirableWeight",
    "spec.rlhf.rewards[].weight",
    "spec.rlhf.rewards[].answer.absoluteTolerance",
    "spec.rlhf.rewards[].answer.relativeTolerance",
    "spec.rlhf.temperature",
    "spec.rlhf.beta",
    "spec.rlhf.rollouts.gpuMemoryFraction",
    "spec.distillation.temperature",
    "spec.distillation.beta",
    "spec.evaluation.gate.maxEvalLoss",
    "spec.evaluation.gate.maxForgotten",
    "spec.evaluation.gate.minCorrect",
    "spec.evaluation.answers.absoluteTolerance",
    "spec.evaluation.answers.relativeTolerance",
    "spec.earlyStopping.minDelta",
}
"""Numbers of the spec that are not integers."""


def fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
        yield from fields(child.get("items", {}), f"{path}.{name}[]")


SCHEMA = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
FIELDS = {path: node for block in ("spec", "status") for path, node in fields(SCHEMA[block], block)}


def name_of(path: str) -> str:
    return path.rpartition(".")[2]


def test_a_name_is_camel_case_without_is() -> None:
    assert [path for path in FIELDS if not re.fullmatch(r"[a-z][A-Za-z0-9]*", name_of(path))] == []
    assert [path for path in FIELDS if re.match(r"(is|has|should)[A-Z]", name_of(path))] == []


def test_an_acronym_has_one_case() -> None:
    mixed = re.compile(r"(?<=[a-z0-9])(Gpu|Cpu|Uid|Uri|Url|Sha256|Id|Ip|Api|Http)(?=[A-Z]|$)")
    assert [path for path in FIELDS if mixed.search(name_of(path))] == []
    assert [reason.value for reason in Reason if re.match(r"(Gpu|Api|Oom|Url)[A-Z]", reason)] == []


def test_a_time_is_called_time_and_a_duration_has_its_unit_and_is_an_integer() -> None:
    times = {path for path, node in FIELDS.items() if node.get("format") == "date-time"}
    assert times
    assert [path for path in times if not path.endswith("Time")] == []
    durations = {path: node["type"] for path, node in FIELDS.items() if re.search(r"Seconds(After|$)", name_of(path))}
    assert {path for path, kind in durations.items() if kind != "integer"} == {"status.checkpoint.saveSeconds"}
    assert [path for path in FIELDS if re.search(r"(Timeout|Period|Deadline|Duration|Interval)$", path)] == []


def test_an_integer_has_both_bounds_within_what_every_reader_represents() -> None:
    integers = {path: node for path, node in FIELDS.items() if node.get("type") == "integer"}
    loose = [path for path, node in integers.items() if not {"minimum", "maximum"} <= set(node)]
    assert [path for path in loose if not KUBERNETES.match(path)] == []
    assert {path: node for path, node in integers.items() if node.get("maximum", 0) >= 2**53} == {}


def test_only_listed_numbers_of_the_spec_are_decimals() -> None:
    assert {
        path for path, node in FIELDS.items() if path.startswith("spec.") and node.get("type") == "number"
    } == DECIMALS


def test_the_values_of_an_enum_are_camel_case_except_those_of_a_library() -> None:
    strings = {path: node["enum"] for path, node in FIELDS.items() if "enum" in node and node.get("type") == "string"}
    other = {
        path for path, values in strings.items() if not all(re.match(r"[A-Z][A-Za-z0-9]*$", one) for one in values)
    }
    assert {path for path in other if not KUBERNETES.match(path)} == LIBRARY_VALUES


def test_a_reference_is_called_ref_and_names_its_object() -> None:
    references = {path: node for path, node in FIELDS.items() if path.endswith("Ref")}
    assert references
    assert [path for path, node in references.items() if "name" not in node.get("required", [])] == []


def test_a_default_is_a_value_that_holds_for_every_job_and_none_is_null() -> None:
    assert [path for path, node in FIELDS.items() if node.get("nullable")] == []
    assert [path for path, node in FIELDS.items() if path.startswith("status.") and "default" in node] == []


def test_the_columns_that_are_always_shown_are_few_and_none_reads_a_position_in_a_list() -> None:
    assert len([name for name, _, _, priority in COLUMNS if not priority]) <= 5
    assert [path for _, _, path, _ in COLUMNS if "[" in path] == []


@pytest.mark.parametrize("path", sorted(LIBRARY_VALUES | DECIMALS | {"status.checkpoint.saveSeconds"}))
def test_the_record_has_each_difference(path: str) -> None:
    assert f"`{path.partition('.')[2]}`" in RECORD.read_text(encoding="utf-8")
