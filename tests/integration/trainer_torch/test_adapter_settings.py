"""DoRA, LoRA+, first values and excluded modules, each against its formula."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import CPU, make_settings
from safetensors.torch import load_file, save_file
from trainer_bench import KeepGradients, make_trainer, weights_of
from training_bench import HYPERPARAMETERS, Bench

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapter_check import find_adapter_faults
from finetune_trainer.models.loading import load_for_training

MakeBench = Callable[..., Bench]
SHORT = HYPERPARAMETERS | {"maxSteps": 4}
LAYER = "model.layers.0.self_attn.q_proj"
ADAPTED = f"base_model.model.{LAYER}"


def run(make_bench: MakeBench, method: str = "LoRA", **lora: Any) -> Bench:
    bench = make_bench(
        method,
        tuning={"method": method, "lora": lora},
        hyperparameters=SHORT,
        output={"uri": "s3://bucket/output", "merge": "FP32"},
    )
    bench.run()
    return bench


def test_the_merged_weights_of_dora_are_those_of_its_formula(make_bench: MakeBench) -> None:
    """The magnitude of each output times the direction of base and update: `m (W + s B A) / ||W + s B A||`."""
    bench = run(make_bench, useDora=True, rank=8, alpha=16)
    saved = load_file(bench.output / "adapter" / "adapter_model.safetensors")
    a, b = (saved[f"{ADAPTED}.lora_{factor}.weight"].double() for factor in "AB")
    magnitude = saved[f"{ADAPTED}.lora_magnitude_vector"].double()
    before = load_file(bench.model / "model.safetensors")[f"{LAYER}.weight"].double()
    tuned = before + 16 / 8 * b @ a
    expected = magnitude[:, None] * tuned / tuned.norm(dim=1, keepdim=True)
    merged = load_file(bench.output / "merged" / "model.safetensors")[f"{LAYER}.weight"].double()
    assert torch.allclose(merged, expected, atol=1e-6)
    assert not torch.allclose(magnitude, before.norm(dim=1), atol=1e-4), "the magnitudes are trained"
    config = (bench.output / "adapter" / "adapter_config.json").read_bytes()
    assert find_adapter_faults(bench.output / "adapter" / "adapter_model.safetensors", config, "") == []
    report = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "DoRA's magnitudes are not supported" in report


def test_dora_on_a_quantised_base_is_published_and_merged(make_bench: MakeBench) -> None:
    bench = run(make_bench, "QLoRA", useDora=True)
    assert (bench.output / "merged" / "model.safetensors").is_file()
    assert "useDora: true" in (bench.output / "finetune_config.yaml").read_text(encoding="utf-8")


def test_a_file_of_dora_without_a_magnitude_is_a_fault(tmp_path: Path, tiny_model: Path) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", use_dora=True), CPU)
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", (tmp_path / "adapter_config.json").read_bytes()
    saved = load_file(weights)
    save_file({name: one for name, one in saved.items() if name != f"{ADAPTED}.lora_magnitude_vector"}, weights)
    faults = find_adapter_faults(weights, config, "")
    assert f"1 modules lack either factors or their magnitudes: {LAYER}" in faults


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"init_lora_weights": "Gaussian"}])
def test_a_fresh_adapter_changes_nothing(tiny_model: Path, changes: dict[str, Any]) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", **changes), CPU).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            assert torch.allclose(adapted, model(ids).logits, atol=1e-5)


def test_gaussian_first_values_have_the_deviation_of_one_by_rank(tiny_model: Path) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", init_lora_weights="Gaussian", lora_rank=16), CPU)
    first = torch.cat([one.flatten() for name, one in model.named_parameters() if ".lora_A." in name])
    assert float(first.std()) == pytest.approx(1 / 16, rel=0.02)
    assert float(first.mean()) == pytest.approx(0, abs=1e-3)


def test_the_factors_b_of_lora_plus_step_by_the_ratio(tiny_model: Path, tmp_path: Path) -> None:
    """With plain gradient descent a step is the gradient times the learning rate, and for B times the ratio."""
    trainer = make_trainer(
        "Instruction", tiny_model, tmp_path, optim="sgd", learning_rate=0.01, total_steps=1, max_grad_norm=0.0,
        lora_plus_lr_ratio=16.0,
    )  # fmt: skip
    with torch.no_grad():
        for name, one in trainer.model.named_parameters():
            if ".lora_B." in name:
                one.fill_(0.01)  # otherwise the factors A have no gradient in the first step
    gradients = KeepGradients()
    trainer.add_callback(gradients)
    before = weights_of(trainer)
    trainer.train()
    for name, after in weights_of(trainer).items():
        rate = 0.01 * (16 if ".lora_B." in name else 1)
        assert torch.allclose(before[name] - after, rate * gradients.found[name], atol=1e-6), name
        assert gradients.found[name].any()
    assert trainer.lr_scheduler.get_last_lr()[0] == 0.01, "the rate that is reported"


@pytest.mark.parametrize(("excluded", "count"), [(["layers.0.self_attn.q_proj", "k_proj"], 3), (["down_proj"], 2)])
def test_excluded_modules_have_no_adapter(tiny_model: Path, excluded: list[str], count: int) -> None:
    def adapted(**changes: Any) -> set[str]:
        model = load_for_training(tiny_model, make_settings("LoRA", **changes), CPU)
        return {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}

    left_out = adapted() - adapted(exclude_modules=excluded)
    assert len(left_out) == count
    assert all(name.endswith(tuple(f".{one}" for one in excluded)) for name in left_out)


@pytest.mark.parametrize("name", ["q_prj", "embed_tokens", "proj"])
def test_a_name_that_excludes_nothing_is_refused(tiny_model: Path, name: str) -> None:
    with pytest.raises(TrainerError, match=f"excludeModules names {name}, which excludes no module") as caught:
        load_for_training(tiny_model, make_settings("LoRA", exclude_modules=[name]), CPU)
    assert caught.value.code is ExitCode.INVALID_CONFIG
