"""Modules with a rank and an alpha of their own: as PEFT makes them, trained, merged, published and continued."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import CPU, make_settings
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from thin_slice import thin_slice
from training_bench import HYPERPARAMETERS, Bench, as_parent

from finetune_api.handoff import ExitCode
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.attach import attach_adapter
from finetune_trainer.models.adapters.check import find_adapter_faults
from finetune_trainer.models.files.base_model import CONFIG
from finetune_trainer.models.files.tensor_files import TensorFiles
from finetune_trainer.models.loading import load_plain, trained_tensors
from finetune_trainer.models.memory.activations import trained_shapes
from finetune_trainer.models.memory.shape import read_shape

MakeBench = Callable[..., Bench]
FIRST = "model.layers.0.self_attn.q_proj"
SECOND = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
OTHER = "model.layers.0.self_attn.v_proj"
RANKS = {r"layers\.0\.self_attn\.q_proj": 32, "down_proj": 2}
ALPHAS = {"q_proj": 8, "down_proj": 4}
EXPECTED = {FIRST: (32, 8), SECOND: (8, 8), DOWN: (2, 4), OTHER: (8, 16)}
"""Rank and alpha by module, with rank 8 and alpha 16 for the others."""
LORA: dict[str, Any] = {"rank": 8, "alpha": 16, "rankPattern": RANKS, "alphaPattern": ALPHAS}
SETTINGS: dict[str, Any] = {"rank_pattern": RANKS, "alpha_pattern": ALPHAS}


def sizes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in trained_tensors(model).items()}


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "Gaussian"}])
def test_each_module_has_the_factors_and_the_scaling_that_peft_gives_it(
    tiny_model: Path, changes: dict[str, Any]
) -> None:
    settings = make_settings("LoRA", **SETTINGS, **changes)
    ours = attach_adapter(load_plain(tiny_model, torch.float32, CPU), settings)
    targets = sorted(ours.peft_config["default"].target_modules)
    own = {name: value for name, value in changes.items() if name.startswith("use_")}
    config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, **SETTINGS, **own, task_type="CAUSAL_LM")
    assert sizes_of(ours) == sizes_of(get_peft_model(load_plain(tiny_model, torch.float32, CPU), config))
    for module, (rank, alpha) in EXPECTED.items():
        layer = ours.get_base_model().get_submodule(module)
        assert layer.lora_A["default"].weight.shape[0] == layer.lora_B["default"].weight.shape[1] == rank
        assert layer.scaling["default"] == alpha / (rank**0.5 if settings.use_rslora else rank)


def test_the_estimate_counts_the_weights_that_are_trained(tiny_model: Path) -> None:
    settings = make_settings("LoRA", **SETTINGS)
    model = attach_adapter(load_plain(tiny_model, torch.float32, CPU), settings)
    with TensorFiles.of_folder(tiny_model) as files:
        config = json.loads((tiny_model / CONFIG).read_text(encoding="utf-8"))
        shape = read_shape(config, {name: header.shape for name, header in files.headers.items()})
    assert shape
    trained = sum(map(prod, sizes_of(model).values()))
    assert trained == sum(map(prod, trained_shapes(shape, settings)))
    assert trained != sum(map(prod, trained_shapes(shape, make_settings("LoRA"))))


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("patterns", "why"),
    [
        ({"embed_tokens": 4}, "names embed_tokens, which matches no module with an adapter"),
        ({"q_proj": 4, r"layers\.7\..*": 4}, r"names layers\.7\..*, which matches no module"),
        ({"q_proj": 4, r"layers\.1\..*": 2}, "and both match model.layers.1.self_attn.q_proj"),
        ({"q_proj(": 4}, "is not a regular expression"),
        ({"(.+)+x": 4}, "repeats a group"),
    ],
)
def test_patterns_that_do_not_fit_the_model_are_refused(
    tiny_model: Path, field: str, patterns: dict[str, int], why: str
) -> None:
    with pytest.raises(TrainerError) as caught:
        attach_adapter(load_plain(tiny_model, torch.float32, CPU), make_settings("LoRA", **{field: patterns}))
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert why in caught.value.message


def make_job(make_bench: MakeBench, method: str, **tuning: Any) -> Bench:
    return make_bench(
        method,
        tuning={"method": method} | tuning,
        hyperparameters=HYPERPARAMETERS | {"maxSteps": 4},
        output={"uri": "s3://bucket/output", "merge": "FP32"},
    )


def require_merged(bench: Bench, factor: int = 1) -> None:
    """Each merged weight is the base's and the update, by the module's own alpha over its own rank."""
    saved = load_file(bench.output / "adapter" / "adapter_model.safetensors")
    before, after = (load_file(folder / "model.safetensors") for folder in (bench.model, bench.output / "merged"))
    for module, (rank, alpha) in EXPECTED.items():
        a, b = (saved[f"base_model.model.{module}.lora_{kind}.weight"] for kind in "AB")
        assert a.shape[0] == factor * rank
        expected = before[f"{module}.weight"] + alpha / (factor * rank) * b @ a
        assert torch.allclose(after[f"{module}.weight"], expected, atol=1e-5), module
        assert not torch.equal(after[f"{module}.weight"], before[f"{module}.weight"]), module
    require_published(bench, factor)


def require_published(bench: Bench, factor: int = 1) -> None:
    """The adapter has the patterns in its configuration, and factors of these ranks."""
    config = (bench.output / "adapter" / "adapter_config.json").read_bytes()
    assert find_adapter_faults(bench.output / "adapter" / "adapter_model.safetensors", config, "") == []
    assert json.loads(config)["rank_pattern"] == {name: factor * rank for name, rank in RANKS.items()}
    assert json.loads(config)["alpha_pattern"] == ALPHAS


@pytest.fixture(scope="module")
def parent(make_bench: MakeBench) -> tuple[Bench, Any]:
    bench = make_job(make_bench, "LoRA", lora=LORA)
    return bench, as_parent(bench, bench.run())


def test_a_job_with_patterns_is_merged_validated_and_reported(parent: tuple[Bench, Any]) -> None:
    bench = parent[0]
    require_merged(bench)
    assert json.loads((bench.output / "validation.json").read_text(encoding="utf-8"))["chosen"] == "unquantised base"
    report = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "--max-lora-rank 32" in report
    assert "use vLLM 0.32 or later" in report
    manifest = (bench.output / "finetune_config.yaml").read_text(encoding="utf-8")
    assert "rankPattern:" in manifest
    assert "alphaPattern:" in manifest


def test_a_job_continues_an_adapter_with_patterns(make_bench: MakeBench, parent: tuple[Bench, Any]) -> None:
    bench = make_bench(
        tuning={"method": "LoRA", "initialAdapter": {"fromParent": True}},
        lineage={"parentRef": {"name": "parent"}},
        hyperparameters=HYPERPARAMETERS | {"maxSteps": 4},
        output={"uri": "s3://bucket/output", "merge": "FP32"},
    )
    bench.elsewhere = {"s3://bucket/parent": parent[0].output}
    bench.parent = parent[1]
    report = bench.run()
    assert report.resolved
    assert (report.resolved.rank_pattern, report.resolved.alpha_pattern) == (RANKS, ALPHAS)
    require_merged(bench)
    before, after = (load_file(one.output / "adapter" / "adapter_model.safetensors") for one in (parent[0], bench))
    name = f"base_model.model.{FIRST}.lora_A.weight"
    assert 0 < float((after[name] - before[name]).norm()) < 0.5 * float(before[name].norm())


@pytest.mark.parametrize("how", thin_slice(["PiSSA", "OLoRA"], "PiSSA"))
def test_an_adapter_from_the_weights_is_published_with_twice_the_rank_of_each_module(
    make_bench: MakeBench, how: str
) -> None:
    bench = make_job(make_bench, "LoRA", lora=LORA | {"initLoraWeights": how})
    bench.run()
    require_merged(bench, factor=2)
    base = load_plain(bench.model, torch.float32, CPU)
    PeftModel.from_pretrained(base, str(bench.output / "adapter"))


@pytest.mark.nightly
def test_a_job_with_patterns_on_a_quantised_base_is_published_and_merged(make_bench: MakeBench) -> None:
    bench = make_job(make_bench, "QLoRA", lora=LORA)
    bench.run()
    require_published(bench)
    assert (bench.output / "merged" / "model.safetensors").is_file()


def test_the_trainer_takes_patterns_from_the_spec_if_preflights_report_had_no_room_for_them(
    make_bench: MakeBench,
) -> None:
    bench = make_job(make_bench, "LoRA", lora=LORA)
    config = bench.prepare()
    assert config.resolved
    assert config.resolved.rank_pattern == RANKS
    cut = Resolved.model_validate(config.resolved.model_dump(exclude={"rank_pattern", "alpha_pattern"}))
    bench.train(config.model_copy(update={"resolved": cut}))
    require_merged(bench)
