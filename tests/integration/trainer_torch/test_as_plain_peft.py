"""An adapter with extras ends, also after a stop in the middle, with the weights that PEFT has by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from plain_trl import (
    Case,
    course_of_job,
    make_job,
    make_marked_model,
    require_same,
    require_same_weights,
    run_plain,
)
from safetensors.torch import load_file, save_file
from stopped_training import stopped
from thin_slice import thin_slice
from training_bench import make_rows

LABELS = {"input_ids": "input_ids", "labels": "labels"}
ROWS = make_rows(80)
ANSWERS = {"assistant_only_loss": True}
DECOMPOSED = 1e-4
"""Tolerance after first values of a decomposition: PEFT keeps the rest of each weight, rounded, as the base."""


def case(lora: dict[str, Any], peft: dict[str, Any], **rest: Any) -> Case:
    return Case("Chat", ROWS[:60], ROWS[60:], lora=lora, peft=peft, arguments=ANSWERS, **rest)


def loraplus(model: torch.nn.Module) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=4, loraplus_lr_embedding=0.01, loraplus_weight_decay=0.1,
        fused=True,
    )  # fmt: skip
    return optimizer


def separate_singular_values(path: Path) -> None:
    """Rewrite the matrices: those of a random one are so close that a randomised decomposition differs each time."""
    weights = load_file(path)
    for name, one in weights.items():
        if "_proj" in name:
            left, values, right = torch.linalg.svd(one, full_matrices=False)
            weights[name] = (left * values[0] * 0.7 ** torch.arange(len(values))) @ right
    save_file(weights, path, metadata={"format": "pt"})


PATTERNS = {"down_proj": 4, r"layers\.0\.self_attn\..*": 2}
ALPHAS = {"down_proj": 32, "q_proj": 4}
CASES = {
    "ranks and alphas of single modules, scaled by the root of the rank": case(
        {"useRslora": True, "rankPattern": PATTERNS, "alphaPattern": ALPHAS},
        {"use_rslora": True, "rank_pattern": PATTERNS, "alpha_pattern": ALPHAS},
    ),
    "DoRA": case({"useDora": True}, {"use_dora": True}),
    "LoRA+": case({"loraPlusLrRatio": 4}, {}, optimizer=loraplus),
    "Gaussian first values": case({"initLoraWeights": "Gaussian"}, {"init_lora_weights": "gaussian"}),
    "tied embeddings and a norm in full": case(
        {"modulesToSave": ["embed_tokens", "model.norm"]},
        {"modules_to_save": ["embed_tokens", "lm_head", "model.norm"], "ensure_weight_tying": True},
    ),
    "named modules without one": case(
        {"targetModules": ["q_proj", "v_proj", "up_proj"], "excludeModules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj", "v_proj", "up_proj"], "exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    ),
}


@pytest.mark.parametrize("name", thin_slice(CASES, next(iter(CASES))))
def test_an_adapter_is_trained_as_by_peft_also_after_a_stop(tmp_path: Path, name: str) -> None:
    model = make_marked_model(tmp_path / "model")
    bench = make_job(tmp_path, model, CASES[name])
    config = bench.prepare()
    report = stopped(bench, config, 3, 1).train(config)
    _, plain = run_plain(tmp_path / "plain", model, CASES[name])
    job = course_of_job(bench, report)
    require_same(job, plain, LABELS)


@pytest.mark.nightly
@pytest.mark.parametrize(("ours", "theirs"), [("PiSSA", "pissa_niter_16"), ("OLoRA", "olora")])
def test_an_adapter_that_starts_from_the_weights_gives_the_full_model_of_peft(
    tmp_path: Path, ours: str, theirs: str
) -> None:
    """PEFT subtracts the first values from the base, a job from the adapter's output: the merged weights are equal."""
    model = make_marked_model(tmp_path / "model")
    separate_singular_values(model / "model.safetensors")
    one = case(
        {"initLoraWeights": ours}, {"init_lora_weights": theirs},
        blocks={"output": {"uri": "s3://bucket/output", "merge": "FP32"}},
    )  # fmt: skip
    bench = make_job(tmp_path, model, one)
    config = bench.prepare()
    report = stopped(bench, config, 3, 1).train(config)
    trainer, plain = run_plain(tmp_path / "plain", model, one)
    job = course_of_job(bench, report)
    assert [loss for loss, _ in job.steps] == pytest.approx([loss for loss, _ in plain.steps], abs=DECOMPOSED)
    assert job.eval_loss == pytest.approx(plain.eval_loss, abs=DECOMPOSED)
    merged = trainer.model.merge_and_unload().state_dict()
    weights = load_file(bench.output / "merged" / "model.safetensors")
    require_same_weights(weights, {name: merged[name] for name in weights}, DECOMPOSED)
