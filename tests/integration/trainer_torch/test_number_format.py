"""Held-out rows are measured in the number format of the training, before its first step as after it."""

from dataclasses import replace
from pathlib import Path

import pytest
from thin_slice import thin_slice
from trainer_bench import make_trainer

from finetune_trainer.training.callbacks import RequireGradient
from finetune_trainer.training.methods.rlhf import PolicyTrainer

CASES = [
    (objective, method)
    for objective in ("Instruction", "DPO", "KTO", "RewardModel", "RLHF", "Distillation")
    for method in ("Full", "LoRA")
]


@pytest.mark.parametrize(
    ("objective", "method"), thin_slice(CASES, ("Instruction", "Full"), ("RewardModel", "LoRA"), ("RLHF", "Full"))
)
def test_weights_that_do_not_change_have_one_measurement(
    tiny_model: Path, tmp_path: Path, objective: str, method: str
) -> None:
    trainer = make_trainer(objective, tiny_model, tmp_path, method, precision="BF16", learning_rate=0.0, total_steps=1)
    trainer.remove_callback(RequireGradient)  # a tiny model's answers may all have one reward
    if isinstance(trainer, PolicyTrainer):
        sampled = trainer.measure_reward()
        trainer.train()
        assert trainer.measure_again(sampled) == sampled
        return
    before = trainer.measure()
    trainer.train()
    after = replace(trainer.measure(), reward_accuracy=before.reward_accuracy)  # DPO has none before the first step
    assert after == before
