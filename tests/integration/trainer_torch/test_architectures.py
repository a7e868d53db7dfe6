"""Models with towers for images and experts, each trained and merged on a random small copy."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architecture_table import automatic_classes, named_architectures, other_architectures, read_table
from loop_bench import CPU, make_settings
from peft import PeftModel
from safetensors.torch import load_file, save_file
from thin_slice import thin_slice
from training_bench import HYPERPARAMETERS, Bench, make_spec
from transformers import AutoConfig, PreTrainedModel

from finetune_api.handoff import ExitCode
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.merging.gate_messages import Candidate, GatePlan
from finetune_trainer.merging.gate_worker import find_candidate_faults
from finetune_trainer.merging.merge import add_ignored
from finetune_trainer.models.adapters.attach import attach_adapter, linear_targets
from finetune_trainer.models.adapters.saved import save_adapter
from finetune_trainer.models.architectures import find_class, name_loader
from finetune_trainer.models.files.tensor_files import TensorFiles
from finetune_trainer.models.loading import load_for_training, load_plain, quantised_layers, trained_tensors
from finetune_trainer.models.memory.estimate import weight_bytes
from finetune_trainer.models.memory.shape import read_shape
from finetune_trainer.pipeline.full_model import make_candidate
from finetune_trainer.training.callbacks import restore_trained, save_trained

TEXT = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN_VISION = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 64}


def with_tower(name: str, vision: dict[str, Any], **text: Any) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        kind = getattr(transformers, name)
        defaults = kind.config_class()
        parts = {
            "text_config": type(defaults.text_config)(**(TEXT | text)).to_dict(),
            "vision_config": defaults.vision_config.to_dict() | vision,
        }
        if getattr(defaults, "audio_config", None) is not None:
            parts["audio_config"] = None
        return kind(kind.config_class(**parts))

    return make


def text_only(name: str, **changes: Any) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        kind = getattr(transformers, name)
        return kind(kind.config_class(**(TEXT | changes)))

    return make


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "Gemma3ForConditionalGeneration": with_tower(
        "Gemma3ForConditionalGeneration",
        VISION | {"image_size": 28, "patch_size": 14, "vision_use_head": False},
        layer_types=["sliding_attention", "full_attention"],
    ),
    "Mistral3ForConditionalGeneration": with_tower("Mistral3ForConditionalGeneration", VISION | {"head_dim": 16}),
    "Qwen2_5_VLForConditionalGeneration": with_tower(
        "Qwen2_5_VLForConditionalGeneration",
        QWEN_VISION | {"fullatt_block_indexes": [1]},
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"},
    ),
    "Qwen3_5ForConditionalGeneration": with_tower(
        "Qwen3_5ForConditionalGeneration",
        QWEN_VISION,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    ),
    "FalconForCausalLM": text_only("FalconForCausalLM", num_kv_heads=2),
    "GPT2LMHeadModel": text_only("GPT2LMHeadModel", n_embd=64, n_layer=2, n_head=4),
    "Qwen3MoeForCausalLM": text_only(
        "Qwen3MoeForCausalLM", num_experts=4, moe_intermediate_size=64, num_experts_per_tok=2
    ),
}


def make_falcon() -> PreTrainedModel:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "pad_token_id", "eos_token_id")
    return transformers.FalconForCausalLM(transformers.FalconConfig(**{name: TEXT[name] for name in names}))


FALCON: dict[str, Callable[[], PreTrainedModel]] = {"FalconForCausalLM": make_falcon}
OFTEN = ("Gemma3ForConditionalGeneration",)
MIXTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "Qwen3MoeForCausalLM": MODELS["Qwen3MoeForCausalLM"],
    "MixtralForCausalLM": text_only("MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
}
SHARED: dict[str, Callable[[], PreTrainedModel]] = {
    "Qwen2MoeForCausalLM": text_only(
        "Qwen2MoeForCausalLM",
        num_experts=4,
        moe_intermediate_size=64,
        num_experts_per_tok=2,
        shared_expert_intermediate_size=64,
    ),
    "Glm4MoeForCausalLM": text_only(
        "Glm4MoeForCausalLM",
        n_routed_experts=4,
        moe_intermediate_size=64,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
}
"""Mixtures with linear layers of the same names as the parameters of their experts."""


@pytest.fixture
def base(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with the random model and the tiny model's tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(1)
    (MODELS | MIXTURES | SHARED | FALCON)[request.param]().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("base", thin_slice(MODELS, *OFTEN), indirect=True)
def test_a_model_is_trained_by_its_text_part_and_published_whole(base: Path, tmp_path: Path) -> None:
    hyper = HYPERPARAMETERS | {"maxSteps": 4}
    output = {"uri": "s3://bucket/output", "merge": "FP32"}
    (tmp_path / "job").mkdir()
    (base / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    bench = Bench(tmp_path / "job", base, make_spec("LoRA", hyperparameters=hyper, output=output))
    report = bench.run()
    assert report.metrics
    assert report.metrics.eval_loss is not None
    adapted = load_file(bench.output / "adapter" / "adapter_model.safetensors")
    assert adapted
    assert [name for name in adapted if re.search(r"vis|audio|projector", name)] == []
    assert json.loads((bench.output / "validation.json").read_text(encoding="utf-8"))["chosen"] == "unquantised base"
    before, after = tensors(base), tensors(bench.output / "merged")
    assert after.keys() == before.keys()
    assert architectures(bench.output / "merged") == architectures(base)
    processor = "preprocessor_config.json"  # without which no server loads the tower
    assert (bench.output / "merged" / processor).read_bytes() == (base / processor).read_bytes()
    unchanged = {name for name in before if torch.equal(before[name], after[name].to(before[name].dtype))}
    assert {name for name in before if re.search(r"vis", name)} <= unchanged
    assert unchanged < before.keys()


@pytest.mark.parametrize(
    ("base", "loader"),
    [
        ("Gemma3ForConditionalGeneration", "AutoModelForCausalLM"),
        ("Mistral3ForConditionalGeneration", "Mistral3ForConditionalGeneration"),
        ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForConditionalGeneration"),
    ],
    indirect=["base"],
)
def test_the_class_that_the_report_names_loads_a_base_that_the_adapter_fits(
    base: Path, loader: str, tmp_path: Path
) -> None:
    model = attach_adapter(load_plain(base, torch.float32, CPU), Resolved(lora_rank=2, lora_alpha=4)).eval()
    for tensor in trained_tensors(model).values():
        torch.nn.init.normal_(tensor, std=0.2)
    save_adapter(model, tmp_path / "adapter", "acme/base")
    assert name_loader(base) == loader
    again = PeftModel.from_pretrained(getattr(transformers, loader).from_pretrained(base), tmp_path / "adapter").eval()
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("base", ["Qwen3_5ForConditionalGeneration"], indirect=True)
def test_a_model_that_the_library_merges_keeps_the_bases_tensors_that_the_library_ignores(
    base: Path, tmp_path: Path
) -> None:
    weights = load_file(base / "model.safetensors")
    weights["mtp.fc.weight"] = torch.randn(64, 128)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    settings = Resolved(lora_rank=2, lora_alpha=4, target_modules=["gate_proj"], use_dora=True)
    model = attach_adapter(load_plain(base, torch.float32, CPU), settings)
    for tensor in trained_tensors(model).values():
        torch.nn.init.normal_(tensor, mean=1.0, std=0.2)
    save_adapter(model, tmp_path / "adapter", "acme/base")
    candidate = Candidate(name="unquantised base", directory=tmp_path / "merged")
    plan = GatePlan(
        base=base, adapter=tmp_path / "adapter", precision="BF16", candidates=[candidate], samples=[], prompts=[],
        stop_ids=[], max_new_tokens=1, tokenizer_sha256={}, device="cpu",
    )  # fmt: skip
    make_candidate(plan, candidate, lambda: None)
    assert find_candidate_faults(plan, candidate) == []
    assert sorted(path.name for path in candidate.directory.glob("*.safetensors*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    merged = load_plain(candidate.directory, torch.bfloat16, CPU)
    with TensorFiles.of_folder(candidate.directory) as files:
        assert files.headers.keys() == weights.keys()
        assert torch.equal(files.read("mtp.fc.weight"), weights["mtp.fc.weight"].bfloat16())
    merged.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    count = len(list((tmp_path / "sharded").glob("*.safetensors")))
    add_ignored(base, tmp_path / "sharded", ["^mtp"], "BF16")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["mtp.fc.weight"] == f"model-{count + 1:05}-of-{count + 1:05}.safetensors"
    sizes = (tensor.numel() for tensor in weights.values())
    assert (count > 1, index["metadata"]["total_size"]) == (True, 2 * sum(sizes))
    assert load_plain(tmp_path / "sharded", torch.bfloat16, CPU).state_dict().keys() == merged.state_dict().keys()


@pytest.mark.parametrize("base", thin_slice(MIXTURES, "Qwen3MoeForCausalLM"), indirect=True)
def test_experts_are_in_4_bits_under_qlora_and_the_merged_models_have_them_all(base: Path, tmp_path: Path) -> None:
    """The gate compares each merged model with base and adapter, one of them in the experts that were trained on."""
    hyper = HYPERPARAMETERS | {"maxSteps": 4, "precision": "BF16"}
    output = {"uri": "s3://bucket/output", "merge": "FP32"}
    (tmp_path / "job").mkdir()
    bench = Bench(tmp_path / "job", base, make_spec("QLoRA", hyperparameters=hyper, output=output))
    report = bench.run()
    assert report.resolved
    assert report.resolved.method_reason == "set in tuning.method"
    validation = json.loads((bench.output / "validation.json").read_text(encoding="utf-8"))
    assert [one["faults"] for one in validation["candidates"]] == [[], []]
    before, after = tensors(base), tensors(bench.output / "merged")
    assert after.keys() == before.keys()
    assert architectures(bench.output / "merged") == architectures(base)


@pytest.mark.parametrize("base", MIXTURES, indirect=True)
def test_no_expert_is_in_16_or_32_bits_under_qlora(base: Path) -> None:
    settings = make_settings("QLoRA", precision="BF16")
    model = load_for_training(base, settings, CPU)
    experts = {name: one for name, one in model.named_parameters() if ".experts." in name}
    assert len(experts) == 4
    assert {one.dtype for one in experts.values()} == {torch.uint8}
    quantised = quantised_layers(model, settings)
    assert quantised
    assert "model.layers.1.mlp.experts.down_proj" in quantised.modules


@pytest.mark.parametrize("base", MIXTURES, indirect=True)
def test_an_adapter_over_quantised_experts_is_trained_and_restored_exactly(base: Path, tmp_path: Path) -> None:
    settings = make_settings("QLoRA", precision="FP32")
    model, again = (load_for_training(base, settings, CPU).train() for _ in range(2))
    ids = torch.arange(3, 35)[None]
    optimiser = torch.optim.Adam(trained_tensors(model).values(), lr=0.01)
    before = float(model(input_ids=ids, labels=ids).loss.detach())
    for _ in range(2):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    assert all(one.grad is not None and one.grad.any() for one in trained_tensors(model).values())
    assert float(model(input_ids=ids, labels=ids).loss.detach()) < before
    save_trained(model, tmp_path / "trained.safetensors")
    restore_trained(again, tmp_path / "trained.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
@pytest.mark.parametrize("base", SHARED, indirect=True)
def test_an_adapter_is_never_on_experts_and_plain_peft_loads_it(base: Path, method: str, tmp_path: Path) -> None:
    model = load_for_training(base, make_settings(method, lora_dropout=0.05), CPU)
    trained = trained_tensors(model)
    assert any("q_proj" in name for name in trained)
    assert [name for name in trained if ".experts." in name] == []
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        load_plain(base, torch.float32, CPU), str(tmp_path / "adapter"), is_trainable=True
    )
    assert trained_tensors(again).keys() == trained.keys()


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
@pytest.mark.parametrize("base", ["Qwen3MoeForCausalLM"], indirect=True)
def test_a_target_that_exists_only_in_experts_is_refused_by_name(base: Path, method: str) -> None:
    settings = make_settings(method, target_modules=["q_proj", "down_proj"])
    with pytest.raises(
        TrainerError, match="targetModules names down_proj, which PEFT applies to the experts"
    ) as caught:
        load_for_training(base, settings, CPU)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_layers_that_are_not_quantised_are_logged_and_counted_as_they_are_held(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_falcon().save_pretrained(tmp_path)
    settings = make_settings("QLoRA", precision="BF16")
    model = load_for_training(tmp_path, settings, CPU)
    assert re.search(
        r"8 layers of FalconForCausalLM, for example transformer\.h\.0\.\S+, are not quantised", caplog.text
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors(tmp_path).items()}
    shape = read_shape(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")), shapes)
    assert shape
    held = [one for name, one in model.named_parameters() if "lora_" not in name]
    assert weight_bytes(shape, settings) == sum(one.numel() * one.element_size() for one in held)


@pytest.mark.parametrize("base", ["FalconForCausalLM"], indirect=True)
def test_layers_that_are_not_quantised_are_named_in_the_status(base: Path, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    bench = Bench(tmp_path / "job", base, make_spec("QLoRA", hyperparameters=HYPERPARAMETERS | {"maxSteps": 4}))
    report = bench.run()
    assert report.resolved
    assert re.fullmatch(
        r"set in tuning\.method; 8 layers of FalconForCausalLM, for example transformer\.h\.0\.\S+, are not in 4 bits",
        str(report.resolved.method_reason),
    )


def test_a_model_that_does_not_write_text_is_refused_by_name(tmp_path: Path) -> None:
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(TrainerError, match=r"a model of type vit .* does not write text") as caught:
        find_class(tmp_path)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_the_table_is_that_of_the_installed_library() -> None:
    table = read_table()
    assert table["transformers"] == transformers.__version__, "run make architectures"
    assert {name: one["modelTypes"] for name, one in table["architectures"].items()} == named_architectures()
    assert table["automatic"] == automatic_classes()
    assert table["others"] == other_architectures()


SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("config", "left_out"),
    [
        (transformers.CTRLConfig(vocab_size=64, n_positions=64, n_embd=32, dff=64, n_layer=2, n_head=2), {"0", "2"}),
        (transformers.FalconMambaConfig(**SMALL, state_size=4, time_step_rank=4), {"out_proj"}),
    ],
    ids=["layers named by numbers", "the output of Mamba layers"],
)
def test_adapters_leave_out_layers_that_cannot_be_named_or_adapted(config: Any, left_out: set[str]) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config)
    last = {name.rpartition(".")[2] for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    assert left_out <= last
    assert left_out.isdisjoint(linear_targets(model))
    assert attach_adapter(model, make_settings("LoRA")).get_nb_trainable_parameters()[0] > 0


def test_the_number_of_experts_has_the_name_that_the_loss_reads(tmp_path: Path) -> None:
    sizes = {**SMALL, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.GraniteMoeConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
    assert not hasattr(config, "num_experts")
    transformers.GraniteMoeForCausalLM(config).save_pretrained(tmp_path)
    assert load_for_training(tmp_path, make_settings("LoRA"), CPU).config.num_experts == 4


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def architectures(folder: Path) -> list[str]:
    found: list[str] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    return found
