"""Every resolved setting changes the trainer, its model or its adapter, with every objective that has the setting."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from loop_bench import CPU, make_loop, make_settings
from peft.tuners.lora import LoraLayer
from trainer_bench import make_trainer
from training_bench import HYPERPARAMETERS, Bench
from transformers import OPTConfig, OPTForCausalLM, set_seed

from finetune_api.defaults import Facts, resolve
from finetune_api.objectives import Objective
from finetune_api.recipes import WITHOUT_DROPOUT
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_trainer.distributed.world import World
from finetune_trainer.models.loading import load_for_training, load_tokenizer, trained_tensors
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import TrainerParts

MakeBench = Callable[..., Bench]
OBJECTIVES = [one.value for one in Objective]
EACH_OBJECTIVE = [
    pytest.param(name, marks=() if name in {"Instruction", "DPO"} else pytest.mark.nightly) for name in OBJECTIVES
]
CHANGES: dict[str, Any] = {
    "total_steps": 9,
    "learning_rate": 0.02,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.5,
    "neftune_noise_alpha": 5.0,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "optim": "adamw_torch",
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": True,
    "seed": 7,
    "eval_steps": 2,
    "precision": "BF16",
    "lora_rank": 4,
    "lora_alpha": 32,
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 2},
    "lora_dropout": 0.5,
    "use_rslora": True,
    "target_modules": ["q_proj"],
    "exclude_modules": ["layers.0.self_attn.q_proj"],
    "modules_to_save": ["embed_tokens"],
    "use_dora": True,
}
OWN_CHANGES: dict[str, dict[str, Any]] = {
    "DPO": {"beta": 0.2, "loss_type": "ipo", "label_smoothing": 0.3, "sft_weight": 0.5},
    "KTO": {"beta": 0.2, "desirable_weight": 2.0, "undesirable_weight": 2.0},
    "RLHF": {
        "algorithm": "RLOO", "num_generations": 8, "max_completion_length": 8, "temperature": 0.5, "beta": 0.2,
        "loss_type": "grpo", "scale_rewards": "none", "mask_truncated_completions": True,
    },
    "Distillation": {"max_completion_length": 8, "temperature": 0.5, "beta": 0.2},
}  # fmt: skip
NOT_ARGUMENTS = {
    "method": "test_models.py",
    "method_reason": "describes `method`",
    "num_train_epochs": "`total_steps` is derived from it",
    "global_batch_size": "the product of batch, accumulation and processes",
    "decay_steps": "test_schedules.py",
    "min_lr_ratio": "test_schedules.py",
    "max_length": "the tokenizer and the packing apply it",
    "attention": "test_attention.py",
    "fused_kernels": "test_fused_kernels.py",
    "packing": "test_packing.py",
    "mode": "test_evaluate.py",
    "estimated_gpu_memory_bytes": "a result",
    "double_quant": "test_the_constants_of_a_quantised_base_are_quantised_as_set",
    "target_experts": "test_experts.py",
    "target_parameters": "a result",
    "init_lora_weights": "test_adapter_settings.py",
    "lora_plus_lr_ratio": "test_adapter_settings.py",
    "shard_base": "test_sharded_base.py",
    "shard_teacher": "test_distillation_ranks.py",
    "rollouts_gpu_memory_fraction": "test_rlhf.py, and with vLLM tests/servers/rollouts",
}


def fingerprint(trainer: LoopTrainer) -> dict[str, Any]:
    """Return what a training depends on: the library's arguments, and the layers of the adapter as they compute."""
    layers = {
        name: (layer.scaling["default"], layer.r["default"], [one.p for one in dropouts(layer) if one.p])
        for name, layer in trainer.model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    checkpointed = any(getattr(layer, "gradient_checkpointing", False) for layer in trainer.model.modules())
    return {
        "arguments": trainer.args.to_dict(),
        "trainer": type(trainer).__name__,
        "layers": layers,
        "trained": sorted(trained_tensors(trainer.model)),
        "checkpointed": checkpointed,
    }


def dropouts(model: torch.nn.Module) -> list[torch.nn.Dropout]:
    return [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]


def test_every_resolved_setting_is_tried_or_has_its_reason() -> None:
    own = {name for changes in OWN_CHANGES.values() for name in changes}
    assert set(Resolved.model_fields) == set(CHANGES) | own | set(NOT_ARGUMENTS)


@pytest.mark.parametrize("objective", EACH_OBJECTIVE)
def test_a_resolved_setting_changes_the_training(tiny_model: Path, tmp_path: Path, objective: str) -> None:
    usual = fingerprint(make_trainer(objective, tiny_model, tmp_path))
    without_effect = []
    for name, value in (CHANGES | OWN_CHANGES.get(objective, {})).items():
        if fingerprint(make_trainer(objective, tiny_model, tmp_path, **{name: value})) == usual:
            without_effect.append(name)
    assert without_effect == (["lora_dropout"] if objective in WITHOUT_DROPOUT else [])


@pytest.mark.parametrize("objective", EACH_OBJECTIVE)
def test_the_recorded_dropout_is_the_one_in_training(tiny_model: Path, tmp_path: Path, objective: str) -> None:
    """A job that was stored before its dropout was refused is recorded as it is trained: without."""
    spec = FineTuneJobSpec.model_validate(
        {
            "objective": objective,
            "model": {"uri": "s3://models/base"},
            "tuning": {"method": "LoRA", "lora": {"dropout": 0.3}},
            "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
            "output": {"uri": "s3://models/out"},
        }
    )
    recorded = resolve(spec, Facts(parameters=1, train_rows=10, validation_rows=0)).lora_dropout
    trainer = make_trainer(objective, tiny_model, tmp_path, lora_dropout=recorded)
    trainer.model.train()
    used = {
        one.p for layer in trainer.model.modules() if isinstance(layer, LoraLayer) for one in dropouts(layer) if one.p
    }
    assert used == ({recorded} if recorded else set())
    assert recorded == (0 if objective in WITHOUT_DROPOUT else 0.3)


@pytest.mark.parametrize("objective", WITHOUT_DROPOUT)
def test_an_objective_without_dropout_has_none_in_functions_either(
    tiny_model: Path, tmp_path: Path, objective: str
) -> None:
    """OPT, as StarCoder 2 and others, calls the function with a number of its own."""
    model = tmp_path / "opt"
    shutil.copytree(tiny_model, model)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(**sizes, num_attention_heads=2, vocab_size=512, dropout=0.5, attention_dropout=0.5)
    OPTForCausalLM(config).save_pretrained(model)
    trainer = make_trainer(objective, model, tmp_path)
    trainer.model.train()
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        first, second = (trainer.model(input_ids=ids, use_cache=False).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("double", [True, False])
def test_the_constants_of_a_quantised_base_are_quantised_as_set(tiny_model: Path, double: bool) -> None:
    model = load_for_training(tiny_model, make_settings("QLoRA", double_quant=double), CPU)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    assert {layer.weight.quant_state.nested for layer in layers} == {double}


@pytest.mark.parametrize(
    ("asked", "reported"),
    [({"fusedKernels": "Auto"}, False), pytest.param({}, None, marks=pytest.mark.nightly)],
)
def test_fused_kernels_are_reported_if_set(make_bench: MakeBench, asked: dict[str, str], reported: bool | None) -> None:
    hyper = HYPERPARAMETERS | {"maxSteps": 2, "warmupSteps": 0, "gradientAccumulationSteps": 1}
    bench = make_bench(hyperparameters=hyper | asked, evaluation={"baseline": False})
    report = bench.run()
    assert report.resolved
    assert report.resolved.fused_kernels is reported, "there is no GPU here"


def test_the_highest_seed_leaves_room_for_the_number_of_each_process(tiny_model: Path, tmp_path: Path) -> None:
    """TRL adds a process's number to the seed before it samples, and numpy takes 32 bits."""
    world = World()
    world.size = 4
    parts = TrainerParts(
        load_for_training(tiny_model, make_settings("LoRA"), CPU),
        load_tokenizer(tiny_model),
        make_settings("LoRA", seed=2**32 - 1),
        replace(make_loop(tmp_path), world=world),
        [],
        [],
        tmp_path,
    )
    for rank in range(world.size):
        set_seed(parts.library_settings()["seed"] + rank)
