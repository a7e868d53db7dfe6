"""The memory estimate against counted bytes: tensors of models as they are loaded, and what autograd allocates."""

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors import safe_open
from thin_slice import thin_slice
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile
from training_bench import HYPERPARAMETERS, Bench
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl.trainer.utils import add_fused_lm_head

from finetune_api.objectives import Objective
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.loading import load_for_training, trained_tensors
from finetune_trainer.models.memory.activations import EAGER
from finetune_trainer.models.memory.estimate import LOSS_TOKENS, LOSS_WORDS, MemoryEstimate, estimate, format_bytes
from finetune_trainer.models.memory.shape import ModelShape, read_shape

CPU = torch.device("cpu")
BATCH, LENGTH = 2, 128
COUNTED = 0.001
"""The parts that are tensors agree to a per mille."""
ALLOCATED = 0.15
"""Activations agree to 15 % with the peak of a forward and backward pass."""
SIZES: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "phi3": {"tie_word_embeddings": False, "pad_token_id": 0},
    "mixtral": {"tie_word_embeddings": False, "num_local_experts": 4},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 192, "num_experts_per_tok": 2, "head_dim": 32},
}
METHODS = ["QLoRA", "LoRA", "Full"]
MIXTURES = ["mixtral", "qwen3_moe"]
ON_EXPERTS = [(kind, method) for kind in MIXTURES for method in ("QLoRA", "LoRA")]
"""Mixtures whose experts have an adapter too."""
AnyModel = PreTrainedModel | PeftModel


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, own in KINDS.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES | own)).save_pretrained(found[name])
    return found


def read(folder: Path) -> ModelShape:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        tensors = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    shape = read_shape(json.loads((folder / "config.json").read_text()), tensors)
    assert shape is not None
    return shape


def settings(method: str, **changes: Any) -> Resolved:
    return Resolved(
        method=method,
        precision="BF16",
        optim="adamw_torch_fused",
        per_device_train_batch_size=BATCH,
        global_batch_size=BATCH,
        max_length=LENGTH,
        gradient_checkpointing=False,
        lora_rank=16,
        lora_alpha=32,
        lora_dropout=0.0,
        double_quant=True,
        seed=1,
    ).model_copy(update=changes)


def load(folder: Path, wanted: Resolved) -> AnyModel:
    """As the trainer has it: with TRL's loss, which never holds the logits of a batch."""
    model = load_for_training(folder, wanted, CPU)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    if wanted.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if isinstance(model, PeftModel):
            model.enable_input_require_grads()
    return model.train()


def count_bytes(tensors: list[torch.Tensor | None]) -> int:
    """Each storage once: weights are shared, and so are the tables of a quantisation."""
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if tensor is not None
    }
    return sum(found.values())


def base_tensors(model: AnyModel) -> list[torch.Tensor | None]:
    """The weights of the base model, with the constants of those that are quantised."""
    found: list[torch.Tensor | None] = [one for name, one in model.named_parameters() if "lora_" not in name]
    states = [getattr(one, "quant_state", None) for one in [*found, *model.modules()]]
    for state in (one for one in states if one is not None):
        found += [state.absmax, state.code, state.offset]
        found += [state.state2.absmax, state.state2.code] if state.nested else []
    return found


