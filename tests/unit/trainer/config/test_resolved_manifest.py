from typing import Any

import yaml

from finetune_api.handoff import JobConfig, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_trainer.config.resolved_manifest import config_yaml

OLD, NEW = "a" * 40, "b" * 40


def published(dataset: dict[str, Any], read: list[str]) -> dict[str, Any]:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "hf://acme/tiny", "revision": OLD},
            "dataset": dataset,
            "output": {"uri": "s3://bucket/out"},
        }
    )
    config = JobConfig(namespace="team", name="job", uid="u", config_sha256=config_sha256(spec), spec=spec)
    found: dict[str, Any] = yaml.safe_load(config_yaml(config, Resolved(), read))["spec"]
    return found


def test_rows_of_a_hub_are_named_by_the_commit_that_was_read() -> None:
    spec = published(
        {
            "train": {"uri": "hf://datasets/acme/qa", "revision": "v1"},
            "validation": {"uri": "hf://datasets/acme/qa/test.jsonl"},
        },
        [f"hf://datasets/acme/qa@{OLD}/train.jsonl", f"hf://datasets/acme/qa@{NEW}/test.jsonl"],
    )
    assert spec["model"]["revision"] == OLD
    assert spec["dataset"]["train"] == {"uri": "hf://datasets/acme/qa", "revision": OLD}
    assert spec["dataset"]["validation"] == {"uri": "hf://datasets/acme/qa/test.jsonl", "revision": NEW}


def test_rows_of_a_bucket_stay_as_they_are() -> None:
    dataset = {"train": {"uri": "s3://bucket/rows/"}, "validation": {"uri": "hf://datasets/acme/qa", "revision": "v1"}}
    spec = published(dataset, ["s3://bucket/rows/1.jsonl"])
    assert spec["dataset"]["train"] == dataset["train"]
    assert spec["dataset"]["validation"] == dataset["validation"]
