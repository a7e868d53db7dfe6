"""Every rule of the CRD, once accepted and once refused by a real API server, with its message and the field's path."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from finetune_api import names
from finetune_api.crd import build_crd

Spec = dict[str, Any]

S3 = "must be s3://bucket/path"
URI = "a path segment"
LORA = "lora has no effect with method Full"
QUANTIZATION = "quantization needs method QLoRA or Auto"
VALIDATION = "give either validation or validationSplitPercent"
LENGTH = "give at most one of numTrainEpochs and maxSteps"
WARMUP = "warmupSteps is a fraction"
KEYS = "each key must match"
EARLY = "earlyStopping needs held-out rows"

BASE: Spec = {
    "objective": "Chat",
    "model": {"uri": "s3://models/base"},
    "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
    "output": {"uri": "s3://models/out"},
}
SPLIT = {"dataset": {"train": {"uri": "s3://data/train.jsonl"}, "validationSplitPercent": 10}}
FILE = {"dataset": {"train": {"uri": "s3://data/train.jsonl"}, "validation": {"uri": "s3://data/val.jsonl"}}}

AT_CREATION = [
    (S3, {"model": {"uri": "s3://models/a b/c"}}, {"model": {"uri": "https://example.com/model"}}, "spec.model.uri"),
    (S3, {"output": {"uri": "s3://abc/x"}}, {"output": {"uri": "s3://ab/x"}}, "spec.output.uri"),
    (URI, {"model": {"uri": "s3://models/a..b"}}, {"model": {"uri": "s3://models/../b"}}, "spec.model.uri"),
    (URI, {"output": {"uri": "s3://models/x/"}}, {"output": {"uri": "s3://models/x/.."}}, "spec.output.uri"),
    (
        LORA,
        {"tuning": {"method": "LoRA", "lora": {"rank": 8}}},
        {"tuning": {"method": "Full", "lora": {}}},
        "spec.tuning.lora",
    ),
    (
        QUANTIZATION,
        {"tuning": {"method": "QLoRA", "quantization": {"doubleQuant": False}}},
        {"tuning": {"method": "LoRA", "quantization": {}}},
        "spec.tuning.quantization",
    ),
    (
        VALIDATION,
        FILE,
        {"dataset": FILE["dataset"] | {"validationSplitPercent": 5}},
        "spec.dataset.validationSplitPercent",
    ),
    (
        LENGTH,
        {"hyperparameters": {"maxSteps": 10}},
        {"hyperparameters": {"maxSteps": 10, "numTrainEpochs": 1}},
        "spec.hyperparameters.maxSteps",
    ),
    (
        WARMUP,
        {"hyperparameters": {"warmupSteps": 5}},
        {"hyperparameters": {"warmupSteps": 5.5}},
        "spec.hyperparameters.warmupSteps",
    ),
    (
        KEYS,
        {"resources": {"requests": {"cpu": 4, "example.com/gpu": "1", "memory": "24Gi"}}},
        {"resources": {"requests": {"a b": "1"}}},
        "spec.resources.requests",
    ),
    (EARLY, SPLIT | {"earlyStopping": {"patience": 2}}, {"earlyStopping": {"patience": 2}}, "spec.earlyStopping"),
]
CHANGES = {
    "objective": "Instruction",
    "model": {"uri": "s3://models/other"},
    "tuning": {"method": "LoRA"},
    "dataset": SPLIT["dataset"] | {"maxSamples": 5},
    "hyperparameters": {"maxSteps": 7},
    "evaluation": {"steps": 3},
    "output": {"uri": "s3://models/elsewhere"},
    "earlyStopping": {"patience": 9},
}
REFUSED_BY_SCHEMA = [
    ({"objective": "Telepathy"}, "spec.objective"),
    ({"model": {"uri": "s3://models"}}, "spec.model.uri"),
    ({"tuning": {"lora": {"rank": 0}}}, "spec.tuning.lora.rank"),
    ({"hyperparameters": {"learningRate": 0}}, "spec.hyperparameters.learningRate"),
    ({"hyperparameters": {"learningRate": "fast"}}, "spec.hyperparameters.learningRate"),
    ({"storage": {"endpoint": "file:///etc/passwd"}}, "spec.storage.endpoint"),
    ({"storage": {"endpoint": "http://user:secret@minio:9000"}}, "spec.storage.endpoint"),
    ({"resources": {"requests": {"memory": "lots"}}}, "spec.resources.requests"),
    ({"dataset": {"train": {"uri": "s3://data/x", "sha256": "abc"}}}, "spec.dataset.train.sha256"),
]
UNKNOWN_FIELDS = [
    ({"learningRate": 1e-4}, "spec.learningRate"),
    ({"hyperparameters": {"learning_rate": 1e-4}}, "spec.hyperparameters.learning_rate"),
    ({"hyperparameters": {"epochs": 1}}, "spec.hyperparameters.epochs"),
    ({"tuning": {"lora": {"r": 8}}}, "spec.tuning.lora.r"),
]


@pytest.fixture(scope="module")
def jobs(control_plane: Path) -> Iterator["Jobs"]:
    with config.new_client_from_config(str(control_plane)) as api:
        yield Jobs(client.CustomObjectsApi(api))


class Jobs:
    """FineTuneJobs of one namespace, as a user applies them."""

    def __init__(self, api: client.CustomObjectsApi) -> None:
        self.api = api
        self.created = 0

    def create(self, spec: Spec, *, dry_run: bool = True) -> dict[str, Any]:
        self.created += 1
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": f"rule-{self.created}"},
            "spec": spec,
        }
        extra = {"dry_run": "All"} if dry_run else {}
        return self.api.create_namespaced_custom_object(
            names.GROUP, names.VERSION, "default", names.PLURAL, body, field_validation="Strict", **extra
        )

    def replace(self, stored: dict[str, Any], spec: Spec) -> dict[str, Any]:
        body = {key: stored[key] for key in ("apiVersion", "kind", "metadata")} | {"spec": spec}
        return self.api.replace_namespaced_custom_object(
            names.GROUP, names.VERSION, "default", names.PLURAL, stored["metadata"]["name"], body, dry_run="All"
        )

    def refusal(self, spec: Spec) -> str:
        with pytest.raises(client.ApiException) as caught:
            self.create(spec)
        return said(caught.value)


def said(error: client.ApiException) -> str:
    return str(json.loads(error.body)["message"])


def all_rules(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for rule in node.get("x-kubernetes-validations", []):
            yield rule["message"]
        for child in node.values():
            yield from all_rules(child)


@pytest.mark.parametrize(("message", "good", "bad", "path"), AT_CREATION)
def test_a_rule_accepts_the_right_spec_and_names_field_and_fix_for_the_wrong_one(
    jobs: Jobs, message: str, good: Spec, bad: Spec, path: str
) -> None:
    jobs.create(BASE | good)
    refusal = jobs.refusal(BASE | bad)
    assert message in refusal
    assert path in refusal


def test_every_rule_of_the_crd_is_in_one_of_these_tables() -> None:
    tested = [message for message, *_ in AT_CREATION] + [f"{name} is fixed when the job is created" for name in CHANGES]
    untested = [message for message in all_rules(build_crd()) if not any(message.startswith(one) for one in tested)]
    assert untested == []


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_a_field_that_is_fixed_at_creation_cannot_change_but_others_can(jobs: Jobs, field: str) -> None:
    stored = jobs.create(BASE | SPLIT | {"earlyStopping": {"patience": 3}}, dry_run=False)
    jobs.replace(stored, stored["spec"] | {"backoffLimit": 7})
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, stored["spec"] | {field: CHANGES[field]})
    assert f"{field} is fixed when the job is created" in said(caught.value)
    assert f"spec.{field}" in said(caught.value)


@pytest.mark.parametrize("before", [{}, {"earlyStopping": {"patience": 3}}], ids=["added", "removed"])
def test_an_optional_block_can_be_neither_added_nor_removed(jobs: Jobs, before: Spec) -> None:
    stored = jobs.create(BASE | SPLIT | before, dry_run=False)
    after = copy.deepcopy(stored["spec"])
    if before:
        del after["earlyStopping"]
    else:
        after["earlyStopping"] = {"patience": 3}
    with pytest.raises(client.ApiException) as caught:
        jobs.replace(stored, after)
    assert "earlyStopping is fixed when the job is created" in said(caught.value)


@pytest.mark.parametrize(("patch", "path"), REFUSED_BY_SCHEMA)
def test_a_value_out_of_bounds_is_refused_with_its_path(jobs: Jobs, patch: Spec, path: str) -> None:
    assert path in jobs.refusal(BASE | patch)


@pytest.mark.parametrize(("patch", "path"), UNKNOWN_FIELDS)
def test_a_misspelt_field_is_refused_by_its_path(jobs: Jobs, patch: Spec, path: str) -> None:
    refusal = jobs.refusal(BASE | patch)
    assert "unknown field" in refusal
    assert path in refusal


def test_the_smallest_job_gets_the_documented_defaults(jobs: Jobs) -> None:
    stored = jobs.create(BASE, dry_run=False)
    assert stored["spec"]["tuning"] == {"method": "Auto"}
    assert stored["spec"]["hyperparameters"] == {"maxLength": 2048, "precision": "Auto", "seed": 42}
    assert stored["status"] == {"observedGeneration": -1}


def test_applying_the_defaulted_job_again_changes_nothing(jobs: Jobs) -> None:
    stored = jobs.create(BASE, dry_run=False)
    again = jobs.replace(stored, BASE)
    assert again["metadata"]["generation"] == stored["metadata"]["generation"]
    assert again["spec"] == stored["spec"]
