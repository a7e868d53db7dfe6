"""DoRA, LoRA+, first values and excluded modules, each against its formula."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_bench import CPU, make_settings
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from thin_slice import thin_slice
from trainer_bench import KeepGradients, make_trainer, weights_of
from training_bench import HYPERPARAMETERS, Bench, preference_rows

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.attach import attach_adapter
from finetune_trainer.models.adapters.check import find_adapter_faults
from finetune_trainer.models.adapters.eva import start_from_inputs
from finetune_trainer.models.adapters.saved import save_adapter
from finetune_trainer.models.adapters.starts import start_from_weights
from finetune_trainer.models.loading import load_for_training, load_plain, trained_tensors
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded

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


@pytest.mark.nightly
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


@pytest.mark.parametrize(
    "changes", [{"use_dora": True}, *({"init_lora_weights": name} for name in ("Gaussian", "PiSSA", "OLoRA"))]
)
def test_a_fresh_adapter_changes_nothing(tiny_model: Path, changes: dict[str, Any]) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", **changes), CPU).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        adapted = model(ids).logits
        with model.disable_adapter():
            assert torch.allclose(adapted, model(ids).logits, atol=1e-4)
            assert torch.equal(model(ids).logits, load_plain(tiny_model, torch.float32, CPU).eval()(ids).logits)


def test_gaussian_first_values_have_the_deviation_of_one_by_rank(tiny_model: Path) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", init_lora_weights="Gaussian", lora_rank=16), CPU)
    first = torch.cat([one.flatten() for name, one in model.named_parameters() if ".lora_A." in name])
    assert float(first.detach().std()) == pytest.approx(1 / 16, rel=0.02)
    assert float(first.detach().mean()) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("use_dora", [False, True])
def test_the_factors_b_of_lora_plus_step_by_the_ratio(tiny_model: Path, tmp_path: Path, use_dora: bool) -> None:
    """With plain gradient descent a step is the gradient times the learning rate, and for B times the ratio."""
    trainer = make_trainer(
        "Instruction", tiny_model, tmp_path, optim="sgd", learning_rate=0.01, total_steps=1, max_grad_norm=0.0,
        lora_plus_lr_ratio=16.0, use_dora=use_dora,
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


@pytest.mark.filterwarnings("ignore:You have passed exclude_modules=:UserWarning")
@pytest.mark.parametrize("name", ["q_prj", "embed_tokens", "proj"])
def test_a_name_that_excludes_nothing_is_refused(tiny_model: Path, name: str) -> None:
    with pytest.raises(TrainerError, match=f"excludeModules names {name}, which excludes no module") as caught:
        load_for_training(tiny_model, make_settings("LoRA", exclude_modules=[name]), CPU)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def first_values(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    saved = dict(model.named_parameters())
    a, b = (saved[f"{ADAPTED}.lora_{factor}.default.weight"].detach() for factor in "AB")
    return a, b


def clear_base(tiny_model: Path) -> Any:
    """Return the base with a weight whose eight largest singular values are far above the others: a random one has
    none that stand out, and the randomised decomposition would not find the same."""
    model = load_plain(tiny_model, torch.float32, CPU)
    weight = model.get_submodule(LAYER).weight
    noise = torch.Generator().manual_seed(3)
    left, right = (torch.randn(size, generator=noise) for size in ((weight.shape[0], 8), (8, weight.shape[1])))
    weight.data = 0.05 * left @ right + 1e-4 * weight.data
    return model


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_starts_from_the_largest_singular_vectors(tiny_model: Path, use_rslora: bool) -> None:
    """The scaled product is the best approximation of the weight by a matrix of that rank."""
    settings = make_settings("LoRA", init_lora_weights="PiSSA", use_rslora=use_rslora)
    base = clear_base(tiny_model)
    weight = base.get_submodule(LAYER).weight.detach().clone()
    adapted = attach_adapter(base, settings)
    start_from_weights(adapted, "PiSSA")
    a, b = first_values(adapted)
    scaling = 16 / (8**0.5 if use_rslora else 8)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = left[:, :8] * values[:8] @ right[:8]
    assert torch.allclose(scaling * b @ a, best, atol=1e-3 * float(values[0]))
    assert torch.allclose((b.T @ b).diag() * scaling, values[:8], rtol=1e-2)


@pytest.mark.parametrize(("ours", "theirs"), [("PiSSA", "pissa_niter_16"), ("OLoRA", "olora")])
def test_first_values_from_the_weights_have_the_product_of_peft(tiny_model: Path, ours: str, theirs: str) -> None:
    adapted = attach_adapter(clear_base(tiny_model), make_settings("LoRA", init_lora_weights=ours))
    start_from_weights(adapted, ours)
    a, b = first_values(adapted)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], init_lora_weights=theirs)
    model = get_peft_model(clear_base(tiny_model), config)
    other_a, other_b = first_values(model)
    assert torch.allclose(b @ a, other_b @ other_a, atol=1e-4)


@pytest.mark.parametrize("how", thin_slice(["PiSSA", "OLoRA"], "PiSSA"))
@pytest.mark.parametrize("use_rslora", thin_slice([False, True], False))
def test_an_adapter_that_started_from_the_weights_is_published_for_the_unchanged_base(
    make_bench: MakeBench, how: str, use_rslora: bool
) -> None:
    """Plain PEFT loads it on the base, with the held-out loss that the training had."""
    bench = make_bench(
        tuning={"method": "LoRA", "lora": {"initLoraWeights": how, "rank": 8, "alpha": 16, "useRslora": use_rslora}},
        hyperparameters=SHORT | {"learningRate": 1e-3},
        output={"uri": "s3://bucket/output", "merge": "FP32"},
    )
    report = bench.run()
    folder = bench.output / "adapter"
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (16, 16, True)
    assert find_adapter_faults(folder / "adapter_model.safetensors", json.dumps(config).encode(), "") == []
    saved = load_file(folder / "adapter_model.safetensors")
    a, b = (saved[f"{ADAPTED}.lora_{factor}.weight"] for factor in "AB")
    before = load_file(bench.model / "model.safetensors")[f"{LAYER}.weight"]
    merged = load_file(bench.output / "merged" / "model.safetensors")[f"{LAYER}.weight"]
    scaling = 16 / (16**0.5 if use_rslora else 16)
    assert torch.allclose(merged, before + scaling * b @ a, atol=1e-5)
    assert 0 < float((merged - before).norm()) < 0.5 * float(before.norm()), "the first values are not in it"
    assert report.metrics
    assert "held-out" in (bench.output / "finetune_report.md").read_text(encoding="utf-8")


def test_a_published_difference_computes_what_the_training_did(tiny_model: Path, tmp_path: Path) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", init_lora_weights="PiSSA"), CPU).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for one in trained_tensors(model).values():
            one.add_(0.02 * torch.randn_like(one))
    save_adapter(model, tmp_path, "s3://bucket/model")
    loaded = PeftModel.from_pretrained(load_plain(tiny_model, torch.float32, CPU), str(tmp_path)).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        trained, published = model(ids).logits, loaded(ids).logits
        with model.disable_adapter():
            assert float((trained - model(ids).logits).abs().max()) > 0.05
    assert torch.allclose(trained, published, atol=1e-3)


@pytest.mark.parametrize("how", thin_slice(["PiSSA", "OLoRA"], "PiSSA"))
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_training_on_a_bf16_base_starts_exactly_at_the_base(tiny_model: Path, how: str, dropout: float) -> None:
    """The first values are subtracted before anything is rounded to 16 bits, and of the same inputs after dropout."""
    settings = make_settings("LoRA", init_lora_weights=how, precision="BF16", lora_dropout=dropout)
    model = load_for_training(tiny_model, settings, CPU).train()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        started = model(ids).logits
        with model.disable_adapter():
            assert torch.equal(started, model(ids).logits)


def test_an_adapter_with_its_first_values_alone_is_not_published(tiny_model: Path, tmp_path: Path) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", init_lora_weights="OLoRA"), CPU)
    with pytest.raises(TrainerError, match="changes nothing"):
        save_adapter(model, tmp_path, "s3://bucket/model")
    save_adapter(model, tmp_path / "kept", "s3://bucket/model", must_change=False)
    loaded = PeftModel.from_pretrained(load_plain(tiny_model, torch.float32, CPU), str(tmp_path / "kept")).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), loaded.disable_adapter():
        base = loaded(ids).logits
    assert torch.allclose(loaded(ids).logits, base, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target_modules": ["embed_tokens"]}, "is an embedding"),
        ({"lora_rank": 100}, "the rank is 100"),
    ],
)
def test_first_values_that_the_weights_do_not_have_are_refused(
    tiny_model: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(TrainerError, match=why) as caught:
        load_for_training(tiny_model, make_settings("LoRA", init_lora_weights="PiSSA", **changes), CPU)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def rows_with(counts: list[int], vocabulary: int = 500) -> list[Encoded]:
    """Rows whose last third is trained."""
    noise, rows = random.Random(11), []
    for count in counts:
        ids = [noise.randrange(3, vocabulary) for _ in range(count)]
        trained = count // 3
        rows.append(Encoded(ids, [UNTRAINED] * (count - trained) + ids[-trained:], trained))
    return rows


def captured(tiny_model: Path, rows: list[Encoded], layer: str) -> np.ndarray:
    """The inputs of a layer of the base at the trained tokens of the rows, one row after the other."""
    model, found = load_plain(tiny_model, torch.float32, CPU).eval(), []
    model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row.input_ids]))
    return np.concatenate(
        [one[np.array(row.labels) != UNTRAINED] for one, row in zip(map(torch.Tensor.numpy, found), rows, strict=True)]
    )


def start_eva(model: Any, rows: list[Encoded], batch: int = 4) -> int:
    return start_from_inputs(model, rows, batch, lambda: None)


@pytest.mark.parametrize("layer", [LAYER, "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.k_proj"])
def test_eva_starts_from_the_principal_directions_of_a_layers_inputs(tiny_model: Path, layer: str) -> None:
    """The rows of A are the leading right-singular vectors of the centred inputs at trained tokens; B is zero."""
    rows, settings = rows_with([90, 60, 75, 120]), make_settings("LoRA", init_lora_weights="EVA")
    model = load_for_training(tiny_model, settings, CPU)
    assert start_eva(model, rows) == 1
    inputs = captured(tiny_model, rows, layer)
    _, _, right = np.linalg.svd(inputs - inputs.mean(axis=0), full_matrices=False)
    adapter = model.get_base_model().get_submodule(layer)
    a = adapter.lora_A["default"].weight.detach().numpy()
    assert a.shape[0] == 8
    assert np.abs((a * right[:8]).sum(axis=1)) == pytest.approx(np.ones(8), abs=1e-3)
    assert not adapter.lora_B["default"].weight.any()
    base = load_plain(tiny_model, torch.float32, CPU).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, base(ids).logits)


@pytest.mark.parametrize("use_dora", [False, True])
def test_eva_gives_the_same_values_again_and_each_module_its_own_rank(tiny_model: Path, use_dora: bool) -> None:
    rows = rows_with([60, 75, 90, 40, 55, 80, 65, 70])
    changes: dict[str, Any] = {"init_lora_weights": "EVA", "rank_pattern": {"down_proj": 4}, "use_dora": use_dora}
    first, second = (load_for_training(tiny_model, make_settings("LoRA", **changes), CPU) for _ in range(2))
    assert start_eva(first, rows, 2) == start_eva(second, rows, 2) > 1
    found, again = trained_tensors(first), trained_tensors(second)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert {one.shape[0] for name, one in found.items() if "down_proj.lora_A" in name} == {4}
    for name, one in found.items():
        if ".lora_A." in name:
            assert torch.allclose(one @ one.T, torch.eye(len(one)), atol=1e-4), name
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        base = load_plain(tiny_model, torch.float32, CPU).eval()(ids).logits
        assert torch.allclose(first.eval()(ids).logits, base, atol=1e-4)


def test_eva_with_too_few_tokens_or_inputs_is_refused(tiny_model: Path) -> None:
    for changes, why in (
        ({}, "needs 16 trained tokens, 2 for each of the rank, and the training rows have 4"),
        ({"lora_rank": 100}, "has only 64 inputs, and the rank is 100"),
        ({"target_modules": ["embed_tokens"]}, "is an embedding"),
    ):
        model = load_for_training(tiny_model, make_settings("LoRA", init_lora_weights="EVA", **changes), CPU)
        with pytest.raises(TrainerError, match=why) as caught:
            start_eva(model, rows_with([12]))
        assert caught.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize("method", thin_slice(["LoRA", "QLoRA"], "LoRA"))
def test_a_job_that_starts_with_eva_learns_and_publishes_a_plain_adapter(make_bench: MakeBench, method: str) -> None:
    bench = make_bench(
        method,
        tuning={"method": method, "lora": {"initLoraWeights": "EVA", "rank": 8, "alpha": 16}},
        hyperparameters=HYPERPARAMETERS,
    )
    report = bench.run()
    config = json.loads((bench.output / "adapter" / "adapter_config.json").read_bytes())
    assert (config["r"], config["rank_pattern"], config["init_lora_weights"]) == (8, {}, True)
    assert "initLoraWeights: EVA" in (bench.output / "finetune_config.yaml").read_text(encoding="utf-8")
    assert report.metrics
    assert report.metrics.best_eval_loss is not None
    assert report.metrics.baseline_eval_loss is not None
    assert report.metrics.best_eval_loss < report.metrics.baseline_eval_loss - 0.5


@pytest.mark.parametrize("objective", thin_slice(["RewardModel", "DPO"], "DPO"))
def test_a_preference_job_starts_with_eva_too(make_bench: MakeBench, objective: str) -> None:
    bench = make_bench(
        objective=objective,
        tuning={"method": "LoRA", "lora": {"initLoraWeights": "EVA"}},
        hyperparameters=SHORT,
        evaluation={"steps": 4},
    )
    bench.rows = preference_rows(60)
    bench.run()
    a = load_file(bench.output / "adapter" / "adapter_model.safetensors")[f"{ADAPTED}.lora_A.weight"]
    assert torch.allclose(a @ a.T, torch.eye(len(a)), atol=0.3), "four steps leave it near its first values"
