from typing import Any

import pytest
import yaml

from finetune_api.defaults import Facts, resolve
from finetune_api.handoff import JobConfig, config_sha256
from finetune_api.manifest.spec_rules import broken_rules
from finetune_api.manifest.yaml_document import read_documents
from finetune_api.objectives import Objective
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


def test_each_source_of_a_hub_is_named_by_its_own_commit() -> None:
    named = [{"uri": "hf://datasets/acme/qa"}, {"uri": "s3://bucket/rows/"}, {"uri": "hf://datasets/acme/more"}]
    read = [
        f"hf://datasets/acme/qa@{OLD}/a.jsonl",
        "s3://bucket/rows/1.jsonl",
        f"hf://datasets/acme/more@{NEW}/b.jsonl",
    ]
    spec = published({"train": {"sources": named}}, read)
    commits = [OLD, None, NEW]
    assert [one.get("revision") for one in spec["dataset"]["train"]["sources"]] == commits
    assert [one["uri"] for one in spec["dataset"]["train"]["sources"]] == [one["uri"] for one in named]
    again = [{"uri": "hf://datasets/acme/qa/a.csv", "revision": "v1"}, {"uri": "hf://datasets/acme/qa/b.csv"}]
    read = [f"hf://datasets/acme/qa@{OLD}/a.csv", f"hf://datasets/acme/qa@{NEW}/b.csv"]
    kept = published({"train": {"sources": again}}, read)["dataset"]["train"]["sources"]
    assert [one.get("revision") for one in kept] == ["v1", None]


def test_rows_of_a_bucket_stay_as_they_are() -> None:
    dataset = {"train": {"uri": "s3://bucket/rows/"}, "validation": {"uri": "hf://datasets/acme/qa", "revision": "v1"}}
    spec = published(dataset, ["s3://bucket/rows/1.jsonl"])
    assert spec["dataset"]["train"] == dataset["train"]
    assert spec["dataset"]["validation"] == dataset["validation"]


FACTS = Facts(parameters=1_000_000_000, train_rows=1000, validation_rows=50)
BLOCKS = {
    "RLHF": {"rlhf": {"rewards": [{"type": "Length", "targetTokens": 8}]}},
    "Distillation": {"distillation": {"teacher": {"uri": "s3://models/larger"}}},
}
STATED = {
    **{name: f"hyperparameters.{alias}" for name, alias in (
        ("num_train_epochs", "numTrainEpochs"), ("learning_rate", "learningRate"), ("warmup_steps", "warmupSteps"),
        ("lr_scheduler_type", "lrSchedulerType"), ("weight_decay", "weightDecay"), ("max_grad_norm", "maxGradNorm"),
        ("per_device_train_batch_size", "perDeviceTrainBatchSize"), ("max_length", "maxLength"), ("seed", "seed"),
        ("gradient_accumulation_steps", "gradientAccumulationSteps"), ("precision", "precision"),
        ("gradient_checkpointing", "gradientCheckpointing"),
    )},
    **{f"lora_{name}": f"tuning.lora.{name}" for name in ("rank", "alpha", "dropout")},
    "use_rslora": "tuning.lora.useRslora", "double_quant": "tuning.quantization.doubleQuant",
    "method": "tuning.method", "eval_steps": "evaluation.steps",
}  # fmt: skip
OF_OBJECTIVE = {
    "DPO": {"beta": "dpo.beta", "loss_type": "dpo.lossType"},
    "KTO": {
        "beta": "kto.beta", "desirable_weight": "kto.desirableWeight", "undesirable_weight": "kto.undesirableWeight",
    },
    "RLHF": {
        "beta": "rlhf.beta", "algorithm": "rlhf.algorithm", "num_generations": "rlhf.numGenerations",
        "max_completion_length": "rlhf.maxCompletionLength", "temperature": "rlhf.temperature",
        "loss_type": "rlhf.lossType", "scale_rewards": "rlhf.scaleRewards",
    },
    "Distillation": {
        "beta": "distillation.beta", "max_completion_length": "distillation.maxCompletionLength",
        "temperature": "distillation.temperature",
    },
}  # fmt: skip


@pytest.mark.parametrize("objective", [one.value for one in Objective])
def test_the_published_configuration_states_every_default_of_its_objective(objective: str) -> None:
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": objective,
            "model": {"uri": "s3://models/base"},
            "dataset": {"train": {"uri": "s3://data/train.jsonl"}, "validationSplitPercent": 5},
            "output": {"uri": "s3://bucket/out"},
        }
        | BLOCKS.get(objective, {})
    )
    settings = resolve(spec, FACTS)
    config = JobConfig(namespace="team", name="job", uid="u", config_sha256=config_sha256(spec), spec=spec)
    (document,) = read_documents(config_yaml(config, settings))
    for name, path in (STATED | OF_OBJECTIVE.get(objective, {})).items():
        found = document.value["spec"]
        for part in path.split("."):
            found = found[part]
        assert found == getattr(settings, name), path
    again = FineTuneJobSpec.model_validate(document.value["spec"])
    assert broken_rules(again) == []
    assert resolve(again, FACTS).model_dump(exclude={"method_reason"}) == settings.model_dump(exclude={"method_reason"})
