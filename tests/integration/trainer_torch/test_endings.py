import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Params4bit
from safetensors.numpy import load_file, save_file
from stopped_training import stopped
from tiny_model import make_tiny_model
from training_bench import HYPERPARAMETERS, Bench
from waiting import wait_until

from finetune_api.handoff import ExitCode
from finetune_api.status import Resolved
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.models.adapters import target_names
from finetune_trainer.models.memory.estimate import micro_batches
from finetune_trainer.pipeline import train as story

MakeBench = Callable[..., Bench]


def test_a_plateau_stops_early_and_the_best_weights_are_published(make_bench: MakeBench) -> None:
    bench = make_bench(
        earlyStopping={"patience": 2, "minDelta": 5.0},
        evaluation={"steps": 2},
        hyperparameters=HYPERPARAMETERS | {"maxSteps": 40},
    )
    report = bench.run()
    assert report.early_stopping
    assert report.early_stopping.stopped
    assert report.early_stopping.stopped_at_step == report.last_step == 6
    assert report.metrics
    assert report.metrics.best_step == report.early_stopping.best_step
    assert "**Stopped early** at step 6" in (bench.output / "finetune_report.md").read_text(encoding="utf-8")


@pytest.mark.nightly
def test_weights_that_get_worse_again_are_not_published(make_bench: MakeBench) -> None:
    """The held-out answers are spelt like the trained ones but differ in content: the loss first falls, then rises with
    the model's confidence in wrong words; the published loss is the lowest, not the last."""
    hyperparameters = HYPERPARAMETERS | {"lrSchedulerType": "constant", "warmupSteps": 0, "packing": "Never"}
    held_out = {"uri": "s3://bucket/held-out/rows.jsonl"}
    bench = make_bench(
        "Full",
        hyperparameters=hyperparameters,
        dataset={"train": {"uri": "s3://bucket/data/train.jsonl"}, "validation": held_out},
        evaluation={"steps": 2},
    )
    bench.elsewhere["s3://bucket/held-out"] = bench.root / "held-out"
    (bench.root / "held-out").mkdir()
    rows = [{"instruction": f"Who is there, {n}?", "output": "Nobody asked a gardener."} for n in range(20)]
    (bench.root / "held-out" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    report = bench.run()
    lines = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "eval" and line["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert losses[20] > losses[best] + 0.5
    assert report.metrics
    assert report.metrics.best_step == best
    assert report.metrics.eval_loss == pytest.approx(losses[best], abs=1e-3)


@pytest.mark.nightly
def test_the_published_adapter_is_bit_for_bit_that_of_the_best_evaluation(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    """The rate is constant and so large that the loss rises after the best step; a job that ends there has the same
    weights, and so has one that is stopped between the best step and its end."""
    rate = {"lrSchedulerType": "constant", "warmupSteps": 0, "learningRate": 0.3}
    rate |= {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 2}  # to be stopped in the middle of a step
    data = {"train": {"uri": "s3://bucket/data/train.jsonl"}, "validationSplitPercent": 20}
    blocks = {"evaluation": {"steps": 1, "maxNewTokens": 1}, "earlyStopping": {"patience": 3}, "dataset": data}
    bench = make_bench(hyperparameters=HYPERPARAMETERS | rate | {"maxSteps": 12}, **blocks)
    config = bench.prepare()
    other = Bench(shutil.copytree(bench.root, tmp_path / "stopped"), bench.model, bench.spec, bench.rows)
    report = bench.train(config)
    lines = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "eval" and line["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert report.metrics
    assert report.early_stopping
    assert (report.metrics.best_step, report.early_stopping.best_step, report.last_step) == (best, best, best + 3)
    assert best > 1
    assert losses[best + 3] > losses[best]
    assert report.metrics.eval_loss == report.metrics.best_eval_loss == pytest.approx(losses[best], rel=1e-4)
    text = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert f"The published model is that of step {best} of 12, the best of {best + 3} evaluations" in text
    short = make_bench(hyperparameters=HYPERPARAMETERS | rate | {"maxSteps": best}, **blocks)
    short.run()
    stopped(other, config, best + 1, 1).train(config)
    published = [(one.output / "adapter" / "adapter_model.safetensors").read_bytes() for one in (bench, short, other)]
    assert published[0] == published[1]
    assert published[0] == published[2]


@pytest.mark.parametrize("method", ["LoRA", pytest.param("Full", marks=pytest.mark.nightly)])
def test_weights_that_no_step_has_changed_yet_are_not_published_as_the_best(make_bench: MakeBench, method: str) -> None:
    """The first step of a warm-up has the rate 0, and every later one makes this model worse."""
    rate = {"maxSteps": 3, "lrSchedulerType": "constant_with_warmup", "warmupSteps": 1, "learningRate": 1.0}
    bench = make_bench(method, evaluation={"steps": 1}, hyperparameters=HYPERPARAMETERS | rate)
    bench.spec["dataset"] = bench.spec["dataset"] | {"validationSplitPercent": 20}
    report = bench.run()
    lines = [json.loads(line) for line in (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "eval"}
    assert losses[0] == pytest.approx(losses[1])
    assert losses[1] < min(losses[2], losses[3])
    assert report.metrics
    assert report.metrics.best_step == min((2, 3), key=lambda step: losses[step])
    assert report.evaluation
    assert report.evaluation.verdict == "Worse"


def poison(bench: Bench) -> None:
    """Put a NaN into a weight that every token uses."""
    poisoned = make_tiny_model(bench.root / "poisoned")
    weights = load_file(poisoned / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, poisoned / "model.safetensors", metadata={"format": "pt"})
    bench.model = poisoned


@pytest.mark.parametrize(
    ("baseline", "told"), [(True, "evaluation loss is not finite at step 0"), (False, "loss is not finite at step 1")]
)
def test_a_loss_that_is_not_finite_is_diverged_and_nothing_is_published(
    make_bench: MakeBench, baseline: bool, told: str
) -> None:
    bench = make_bench(evaluation={"baseline": baseline})
    config = bench.prepare()
    poison(bench)
    with pytest.raises(TrainerError, match=told) as caught:
        bench.train(config)
    assert caught.value.code is ExitCode.DIVERGED
    assert not (bench.output / "manifest.json").exists()


def test_a_stop_ends_the_run_after_the_step_and_publishes_nothing(make_bench: MakeBench) -> None:
    bench = make_bench(hyperparameters=HYPERPARAMETERS | {"maxSteps": 5000}, evaluation={"steps": 5000})
    config = bench.prepare()

    def stop_in_training() -> None:
        try:
            wait_until(lambda: (bench.reporter.snapshot().progress.step or 0) >= 3, pause=0.01)
        finally:
            bench.stop.set()

    watcher = threading.Thread(target=stop_in_training)
    watcher.start()
    with pytest.raises(Stopped) as caught:
        bench.train(config)
    watcher.join()
    assert caught.value.code is ExitCode.PREEMPTED
    assert 3 <= (bench.reporter.snapshot().progress.step or 0) < 100
    assert not (bench.output / "manifest.json").exists()


def test_a_stop_before_the_first_step_is_seen(make_bench: MakeBench) -> None:
    bench = make_bench()
    config = bench.prepare()
    bench.stop.set()
    with pytest.raises(Stopped):
        bench.train(config)


def test_rows_changed_after_preflight_are_refused(make_bench: MakeBench) -> None:
    bench = make_bench()
    config = bench.prepare()
    rows = bench.output / "dataset" / "train.jsonl"
    rows.write_bytes(rows.read_bytes().replace(b"The", b"Teh", 1))
    with pytest.raises(TrainerError, match=r"dataset/train\.jsonl was changed after preflight") as caught:
        bench.train(config)
    assert caught.value.code is ExitCode.DATASET_UNUSABLE


def test_a_broken_weights_file_is_an_unavailable_model_without_a_local_path(make_bench: MakeBench) -> None:
    bench = make_bench()
    config = bench.prepare()
    bench.model = make_tiny_model(bench.root / "broken")
    (bench.model / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all")
    with pytest.raises(TrainerError) as caught:
        bench.train(config)
    assert caught.value.code is ExitCode.MODEL_UNAVAILABLE
    assert str(bench.root) not in caught.value.message


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        ({"targetModules": ["q_proj", "qkv_proj"]}, r"names qkv_proj, .* \(it has down_proj, gate_proj, "),
        ({"targetModules": ["q_proj", "input_layernorm"]}, "targetModules names input_layernorm, which is no linear"),
        ({"targetModules": ["q_proj"], "excludeModules": ["layers.0.mlp.up_proj"]}, "excludes no module with an adapt"),
    ],
)
def test_a_module_that_the_model_does_not_have_is_refused_before_a_gpu_is_held(
    make_bench: MakeBench, lora: dict[str, list[str]], problem: str
) -> None:
    with pytest.raises(TrainerError, match=problem) as caught:
        make_bench(tuning={"method": "LoRA", "lora": lora}).prepare()
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_module_is_refused_by_the_trainer_if_the_files_of_the_model_may_name_others(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_names, "EXACT_MODELS", frozenset())
    bench = make_bench(tuning={"method": "LoRA", "lora": {"targetModules": ["q_proj", "qkv_proj"]}})
    config = bench.prepare()
    with pytest.raises(TrainerError, match=r"names qkv_proj, .*of those named, the model has q_proj\)") as caught:
        bench.train(config)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_without_held_out_rows_the_last_weights_are_published(make_bench: MakeBench) -> None:
    bench = make_bench(dataset={"train": {"uri": "s3://bucket/data/train.jsonl"}})
    report = bench.run()
    assert report.metrics
    assert report.metrics.eval_loss is None
    assert report.last_step == 20
    assert "no rows were held out" in (bench.output / "finetune_report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        pytest.param(
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["allocator", "cuBLAS"],
)
def test_out_of_gpu_memory_halves_the_micro_batch_and_keeps_the_effective_batch(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    """Without a GPU: raise the library's error for batches of more than one row."""
    train_once = story.train_once

    def short_of_memory(inputs: Any, settings: Resolved, *rest: Any, **options: Any) -> Any:
        if (settings.per_device_train_batch_size or 0) > 1:
            raise error
        return train_once(inputs, settings, *rest, **options)

    monkeypatch.setattr(story, "train_once", short_of_memory)
    report = make_bench(hyperparameters=HYPERPARAMETERS | {"maxSteps": 2}).run()
    assert report.resolved
    assert report.resolved.per_device_train_batch_size == 1
    assert report.resolved.gradient_accumulation_steps == 8
    assert report.resolved.global_batch_size == 8


def test_a_gpu_too_small_for_one_row_has_its_own_exit_code(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(story, "train_once", no_memory)
    with pytest.raises(TrainerError, match="is too small for one row") as caught:
        make_bench().run()
    assert caught.value.code is ExitCode.GPU_OUT_OF_MEMORY


def test_a_gpu_too_small_for_the_weights_in_4_bits_has_its_own_exit_code(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers catches what a conversion raises, and ends with an error that refers to its log."""

    def no_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Params4bit, "_quantize", no_memory)
    with pytest.raises(TrainerError, match="is too small for one row") as caught:
        make_bench("QLoRA").run()
    assert caught.value.code is ExitCode.GPU_OUT_OF_MEMORY


@pytest.mark.parametrize(("batch", "accumulation", "tried"), [(8, 2, [8, 4, 2, 1]), (6, 1, [6, 3, 1]), (1, 16, [1])])
def test_smaller_micro_batches_divide_the_effective_batch(batch: int, accumulation: int, tried: list[int]) -> None:
    settings = Resolved(
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        global_batch_size=batch * accumulation,
    )
    found = list(micro_batches(settings))
    assert [one.per_device_train_batch_size for one in found] == tried
    for one in found:
        assert (one.per_device_train_batch_size or 0) * (one.gradient_accumulation_steps or 0) == batch * accumulation
