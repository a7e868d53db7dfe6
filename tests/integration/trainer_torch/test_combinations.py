"""Settings in combination: each has tests of its own, and here every pair of them is trained together."""

import json
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import Choice, cover_pairs
from tiny_model import make_tiny_model
from training_bench import Bench, make_rows, make_spec, preference_rows
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from finetune_api.handoff import Report
from finetune_api.manifest.spec_rules import broken_rules
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.commands.verify import verify_result
from finetune_trainer.errors import TrainerError

H, L, E = "hyperparameters", "tuning.lora", "evaluation"
REWARDS = [{"type": "Regex", "pattern": "[a-e]"}, {"type": "Regex", "pattern": "[s-z]", "weight": 2}]
"""Random answers differ in them."""
FACTORS: dict[str, list[dict[str, Any]]] = {
    "objective": [
        *({"objective": name} for name in ("Instruction", "Chat", "DomainAdaptation", "DPO", "KTO", "RewardModel")),
        {
            "objective": "RLHF",
            "rlhf": {"rewards": REWARDS, "numGenerations": 4, "maxCompletionLength": 6},
        },
        {
            "objective": "Distillation",
            "distillation": {"teacher": {"uri": "s3://bucket/teacher"}, "maxCompletionLength": 6, "beta": 0.5},
        },
    ],
    "model": [{"": "dense"}, {"": "mixture"}],
    "method": [{"tuning.method": name} for name in ("LoRA", "QLoRA", "Full")],
    "adapter": [
        {},
        {f"{L}.useDora": True, f"{L}.useRslora": True},
        {f"{L}.initLoraWeights": "EVA", f"{L}.loraPlusLrRatio": 4},
        {f"{L}.modulesToSave": ["embed_tokens"], f"{L}.targetModules": ["q_proj", "o_proj"]},
    ],
    "optimiser": [{}, {f"{H}.optim": "adafactor"}, {f"{H}.optim": "lion_32bit", f"{H}.maxGradNorm": 0}],
    "schedule": [
        {f"{H}.warmupSteps": 1, f"{H}.lrSchedulerType": "polynomial"},
        {f"{H}.lrSchedulerType": "warmup_stable_decay", f"{H}.decaySteps": 2, f"{H}.minLrRatio": 0.1},
    ],
    "speed": [
        {},
        {f"{H}.packing": "Always", f"{H}.gradientCheckpointing": False},
        {f"{H}.neftuneNoiseAlpha": 5, f"{H}.gradientCheckpointing": True},
        {f"{H}.precision": "BF16"},
    ],
    "held out": [{"dataset.validationSplitPercent": 30}, {}],
    "evaluation": [
        {},
        {f"{E}.answers": {"match": "Exact", "rows": 20}},
        {f"{E}.steps": 2, f"{E}.baseline": False, "earlyStopping": {"patience": 1, "minDelta": 5}},
    ],
    "checkpoint": [{}, {"checkpoint.keep": 1}, {"checkpoint.resumePolicy": "Never"}],
    "output": [{}, {"output.merge": "FP32"}],
    "template": [{}, {"model.chatTemplate": {"name": "Alpaca"}}],
}
USUAL = {
    "hyperparameters": {
        "maxSteps": 4, "perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 2, "learningRate": 0.01,
        "maxLength": 128,
    },
    "evaluation": {"maxNewTokens": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    mixture = tmp_path_factory.mktemp("mixture") / "model"
    shutil.copytree(tiny_model, mixture, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(
        Qwen3MoeConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96,
            pad_token_id=2, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(mixture)  # fmt: skip
    teacher = make_tiny_model(tmp_path_factory.mktemp("teacher") / "model", seed=9)
    return {"dense": tiny_model, "mixture": mixture, "teacher": teacher}


def build(choice: Choice) -> tuple[dict[str, Any], str]:
    """Return the spec of a choice, and the name of its model."""
    spec = json.loads(json.dumps(make_spec(**USUAL, dataset={"train": {"uri": "s3://bucket/data/train.jsonl"}})))
    model = ""
    for factor, value in choice.items():
        for path, wanted in FACTORS[factor][value].items():
            *blocks, last = path.split(".")
            block = spec
            for name in blocks:
                block = block.setdefault(name, {})
            block[last] = wanted
            model = spec.pop("", model)
    return spec, model


def is_valid(choice: Choice) -> bool:
    return not broken_rules(FineTuneJobSpec.model_validate(build(choice)[0]))


def rows_of(objective: str) -> list[dict[str, object]]:
    match objective:
        case "DPO" | "RewardModel" | "KTO":
            return preference_rows(80)
        case "DomainAdaptation":
            return [{"text": f"{n}: the rose is red, and the sky is blue. " * (1 + n % 3)} for n in range(80)]
        case _:
            return make_rows(80)


def find_faults(bench: Bench, report: Report) -> list[str]:
    """Return where the published files, the report and the job's own settings disagree."""
    faults = list(verify_result("s3://bucket/output", bench.storage).faults)
    lines = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text("utf-8").splitlines()]
    last = max(line["step"] for line in lines if line["kind"] == "train")
    assert report.resolved
    stopped = report.early_stopping.stopped_at_step if report.early_stopping else None
    if not report.last_step == last == (stopped or report.resolved.total_steps):
        faults.append(f"the last step is {last}, that of the report {report.last_step}")
    resolved = report.resolved.model_dump(by_alias=True, mode="json")
    given: Mapping[str, Any] = bench.spec[H] | (bench.spec["tuning"].get("lora") or {})
    for name in resolved.keys() & given.keys() - {"packing"}:
        wanted = sorted(given[name]) if name == "targetModules" else given[name]
        if resolved[name] != wanted:
            faults.append(f"{name} is {wanted}, and {resolved[name]} in the report")
    if given.get("packing") == "Always" and not resolved["packing"]:
        faults.append("nothing is packed")
    if bench.spec["output"].get("merge") and not (bench.output / "merged").is_dir():
        faults.append(f"there is no full model: {report.message}")
    return faults


@pytest.mark.parametrize("count", [1, pytest.param(None, marks=pytest.mark.nightly)])
def test_every_pair_of_settings_that_the_rules_allow_trains_as_reported(
    models: dict[str, Path], tmp_path: Path, count: int | None
) -> None:
    problems = {}
    for number, choice in enumerate(islice(cover_pairs(FACTORS, is_valid), count)):
        spec, model = build(choice)
        bench = Bench(tmp_path / str(number), models[model], spec, rows_of(spec["objective"]))
        bench.elsewhere["s3://bucket/teacher"] = models["teacher"]
        try:
            found = find_faults(bench, bench.run())
        except TrainerError as error:
            found = [error.message]
        if found:
            problems[json.dumps(spec)] = found
        shutil.rmtree(bench.root)
    assert problems == {}
