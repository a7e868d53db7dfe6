"""Held-out rows are measured in the number format of the training, before its first step as after it."""

from dataclasses import replace
from pathlib import Path

import pytest
from thin_slice import thin_slice
from trainer_bench import make_trainer

from finetune_trainer.training.callbacks import RequireGradient

CASES = [
    (objective, method)
    for objective in ("Instruction", "DPO", "KTO", "RewardModel", "Distillation")
    for method in ("Full", "LoRA")
]


@pytest.mark.parametrize(
    ("objective", "method"), thin_slice(CASES, ("Instruction", "Full"), ("DPO", "Full"), ("RewardModel", "LoRA"))
)
def test_weights_that_do_not_change_have_one_measurement(
    tiny_model: Path, tmp_path: Path, objective: str, method: str
) -> None:
    trainer = make_trainer(objective, tiny_model, tmp_path, method, precision="BF16", learning_rate=0.0, total_steps=1)
    trainer.remove_callback(RequireGradient)  # a teacher that is the model itself gives none
    before = trainer.measure()
    trainer.train()
    after = replace(trainer.measure(), reward_accuracy=before.reward_accuracy)  # DPO has none before the first step
    assert after == before
