"""Whole jobs of DPO and KTO, from rows to a verified result, and chains that continue an adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from published_result import find_result_faults
from safetensors.torch import load_file, save_file
from training_bench import HYPERPARAMETERS, Bench, as_parent, preference_rows
from transformers import AutoModelForCausalLM

from finetune_api.handoff import ExitCode, Report
from finetune_api.status import PublishedJob
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import TrainerError
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.inputs import load_inputs
from finetune_trainer.publishing.lineage import digest_folder
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.samples import EncodedPair

MORE_PAIRS = [("DPO", "QLoRA"), ("DPO", "Full"), ("KTO", "LoRA"), ("KTO", "Full")]

MakeBench = Callable[..., Bench]
FEW_STEPS = HYPERPARAMETERS | {"maxSteps": 6, "lrSchedulerType": "constant", "warmupSteps": 0}


def make_job(make_bench: MakeBench, objective: str, method: str = "LoRA", **blocks: Any) -> Bench:
    bench = make_bench(
        method, **{"objective": objective, "hyperparameters": FEW_STEPS, "evaluation": {"steps": 3}} | blocks
    )
    bench.rows = preference_rows(60)
    return bench


@pytest.fixture(scope="module")
def parent(make_bench: MakeBench) -> tuple[Bench, PublishedJob]:
    """A supervised job whose adapter is continued; of another rank than the default."""
    bench = make_bench("LoRA", tuning={"method": "LoRA", "lora": {"rank": 8, "targetModules": ["q_proj", "o_proj"]}})
    return bench, as_parent(bench, bench.run())


def make_child(
    make_bench: MakeBench, parent: tuple[Bench, PublishedJob], objective: str, tuning: dict[str, Any]
) -> Bench:
    bench = make_job(make_bench, objective, tuning=tuning, lineage={"parentRef": {"name": "parent"}})
    bench.elsewhere = {"s3://bucket/parent": parent[0].output}
    bench.parent = parent[1]
    return bench


def refusal(bench: Bench) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        bench.prepare()
    assert not (bench.output / "owner.json").exists()
    return caught.value


def metrics_lines(bench: Bench, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        ("DPO", "LoRA"),
        *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in [("KTO", "QLoRA"), *MORE_PAIRS]),
    ],
)
def test_a_job_learns_to_prefer_and_publishes_what_it_learnt(
    make_bench: MakeBench, capsys: pytest.CaptureFixture[str], objective: str, method: str
) -> None:
    bench = make_job(make_bench, objective, method, output={"uri": "s3://bucket/output", "merge": "FP32"})
    report = bench.run()
    metrics = report.metrics
    assert metrics
    assert metrics.eval_loss is not None
    assert metrics.baseline_eval_loss is not None
    assert metrics.reward_margin is not None
    assert metrics.eval_loss == metrics.best_eval_loss < metrics.baseline_eval_loss
    assert metrics.reward_margin > 0.05
    assert (metrics.reward_accuracy is not None) == (objective == "DPO")
    assert [line["step"] for line in metrics_lines(bench, "eval")] == [0, 3, 6]
    assert all("reward_margin" in line for line in metrics_lines(bench, "eval"))
    assert find_result_faults("s3://bucket/output", bench.storage) == []
    assert "finetune_report.md" in digest_folder(bench.output)
    assert " INFO Reference" in capsys.readouterr().out


def test_the_published_adapter_has_the_reported_margin(make_bench: MakeBench) -> None:
    bench = make_job(make_bench, "DPO")
    config = bench.prepare()
    report = bench.train(config)
    run = RunContext(config, bench.storage, bench.root / "again", Reporter("u"), StopFlag())
    pairs = load_inputs(run).validation
    base = AutoModelForCausalLM.from_pretrained(bench.model)
    model = PeftModel.from_pretrained(base, str(bench.output / "adapter")).eval()
    margins = []
    for pair in pairs:
        assert isinstance(pair, EncodedPair)
        tuned = log_probability(model, pair.prompt_ids, pair.chosen_ids) - log_probability(
            model, pair.prompt_ids, pair.rejected_ids
        )
        with model.disable_adapter():
            before = log_probability(model, pair.prompt_ids, pair.chosen_ids) - log_probability(
                model, pair.prompt_ids, pair.rejected_ids
            )
        margins.append(0.1 * (tuned - before))
    assert report.metrics
    assert sum(margins) / len(margins) == pytest.approx(report.metrics.reward_margin, abs=1e-3)


def log_probability(model: PeftModel, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return float(sum(logits[len(prompt) + at - 1, token] for at, token in enumerate(answer)))


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        ("DPO", "QLoRA"),
        *(
            pytest.param(*pair, marks=pytest.mark.nightly)
            for pair in [("Chat", "LoRA"), ("Chat", "QLoRA"), ("DPO", "LoRA"), ("KTO", "LoRA"), ("KTO", "QLoRA")]
        ),
    ],
)
def test_a_job_continues_its_parents_adapter(
    make_bench: MakeBench, parent: tuple[Bench, PublishedJob], objective: str, method: str
) -> None:
    bench = make_child(make_bench, parent, objective, {"method": method, "initialAdapter": {"fromParent": True}})
    report = bench.run()
    resolved = report.resolved
    assert resolved
    assert (resolved.lora_rank, resolved.target_modules) == (8, ["o_proj", "q_proj"])
    assert report.lineage
    assert report.lineage.parent == parent[1]
    weights = parent[0].output / "adapter" / "adapter_model.safetensors"
    assert report.lineage.initial_adapter_sha256 == digest_folder(weights.parent)[weights.name]
    lineage = json.loads((bench.output / "lineage.json").read_text(encoding="utf-8"))
    assert lineage["initialAdapter"]["uri"] == "s3://bucket/parent/adapter"
    assert lineage["parent"]["manifestSHA256"] == parent[1].manifest_sha256
    before, after = load_file(weights), load_file(bench.output / "adapter" / weights.name)
    assert before.keys() == after.keys()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.2, "the training starts from the parent's weights, not from new ones"
    text = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "| initial adapter" in text
    assert "base model " not in text.partition("## Recommendations")[0]
    first = metrics_lines(bench, "eval")[0]
    if objective != "Chat":
        assert first["reward_margin"] == pytest.approx(0, abs=0.01)
    elif method == "LoRA":
        learnt = parent[0].reporter.snapshot().metrics
        assert first["loss"] == pytest.approx(learnt.eval_loss, abs=0.05)
        assert (learnt.baseline_eval_loss or 0) > (learnt.eval_loss or 0) + 0.2


@pytest.mark.nightly
def test_a_full_parent_has_no_adapter_to_continue(make_bench: MakeBench) -> None:
    full = make_bench("Full", hyperparameters=FEW_STEPS | {"maxSteps": 1})
    family = (full, as_parent(full, full.run()))
    bench = make_child(make_bench, family, "DPO", {"method": "LoRA", "initialAdapter": {"fromParent": True}})
    error = refusal(bench)
    assert error.code is ExitCode.INVALID_CONFIG
    assert "parent published no adapter" in error.message


def test_an_adapter_without_some_of_the_models_modules_is_refused_before_training(
    make_bench: MakeBench, parent: tuple[Bench, PublishedJob], tmp_path: Path
) -> None:
    """PEFT checks names that preflight does not find, and layers that the adapter omits."""
    folder = copy_adapter(parent[0], tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    some = {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    save_file(some, folder / "adapter_model.safetensors")
    bench = make_job(make_bench, "DPO", tuning={"method": "LoRA", "initialAdapter": {"uri": "s3://bucket/adapter"}})
    bench.elsewhere = {"s3://bucket/adapter": folder}
    config = bench.prepare()
    with pytest.raises(TrainerError, match="have no counterpart") as caught:
        bench.train(config)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def copy_adapter(bench: Bench, directory: Path) -> Path:
    folder = directory / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((bench.output / "adapter" / name).read_bytes())
    return folder


def test_an_adapter_named_by_uri_is_continued(
    make_bench: MakeBench, parent: tuple[Bench, PublishedJob], tmp_path: Path
) -> None:
    bench = make_job(
        make_bench,
        "DPO",
        tuning={
            "method": "LoRA",
            "initialAdapter": {"uri": "s3://bucket/adapter"},
            "lora": {"rank": 8, "targetModules": ["q_proj", "o_proj"]},
        },
    )
    bench.elsewhere = {"s3://bucket/adapter": copy_adapter(parent[0], tmp_path)}
    report: Report = bench.run()
    assert report.resolved
    assert report.resolved.lora_rank == 8
    assert report.lineage
    assert report.lineage.parent is None
    assert report.lineage.initial_adapter_sha256
