"""Modules that are trained in full next to the adapter: what changes, what is stored, merged, resumed and continued."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_bench import CPU, make_settings
from peft import PeftModel
from safetensors.torch import load_file, save_file
from thin_slice import thin_slice
from tiny_model import HIDDEN, VOCABULARY, make_tiny_model
from trainer_bench import make_trainer
from training_bench import HYPERPARAMETERS, Bench, as_parent, make_spec, preference_rows

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.attach import attach_adapter
from finetune_trainer.models.adapters.check import find_adapter_faults
from finetune_trainer.models.adapters.saved import continue_adapter, save_adapter
from finetune_trainer.models.adapters.whole_modules import share_whole_modules
from finetune_trainer.models.files.tensor_files import read_local_shape
from finetune_trainer.models.loading import load_for_training, load_plain, trained_tensors
from finetune_trainer.models.memory.activations import trained_shapes

MakeBench = Callable[..., Bench]
EMBEDDINGS, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
PREFIX = "base_model.model."
OUTPUT = {"uri": "s3://bucket/output", "merge": "FP32"}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an output head of its own."""
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "untied")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8")
    head = 0.02 * torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(5))
    weights = load_file(folder / "model.safetensors") | {f"{HEAD}.weight": head}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def job(root: Path, model: Path, names: list[str], method: str = "LoRA", steps: int = 6, **blocks: Any) -> Bench:
    tuning = {"method": method, "lora": {"rank": 4, "alpha": 8, "modulesToSave": names}}
    hyper = HYPERPARAMETERS | {"maxSteps": steps, "learningRate": 1e-3}
    return Bench(root, model, make_spec(**{"tuning": tuning, "hyperparameters": hyper, "output": OUTPUT} | blocks))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def saved(bench: Bench) -> dict[str, torch.Tensor]:
    return load_file(bench.output / "adapter" / "adapter_model.safetensors")


def published(bench: Bench, precision: torch.dtype = torch.float32) -> PeftModel:
    return PeftModel.from_pretrained(load_plain(bench.model, precision, CPU), str(bench.output / "adapter")).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize(
    ("names", "whole"),
    thin_slice(
        [
            (["embed_tokens", "lm_head"], {EMBEDDINGS, HEAD}),
            (["lm_head"], {HEAD}),
            (["embed_tokens", "model.norm"], {EMBEDDINGS, NORM}),
        ],
        (["embed_tokens", "model.norm"], {EMBEDDINGS, NORM}),
    ),
)
def test_only_the_named_modules_and_the_adapter_change(
    tmp_path: Path, untied_model: Path, names: list[str], whole: set[str]
) -> None:
    bench = job(tmp_path, untied_model, names)
    bench.run()
    before, after = weights(untied_model), weights(bench.output / "merged")
    changed = {name.removesuffix(".weight") for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if "_proj" not in name} == whole
    assert len(changed - whole) == 14
    assert {name for name in saved(bench) if ".lora_" not in name} == {f"{PREFIX}{one}.weight" for one in whole}
    for one in whole:
        assert torch.equal(after[f"{one}.weight"], saved(bench)[f"{PREFIX}{one}.weight"])
    assert torch.allclose(logits(published(bench)), logits(load_plain(bench.output / "merged", torch.float32, CPU)),
                          atol=1e-5)  # fmt: skip
    assert json.loads((bench.output / "validation.json").read_text(encoding="utf-8"))["chosen"] == "unquantised base"
    config = (bench.output / "adapter" / "adapter_config.json").read_bytes()
    assert sorted(json.loads(config)["modules_to_save"]) == sorted(names)
    assert find_adapter_faults(bench.output / "adapter" / "adapter_model.safetensors", config, "") == []
    assert "modulesToSave:" in (bench.output / "finetune_config.yaml").read_text(encoding="utf-8")
    report = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "whole modules are trained in addition to the adapter" in report


