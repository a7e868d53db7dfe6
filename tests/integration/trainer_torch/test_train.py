import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from training_bench import Bench
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from finetune_api.handoff import Outcome, Report
from finetune_api.status import Metrics
from finetune_trainer.data.checks.output import read_accepted
from finetune_trainer.models.loading import load_quantised
from finetune_trainer.tokenization.labeler import Encoded, Labeler

Published = tuple[Bench, Report]


def held_out(bench: Bench) -> list[Encoded]:
    labeler = Labeler(bench.model)
    rows = read_accepted(bench.output / "dataset" / "validation.jsonl")
    return [sample for row in rows for sample in labeler.encode(row, "Instruction", 128)]


def loss_of(model: PreTrainedModel, samples: list[Encoded]) -> float:
    """Return the held-out loss by transformers alone: one row at a time, summed over tokens."""
    total, tokens = 0.0, 0
    model.eval()
    for sample in samples:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sample.input_ids])).logits[0, :-1]
        labels = torch.tensor(sample.labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        tokens += int((labels != -100).sum())
    return total / tokens


def base_of(bench: Bench, report: Report) -> PreTrainedModel:
    if report.resolved and report.resolved.method == "QLoRA":
        return load_quantised(bench.model, torch.float32, True, torch.device("cpu"))
    return AutoModelForCausalLM.from_pretrained(bench.model)


def metrics_of(report: Report) -> Metrics:
    assert report.metrics
    return report.metrics


def test_training_lowers_the_loss_on_held_out_rows(published: Published) -> None:
    _, report = published
    metrics = metrics_of(report)
    assert report.outcome is Outcome.PUBLISHED
    assert metrics.eval_loss is not None
    assert metrics.baseline_eval_loss is not None
    assert metrics.eval_loss < metrics.baseline_eval_loss - 0.2
    assert metrics.eval_loss == metrics.best_eval_loss


def test_the_baseline_is_the_loss_of_the_base_model(published: Published) -> None:
    bench, report = published
    loss = loss_of(base_of(bench, report), held_out(bench))
    assert loss == pytest.approx(metrics_of(report).baseline_eval_loss, abs=2e-4)


def test_the_published_weights_give_the_reported_loss(published: Published) -> None:
    bench, report = published
    if (bench.output / "adapter").exists():
        model = PeftModel.from_pretrained(base_of(bench, report), str(bench.output / "adapter"))
    else:
        model = AutoModelForCausalLM.from_pretrained(bench.output / "merged")
    assert loss_of(model, held_out(bench)) == pytest.approx(metrics_of(report).eval_loss, abs=2e-4)


def test_the_merged_model_answers_as_base_and_adapter(published: Published) -> None:
    bench, report = published
    trained = bench.output / "adapter"
    if not trained.exists():  # Full has no adapter: what was trained is what is published
        assert report.artifacts is not None
        assert report.artifacts.adapter_uri is None
        return
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.model), str(trained)).eval()
    merged = AutoModelForCausalLM.from_pretrained(bench.output / "merged").eval()
    ids = torch.tensor([held_out(bench)[0].input_ids])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_result_loads_with_its_own_tokenizer_and_template(published: Published) -> None:
    bench, _ = published
    folder = next(bench.output / name for name in ("adapter", "merged") if (bench.output / name).exists())
    chat = [{"role": "user", "content": "What is the colour of sky 7?"}]
    ours, base = (AutoTokenizer.from_pretrained(path) for path in (folder, bench.model))
    assert ours.apply_chat_template(chat, tokenize=False) == base.apply_chat_template(chat, tokenize=False)
    assert ours("sky").input_ids == base("sky").input_ids


def test_the_result_names_the_tokens_that_end_an_answer(published: Published) -> None:
    bench, _ = published
    for folder in bench.output.glob("*/chat_template.jinja"):
        assert GenerationConfig.from_pretrained(folder.parent).eos_token_id == [2]


def test_nothing_published_names_a_path_of_this_machine(published: Published) -> None:
    bench, _ = published
    texts = [path for path in bench.output.rglob("*") if path.suffix in {".json", ".jsonl", ".md", ".yaml", ".jinja"}]
    assert len(texts) > 8
    assert [path.name for path in texts if str(bench.root.parent) in path.read_text(encoding="utf-8")] == []


def test_the_adapter_names_its_base_by_uri_and_has_only_safetensors(published: Published) -> None:
    bench, report = published
    adapter = bench.output / "adapter"
    if not adapter.exists():
        assert report.artifacts
        assert report.artifacts.adapter_uri is None
        return
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "s3://bucket/model"
    assert not list(bench.output.rglob("*.bin"))
    weights = load_file(adapter / "adapter_model.safetensors")
    assert len(weights) == 2 * 2 * 7  # two factors, two layers, seven linear modules
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_the_resolved_settings_are_what_ran_on_this_device(published: Published) -> None:
    _, report = published
    resolved = report.resolved
    assert resolved
    assert (resolved.precision, resolved.optim) == ("FP32", "adamw_torch_fused")
    if resolved.method != "Full":
        assert resolved.target_modules == sorted(
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        )


def test_the_report_shows_the_figures_of_the_run(published: Published) -> None:
    bench, report = published
    text = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    metrics = metrics_of(report)
    for loss in (metrics.baseline_eval_loss, metrics.eval_loss):
        assert loss is not None
        assert f"| {loss:.4g}" in text
    assert "120 rows read, 120 accepted, 0 skipped" in text
    assert "## Answers before and after" in text
    assert "loaded it from its files and compared it with its source" in text


def test_every_step_and_evaluation_is_recorded(published: Published) -> None:
    bench, report = published
    lines = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 21))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [0, 10, 20]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert min(line["loss"] for line in lines if line["kind"] == "eval") == pytest.approx(
        metrics_of(report).best_eval_loss, abs=1e-4
    )


def test_lineage_holds_the_digests_of_model_and_rows(published: Published) -> None:
    bench, _ = published
    lineage = json.loads((bench.output / "lineage.json").read_text(encoding="utf-8"))
    weights = hashlib.sha256((bench.model / "model.safetensors").read_bytes()).hexdigest()
    assert lineage["baseModel"]["files"]["model.safetensors"] == weights
    rows = hashlib.sha256((bench.output / "dataset" / "train.jsonl").read_bytes()).hexdigest()
    assert rows in {file["sha256"] for file in lineage["dataset"]["files"]}


def test_progress_ended_at_the_last_step(published: Published) -> None:
    bench, report = published
    snapshot = bench.reporter.snapshot()
    assert (snapshot.progress.step, snapshot.progress.total_steps, snapshot.progress.percent) == (20, 20, 100)
    assert report.last_step == 20
    assert snapshot.metrics.trainable_parameters


def test_the_manifest_covers_the_deliverables(published: Published) -> None:
    bench, _ = published
    manifest = json.loads((bench.output / "manifest.json").read_text(encoding="utf-8"))
    names = {file["path"] for file in manifest["files"]}
    wanted = {
        "finetune_report.md",
        "report.html",
        "curves.png",
        "lengths.png",
        "metrics.jsonl",
        "lineage.json",
        "finetune_config.yaml",
    }
    assert wanted <= names
    assert Path("merged/model.safetensors").as_posix() in names
