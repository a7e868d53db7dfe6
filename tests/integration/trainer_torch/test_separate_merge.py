"""The trainer stores a completed training and ends; another pod merges it, validates and publishes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_bench import HYPERPARAMETERS, Bench, preference_rows

from finetune_api.handoff import ExitCode, JobConfig, Outcome, Report
from finetune_trainer.commands.verify import verify_result
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import TrainerError
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.train import finish_training
from finetune_trainer.storage.protocol import sha256_file

MakeBench = Callable[..., Bench]
SHORT = {"hyperparameters": HYPERPARAMETERS | {"maxSteps": 6}}
MERGED = {"output": {"uri": "s3://bucket/output", "merge": "FP32"}}


def store(bench: Bench) -> tuple[JobConfig, Report]:
    """Train, as the operator requests it of a pod that holds several GPUs."""
    config = bench.prepare().model_copy(update={"separate_merge": True})
    return config, bench.train(config)


def finish(bench: Bench, config: JobConfig) -> Report:
    """Finish in another pod, which has an empty workspace."""
    workspace = bench.root / "workspace-2"
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir()
    bench.reporter = Reporter("u-1")
    return finish_training(RunContext(config, bench.storage, workspace, bench.reporter, bench.stop))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != "README.md"}


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["QLoRA", "Full"])
def test_a_merge_in_another_pod_publishes_what_the_trainer_would_have(make_bench: MakeBench, method: str) -> None:
    beside, bench = make_bench(method, **SHORT, **MERGED), make_bench(method, **SHORT, **MERGED)
    expected = beside.run()
    config, stored = store(bench)
    assert (stored.outcome, stored.last_step, stored.artifacts) == (Outcome.TRAINED, 6, None)
    assert stored.checkpoint
    assert stored.checkpoint.uri == "s3://bucket/output/checkpoints/trained"
    assert stored.checkpoint.sha256 == sha256_file(bench.output / "checkpoints" / "trained" / "manifest.json")
    assert not (bench.output / "manifest.json").exists()
    assert not (bench.output / "merged").exists()

    report = finish(bench, config)
    assert (report.outcome, report.last_step, report.message) == (Outcome.PUBLISHED, 6, expected.message)
    assert report.evaluation
    assert report.evaluation.merge_gate == "Passed"
    assert digests(bench.output / "merged") == digests(beside.output / "merged")
    assert names(bench.output) == names(beside.output)
    assert report.resolved == expected.resolved
    assert report.metrics
    assert expected.metrics
    assert (report.metrics.eval_loss, report.metrics.trainable_parameters) == (
        expected.metrics.eval_loss,
        expected.metrics.trainable_parameters,
    )
    assert report.early_stopping == expected.early_stopping
    assert verify_result("s3://bucket/output", bench.storage).faults == []
    assert not list((bench.output / "checkpoints").rglob("*.*"))


def test_a_merge_shows_the_answers_of_the_training_although_the_prompts_were_edited(make_bench: MakeBench) -> None:
    bench = make_bench("LoRA", checkpoint={"keep": 1}, **SHORT, **MERGED)
    bench.spec["evaluation"] = bench.spec["evaluation"] | {"steps": 5}
    config, _ = store(bench)
    bench.spec["evaluation"] = bench.spec["evaluation"] | {"prompts": [{"prompt": "Another?"}, {"prompt": "A third?"}]}
    report = finish(bench, config.model_copy(update={"spec": bench.config().spec}))
    assert report.outcome is Outcome.PUBLISHED
    assert report.artifacts
    (kept,) = report.artifacts.kept_checkpoints or []
    folder = bench.output / "kept-checkpoints" / f"step-{kept.step:06d}"
    assert (folder / "adapter_model.safetensors").is_file()
    page = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "What is the colour of sky 7?" in page
    assert "Another?" not in page


def test_an_adapter_alone_is_published_by_the_trainer(make_bench: MakeBench) -> None:
    _, report = store(make_bench("LoRA", **SHORT))
    assert report.outcome is Outcome.PUBLISHED


def test_a_reward_model_is_saved_in_another_pod(make_bench: MakeBench) -> None:
    bench = make_bench("Full", objective="RewardModel", evaluation={"steps": 5}, **SHORT)
    bench.rows = preference_rows(60)
    config, stored = store(bench)
    assert stored.outcome is Outcome.TRAINED
    report = finish(bench, config)
    assert report.outcome is Outcome.PUBLISHED
    assert report.artifacts
    assert report.artifacts.merged_uri == "s3://bucket/output/merged"


def test_a_stored_training_that_is_incomplete_or_another_jobs_is_not_published(make_bench: MakeBench) -> None:
    bench = make_bench("LoRA", **SHORT, **MERGED)
    config, _ = store(bench)
    other = config.model_copy(update={"config_sha256": "f" * 64})
    with pytest.raises(TrainerError, match="its spec differs") as error:
        finish(bench, other)
    assert error.value.code is ExitCode.OUTPUT_CONFLICT
    weights = bench.output / "checkpoints" / "trained" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(TrainerError, match=r"differs from its SHA-256 in the manifest.*Recreate the job") as error:
        finish(bench, config)
    assert error.value.code is ExitCode.STORAGE_UNAVAILABLE
    assert not (bench.output / "manifest.json").exists()


@pytest.mark.nightly
def test_the_report_names_the_device_that_trained(make_bench: MakeBench) -> None:
    bench = make_bench("LoRA", **SHORT, **MERGED)
    config, _ = store(bench)
    path = bench.output / "checkpoints" / "trained"
    figures: dict[str, Any] = json.loads((path / "trained.json").read_text())
    assert figures["machine"]["device"]
    assert figures["seconds"] > 0
    report = finish(bench, config)
    lineage = json.loads((bench.output / "lineage.json").read_text())
    assert lineage["trainer"]["device"] == figures["machine"]["device"]
    assert report.resumed_from_step == 6