def batch_of(shape: ModelShape, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Two rows, one of them padded, so that attention needs its mask."""
    ids = torch.randint(3, shape.vocabulary, (BATCH, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, -8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def autocast(wanted: Resolved) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=wanted.precision == "BF16")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_weights_take_the_bytes_that_were_counted(folders: dict[str, Path], kind: str, method: str) -> None:
    wanted = settings(method)
    expected = estimate(read(folders[kind]), wanted, Objective.CHAT).weights
    assert count_bytes(base_tensors(load(folders[kind], wanted))) == pytest.approx(expected, rel=COUNTED)


def test_weights_without_double_quantisation_take_the_bytes_that_were_counted(folders: dict[str, Path]) -> None:
    wanted = settings("QLoRA", double_quant=False)
    expected = estimate(read(folders["llama"]), wanted, Objective.CHAT).weights
    assert count_bytes(base_tensors(load(folders["llama"], wanted))) == pytest.approx(expected, rel=COUNTED)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_under_qlora_the_adapter_alone_is_in_fp32(folders: dict[str, Path], kind: str) -> None:
    """Embeddings, norms, experts and head stay in 16 bits, and so do the values between layers."""
    model = load(folders[kind], settings("QLoRA"))
    in_fp32 = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert in_fp32 == set(trained_tensors(model))
    with autocast(settings("QLoRA")):
        hidden = model(**batch_of(read(folders[kind])), output_hidden_states=True).hidden_states
    assert {one.dtype for one in hidden} == {torch.bfloat16}


@pytest.mark.parametrize(("kind", "method"), [*(("llama", method) for method in METHODS), *ON_EXPERTS])
def test_adapter_gradients_and_optimiser_take_the_bytes_that_were_counted(
    folders: dict[str, Path], kind: str, method: str
) -> None:
    shape, wanted = read(folders[kind]), settings(method, target_experts=kind != "llama")
    expected, model = estimate(shape, wanted, Objective.CHAT), load(folders[kind], wanted)
    trained = list(trained_tensors(model).values())
    with autocast(wanted):
        loss = model(**batch_of(shape), labels=batch_of(shape)["input_ids"], fused_lm_head=True).loss
    loss.backward()
    optimiser = torch.optim.AdamW(trained, fused=True)
    optimiser.step()
    moments = [value for state in optimiser.state.values() for value in state.values() if value.dim()]
    assert count_bytes([one for one in trained if method != "Full"]) == expected.adapter
    assert count_bytes([one.grad for one in trained]) == expected.gradients
    assert count_bytes(moments) == expected.optimiser


def measure_peak(model: AnyModel, shape: ModelShape, wanted: Resolved) -> int:
    """The most bytes that a forward and a backward pass through the layers hold, gradients of weights aside."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    batch = batch_of(shape, wanted.max_length or LENGTH)

    def both_passes() -> None:
        # oneDNN's own buffers depend on the processor: with AMX, DoRA took a fifth more.
        with torch.backends.mkldnn.flags(enabled=False):
            with autocast(wanted):
                hidden = base.base_model(**batch, use_cache=False).last_hidden_state
            hidden.backward(torch.full_like(hidden, 1e-3))

    both_passes()  # makes the gradients, which stay
    gc.collect()  # a model of an earlier test that is freed in between would be subtracted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        both_passes()
    held = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("checkpointing", thin_slice([False, True], True))
@pytest.mark.parametrize("precision", thin_slice(["BF16", "FP32"], "BF16"))
@pytest.mark.parametrize("method", METHODS)
def test_activations_take_what_both_passes_allocate(
    folders: dict[str, Path], method: str, precision: str, checkpointing: bool
) -> None:
    wanted = settings(method, precision=precision, gradient_checkpointing=checkpointing)
    shape = read(folders["llama"])
    expected = estimate(shape, wanted, Objective.CHAT).activations
    measured = measure_peak(load(folders["llama"], wanted), shape, wanted)
    assert expected == pytest.approx(measured, rel=ALLOCATED)


@pytest.mark.parametrize("checkpointing", thin_slice([False, True], False))
@pytest.mark.parametrize("dropout", thin_slice([0.0, 0.1], 0.1))
@pytest.mark.parametrize("method", thin_slice(["QLoRA", "LoRA"], "LoRA"))
def test_activations_of_dora_take_what_both_passes_allocate(
    folders: dict[str, Path], method: str, dropout: float, checkpointing: bool
) -> None:
    wanted = settings(method, use_dora=True, lora_dropout=dropout, gradient_checkpointing=checkpointing)
    shape = read(folders["llama"])
    expected = estimate(shape, wanted, Objective.CHAT)
    model = load(folders["llama"], wanted)
    assert count_bytes(list(trained_tensors(model).values())) == expected.adapter
    assert expected.activations == pytest.approx(measure_peak(model, shape, wanted), rel=ALLOCATED)


@pytest.mark.parametrize("checkpointing", thin_slice([False, True], True))
@pytest.mark.parametrize(
    ("kind", "method", "on_experts"),
    [
        *thin_slice((kind, method, False) for kind in MIXTURES for method in METHODS),
        *thin_slice(((kind, method, True) for kind, method in ON_EXPERTS), ("qwen3_moe", "QLoRA", True)),
    ],
)
def test_activations_of_experts_take_what_both_passes_allocate(
    folders: dict[str, Path], kind: str, method: str, on_experts: bool, checkpointing: bool
) -> None:
    wanted = settings(method, gradient_checkpointing=checkpointing, target_experts=on_experts, max_length=2 * LENGTH)
    shape = read(folders[kind])
    expected = estimate(shape, wanted, Objective.CHAT).activations
    measured = measure_peak(load(folders[kind], wanted), shape, wanted)
    assert expected == pytest.approx(measured, rel=ALLOCATED)


@pytest.mark.parametrize("checkpointing", thin_slice([False, True], False))
@pytest.mark.parametrize("precision", thin_slice(["BF16", "FP32"], "FP32"))
def test_eager_attention_takes_what_both_passes_allocate(
    folders: dict[str, Path], precision: str, checkpointing: bool
) -> None:
    """With rows of which the scores take most of the memory."""
    wanted = settings("LoRA", precision=precision, gradient_checkpointing=checkpointing, max_length=8 * LENGTH)
    shape, model = read(folders["llama"]), load(folders["llama"], wanted)
    model.get_base_model().set_attn_implementation("eager")
    expected = estimate(replace(shape, model_type="gemma2"), wanted, Objective.CHAT).activations
    measured = measure_peak(model, shape, wanted)
    assert expected == pytest.approx(measured, rel=ALLOCATED)
    assert expected > 1.5 * estimate(shape, wanted, Objective.CHAT).activations


@pytest.mark.parametrize("kind", sorted(EAGER))
def test_models_that_count_as_eager_have_no_fused_attention(kind: str) -> None:
    model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    assert not model._supports_sdpa


@pytest.mark.parametrize("method", METHODS)
def test_what_autograd_keeps_is_within_the_estimate(folders: dict[str, Path], method: str) -> None:
    wanted = settings(method)
    shape, model = read(folders["llama"]), load(folders["llama"], wanted)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with autocast(wanted), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs = batch_of(shape)
        loss = model(**inputs, labels=inputs["input_ids"], fused_lm_head=True, use_cache=False).loss
    expected = estimate(shape, wanted, Objective.CHAT)
    assert 0.8 * expected.activations <= sum(kept.values()) <= expected.activations
    assert loss.requires_grad


def test_the_loss_holds_one_tile_and_never_the_logits_of_a_batch(folders: dict[str, Path]) -> None:
    wanted = settings("LoRA", precision="FP32")
    shape, model = read(folders["llama"]), load(folders["llama"], wanted)
    inputs = batch_of(shape)
    tile = min(BATCH * (LENGTH - 1), LOSS_TOKENS) * LOSS_WORDS * 4
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        model(**inputs, labels=inputs["input_ids"], fused_lm_head=True)
    sizes = [event.nbytes() for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert max(sizes) == tile
    assert BATCH * LENGTH * shape.vocabulary * 4 not in sizes
    assert estimate(shape, wanted, Objective.CHAT).logits == pytest.approx(tile, rel=0.01)


@pytest.mark.parametrize("precision", ["BF16", "FP32"])
@pytest.mark.parametrize("method", METHODS)
def test_sampling_keeps_the_keys_and_values_that_are_counted(
    folders: dict[str, Path], method: str, precision: str
) -> None:
    wanted = settings(method, precision=precision, max_length=LENGTH - 64, max_completion_length=64)
    shape, model = read(folders["llama"]), load(folders["llama"], wanted).eval()
    cache = DynamicCache(config=model.config)
    with autocast(wanted), torch.no_grad():
        model(**batch_of(shape), cache=cache, use_cache=True)
    kept = count_bytes([one for layer in cache.layers for one in (layer.keys, layer.values)])
    assert estimate(shape, wanted, Objective.RLHF).generation == kept


def test_twice_the_length_takes_twice_the_activations() -> None:
    shape = ModelShape("llama", 100, 64, 256, 2, 4, 4, 16, True, {"model.layers.0.mlp.up_proj.weight": (256, 64)})

    def memory(length: int) -> MemoryEstimate:
        return estimate(shape, settings("Full", max_length=length, per_device_train_batch_size=1), Objective.CHAT)

    fixed = 2 * 2 * prod((256, 64)) // 2
    assert memory(2048).activations - fixed == 2 * (memory(1024).activations - fixed)


@contextmanager
def memory_for(rows: int, *, from_forward: int = 0) -> Iterator[list[int]]:
    """An accelerator with memory for so many rows in training, raised by hand for there is none here: the error comes
    out of the model's forward pass, in the middle of the real training. Yields the rows of every training batch."""
    seen: list[int] = []

    def allocate(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and module.training:
            seen.append(len(inputs[0]))
            if len(inputs[0]) > rows and len(seen) > from_forward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_module_forward_pre_hook(allocate)
    try:
        yield seen
    finally:
        handle.remove()


def losses_of(bench: Bench) -> list[tuple[int, float]]:
    lines = (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    points = [json.loads(line) for line in lines]
    return [(point["step"], point["loss"]) for point in points if point["kind"] == "train"]


@pytest.mark.nightly
def test_a_training_that_runs_out_of_memory_continues_as_if_started_with_half_the_rows(
    make_bench: Callable[..., Bench],
) -> None:
    """Batches of four fail in the second step, batches of two at once; rows, order and rate of a step stay."""
    batches_of_four = {"perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 2}
    hyper = HYPERPARAMETERS | batches_of_four | {"maxSteps": 6, "packing": "Never"}
    bench = make_bench(hyperparameters=hyper)
    with memory_for(1, from_forward=3) as batches:
        report = bench.run()
    assert batches[:5] == [4, 4, 4, 4, 2]
    assert set(batches[5:]) == {1}
    resolved = report.resolved
    assert resolved
    assert (resolved.per_device_train_batch_size, resolved.gradient_accumulation_steps) == (1, 8)
    assert resolved.global_batch_size == 8
    alone = make_bench(hyperparameters=hyper | {"perDeviceTrainBatchSize": 1, "gradientAccumulationSteps": 8})
    alone.run()
    told = losses_of(bench)
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in told] == pytest.approx([loss for _, loss in losses_of(alone)], rel=1e-5)
    text = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert "× 8 accumulated = **8 " in text  # noqa: RUF001


def test_a_training_without_memory_for_one_row_ends_with_79_and_what_to_do(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(hyperparameters=HYPERPARAMETERS | {"packing": "Never"})
    with memory_for(0) as batches, pytest.raises(TrainerError) as caught:
        bench.run()
    assert batches == [8, 4, 2, 1]
    assert caught.value.code.value == 79
    assert "lower hyperparameters.maxLength" in caught.value.message
    assert not (bench.output / "manifest.json").exists()


@pytest.mark.parametrize(("budget", "method"), thin_slice([("2Gi", "Full"), (None, "QLoRA")], (None, "QLoRA")))
def test_auto_trains_what_the_budget_permits_and_its_estimate_is_next_to_the_peak(
    make_bench: Callable[..., Bench], budget: str | None, method: str
) -> None:
    tuning = {"method": "Auto"} | ({"vramBudget": budget} if budget else {})
    bench = make_bench(tuning=tuning, hyperparameters=HYPERPARAMETERS | {"maxSteps": 4})
    report = bench.run()
    assert report.resolved
    assert report.resolved.method == method
    assert (bench.output / "adapter").is_dir() is (method != "Full")
    text = (bench.output / "finetune_report.md").read_text(encoding="utf-8")
    assert f"Auto is {method}" in text
    told = format_bytes(report.resolved.estimated_gpu_memory_bytes or 0)
    assert re.search(rf"peak memory \d+(\.\d+)? [MG]iB; preflight's estimate for a GPU was {told}", text)