@pytest.mark.parametrize("names", thin_slice([["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ["lm_head"]))
def test_tied_embeddings_are_trained_and_merged_as_one_tensor(
    tmp_path: Path, tiny_model: Path, names: list[str]
) -> None:
    bench = job(tmp_path, tiny_model, names)
    bench.run()
    found = {name: one for name, one in saved(bench).items() if ".lora_" not in name}
    assert found.keys() == {f"{PREFIX}{EMBEDDINGS}.weight", f"{PREFIX}{HEAD}.weight"}, "PEFT reads both"
    assert torch.equal(*found.values())
    after = weights(bench.output / "merged")
    assert f"{HEAD}.weight" not in after
    assert torch.equal(after[f"{EMBEDDINGS}.weight"], found[f"{PREFIX}{HEAD}.weight"])
    assert not torch.equal(after[f"{EMBEDDINGS}.weight"], weights(tiny_model)[f"{EMBEDDINGS}.weight"])
    assert json.loads((bench.output / "merged" / "config.json").read_text())["tie_word_embeddings"] is True
    loaded = published(bench)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert torch.allclose(logits(loaded), logits(load_plain(bench.output / "merged", torch.float32, CPU)), atol=1e-5)


def test_a_fresh_adapter_with_whole_modules_changes_nothing_and_is_switched_off_for_the_base(tiny_model: Path) -> None:
    model = load_for_training(tiny_model, make_settings("LoRA", modules_to_save=["embed_tokens"]), CPU)
    base = logits(load_plain(tiny_model, torch.float32, CPU))
    assert torch.equal(logits(model), base)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter.add_(0.05)
    assert not torch.allclose(logits(model), base, atol=0.05)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_whole_modules_are_trained_in_fp32_and_compute_in_the_format_of_the_base(
    untied_model: Path, method: str
) -> None:
    names = ["embed_tokens", "lm_head", "model.norm"]
    model = load_for_training(untied_model, make_settings(method, precision="BF16", modules_to_save=names), CPU)
    whole = {name: one for name, one in trained_tensors(model).items() if ".lora_" not in name}
    assert len(whole) == 3
    assert {one.dtype for one in whole.values()} == {torch.float32}
    plain = load_for_training(untied_model, make_settings(method, precision="BF16"), CPU)
    with torch.no_grad():
        found, expected = (one.eval()(IDS, output_hidden_states=True) for one in (model, plain))
    assert [one.dtype for one in found.hidden_states] == [one.dtype for one in expected.hidden_states]
    assert found.logits.dtype == expected.logits.dtype == torch.bfloat16
    assert torch.allclose(found.logits.float(), expected.logits.float(), atol=0.02)
    model(IDS, labels=IDS).loss.backward()
    assert all(one.grad is not None and one.grad.dtype == torch.float32 and one.grad.any() for one in whole.values())


def test_whole_modules_on_a_quantised_base_are_published_and_merged(tmp_path: Path, untied_model: Path) -> None:
    bench = job(tmp_path, untied_model, ["embed_tokens", "lm_head"], "QLoRA")
    report = bench.run()
    after = weights(bench.output / "merged")
    for one in (EMBEDDINGS, HEAD):
        assert torch.equal(after[f"{one}.weight"], saved(bench)[f"{PREFIX}{one}.weight"])
    assert report.resolved
    assert "not in 4 bits" not in str(report.resolved.method_reason)


@pytest.mark.parametrize("tied", [True, False])
def test_the_estimate_counts_the_weights_that_are_trained(tiny_model: Path, untied_model: Path, tied: bool) -> None:
    folder, settings = (
        tiny_model if tied else untied_model,
        make_settings("LoRA", modules_to_save=["lm_head", "model.norm"]),
    )
    model = attach_adapter(load_plain(folder, torch.float32, CPU), settings)
    shape = read_local_shape(folder)
    assert shape
    trained = sum(one.numel() for one in trained_tensors(model).values())
    assert trained == sum(map(prod, trained_shapes(shape, settings)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"modules_to_save": ["embed_tokns"]}, "names embed_tokns, which the model does not have"),
        ({"modules_to_save": ["self_attn"]}, "names self_attn, which holds other modules"),
        ({"modules_to_save": ["norm"]}, "by which PEFT would also train model.layers.0.input_layernorm"),
        ({"modules_to_save": ["q_proj"]}, "names q_proj, which also gets an adapter"),
        ({"modules_to_save": ["lm_head"], "target_modules": ["lm_head", "q_proj"]}, "lm_head, which also gets an"),
    ],
)
def test_names_that_do_not_fit_are_refused_in_preflight_and_by_the_loaded_model(
    tmp_path: Path, untied_model: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(TrainerError) as caught:
        attach_adapter(load_plain(untied_model, torch.float32, CPU), make_settings("LoRA", **changes))
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert f"tuning.lora.modulesToSave {why}" in caught.value.message.replace(" norm, by", " by") or why in str(
        caught.value
    )
    bench = job(tmp_path, untied_model, changes["modules_to_save"])
    bench.spec["tuning"]["lora"] |= {"targetModules": changes.get("target_modules", ["q_proj"])}
    with pytest.raises(TrainerError) as early:
        bench.prepare()
    assert why in early.value.message


def test_the_rate_of_whole_norms_is_that_of_the_factors_a(tiny_model: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        "Instruction", tiny_model, tmp_path, lora_plus_lr_ratio=16.0, modules_to_save=["model.norm", "embed_tokens"]
    )
    trainer.create_optimizer()
    rates = {id(one): group["lr"] for group in trainer.optimizer.param_groups for one in group["params"]}
    trained = trained_tensors(trainer.model)
    assert rates.keys() == {id(one) for one in trained.values()}
    usual = trainer.args.learning_rate
    for name, one in trained.items():
        assert rates[id(one)] == usual * (16 if ".lora_B." in name else 1), name


@pytest.mark.parametrize("objective", thin_slice(["Instruction", "DPO"], "DPO"))
@pytest.mark.parametrize("tied", thin_slice([True, False], True))
def test_a_job_continues_an_adapter_with_whole_modules(
    tmp_path: Path, tiny_model: Path, untied_model: Path, objective: str, tied: bool
) -> None:
    model = tiny_model if tied else untied_model
    parent = job(tmp_path / "parent", model, ["embed_tokens"])
    report = parent.run()
    bench = job(
        tmp_path / "child",
        model,
        [],
        steps=2,
        objective=objective,
        tuning={"method": "LoRA", "initialAdapter": {"fromParent": True}, "lora": {"modulesToSave": ["embed_tokens"]}},
        lineage={"parentRef": {"name": "parent"}},
        evaluation={"steps": 2},
    )
    if objective == "DPO":
        bench.rows = preference_rows(60)
    bench.elsewhere, bench.parent = {"s3://bucket/parent": parent.output}, as_parent(parent, report)
    bench.run()
    name = f"{PREFIX}{EMBEDDINGS}.weight"
    base, before, after = weights(model)[f"{EMBEDDINGS}.weight"], saved(parent)[name], saved(bench)[name]
    assert 0 < float((after - before).norm()) < float((after - base).norm())
    assert saved(parent).keys() == saved(bench).keys()
    merged = load_plain(bench.output / "merged", torch.float32, CPU)
    assert torch.allclose(logits(published(bench)), logits(merged), atol=1e-5)


@pytest.mark.parametrize("tied", thin_slice([True, False], True))
def test_the_frozen_copy_of_a_continued_adapter_answers_as_it_does(
    tiny_model: Path, untied_model: Path, tied: bool
) -> None:
    """TRL copies each trained weight once, also one that two modules share."""
    names = ["embed_tokens", "lm_head"]
    model = load_for_training(tiny_model if tied else untied_model, make_settings("LoRA", modules_to_save=names), CPU)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    expected = logits(model)
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in list(model.named_parameters()):
        if ".lora_" in name and ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    share_whole_modules(model, "ref")
    model.set_adapter("ref")
    assert torch.equal(logits(model), expected)
    model.set_adapter("default")
    model.delete_adapter("ref")
    assert torch.equal(logits(model), expected)


def test_an_adapter_that_untied_the_embeddings_is_not_continued(tmp_path: Path, tiny_model: Path) -> None:
    settings = make_settings("LoRA", modules_to_save=["embed_tokens"])
    model = load_for_training(tiny_model, settings, CPU)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter.add_(0.01)
    save_adapter(model, tmp_path, "s3://bucket/model")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors[f"{PREFIX}{HEAD}.weight"] += 1
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainerError, match="input and output embeddings") as caught:
        continue_adapter(load_for_training(tiny_model, settings, CPU), tmp_path)
    assert caught.value.code is ExitCode.INVALID_CONFIG
