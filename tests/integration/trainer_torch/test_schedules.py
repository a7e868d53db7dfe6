"""The learning rates of a training, step by step, are those of the schedule's formula."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from thin_slice import thin_slice
from trainer_bench import make_trainer
from training_bench import HYPERPARAMETERS, Bench

MakeBench = Callable[..., Bench]
PEAK, STEPS, WARMUP, DECAY = 0.01, 12, 3, 4


def half_cosine(progress: float, lowest: float) -> float:
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * progress)) / 2


def cosine_with_min_lr(step: int) -> float:
    if step < WARMUP:
        return step / WARMUP
    return half_cosine((step - WARMUP) / (STEPS - WARMUP), 0.2)


def warmup_stable_decay(step: int) -> float:
    """The warm-up starts at the lowest rate, too."""
    if step < WARMUP:
        return 0.2 + 0.8 * step / WARMUP
    return half_cosine(max(0, step - (STEPS - DECAY)) / DECAY, 0.2)


@pytest.mark.parametrize(
    ("formula", "settings"),
    thin_slice(
        [(cosine_with_min_lr, {}), (warmup_stable_decay, {"decaySteps": DECAY})],
        (warmup_stable_decay, {"decaySteps": DECAY}),
    ),
    ids=["cosine_with_min_lr", "warmup_stable_decay"],
)
def test_every_step_has_the_rate_of_the_formula(
    make_bench: MakeBench, formula: Callable[[int], float], settings: dict[str, Any]
) -> None:
    hyper = HYPERPARAMETERS | {"maxSteps": STEPS, "warmupSteps": WARMUP, "minLrRatio": 0.2, "learningRate": PEAK}
    bench = make_bench(hyperparameters=hyper | settings | {"lrSchedulerType": formula.__name__})
    report = bench.run()
    lines = map(json.loads, (bench.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rates = {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "train"}
    assert rates == pytest.approx({step + 1: PEAK * formula(step) for step in range(STEPS)}, rel=1e-4)
    assert report.resolved
    assert (report.resolved.min_lr_ratio, report.resolved.decay_steps) == (0.2, settings.get("decaySteps"))


@pytest.mark.parametrize("method", thin_slice(["LoRA", "Full"], "Full"))
def test_a_training_of_one_step_learns(make_bench: MakeBench, method: str) -> None:
    bench = make_bench(method, hyperparameters=HYPERPARAMETERS | {"maxSteps": 1})
    report = bench.run()
    assert report.metrics
    assert report.metrics.learning_rate == HYPERPARAMETERS["learningRate"]
    assert report.metrics.eval_loss != report.metrics.baseline_eval_loss


def test_a_peak_that_is_no_higher_than_the_end_of_polynomial_goes_down_to_0(tiny_model: Path, tmp_path: Path) -> None:
    rates = {"learning_rate": 1e-7, "lr_scheduler_type": "polynomial"}
    trainer = make_trainer("Instruction", tiny_model, tmp_path, total_steps=4, eval_steps=4, **rates)
    trainer.train()
    found = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert found == pytest.approx([1e-7, 0.75e-7, 0.5e-7, 0.25e-7])
