"""The table of defaults, by method, size and rows."""

from typing import Any

import pytest

from finetune_api.defaults import Facts, resolve
from finetune_api.spec import FineTuneJobSpec

SMALL = Facts(parameters=135_000_000, train_rows=1000, validation_rows=50)


def resolved(facts: Facts = SMALL, **changes: Any) -> Any:
    base = {
        "objective": "Chat",
        "model": {"uri": "s3://models/base"},
        "dataset": {"train": {"uri": "s3://data/train.jsonl"}},
        "output": {"uri": "s3://models/out"},
    }
    return resolve(FineTuneJobSpec.model_validate(base | changes), facts)


def test_qlora_is_the_default_method_with_its_own_clip_and_checkpointing() -> None:
    it = resolved()
    assert (it.method, it.learning_rate, it.max_grad_norm, it.gradient_checkpointing) == ("QLoRA", 2e-4, 0.3, True)
    assert (it.lora_rank, it.lora_alpha, it.lora_dropout, it.double_quant) == (16, 32, 0.05, True)
    assert (it.global_batch_size, it.num_train_epochs, it.total_steps) == (16, 3.0, 189)


@pytest.mark.parametrize(
    ("method", "parameters", "rate"),
    [("QLoRA", 14e9, 1e-4), ("LoRA", 14e9, 2e-4), ("Full", 1e9, 2e-5), ("Full", 8e9, 1e-5)],
)
def test_the_learning_rate_falls_with_the_size_of_the_model(method: str, parameters: float, rate: float) -> None:
    facts = Facts(parameters=int(parameters), train_rows=1000, validation_rows=0)
    assert resolved(facts, tuning={"method": method}).learning_rate == rate


def test_full_tuning_has_no_adapter_settings() -> None:
    it = resolved(tuning={"method": "Full"})
    assert (it.lora_rank, it.global_batch_size, it.num_train_epochs) == (None, 32, 2.0)


def test_given_values_win() -> None:
    it = resolved(
        hyperparameters={"maxSteps": 24, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "warmupSteps": 0}
    )
    assert (it.total_steps, it.global_batch_size, it.warmup_steps, it.eval_steps) == (24, 4, 0.0, 2)


def test_without_held_out_rows_nothing_is_evaluated() -> None:
    assert resolved(Facts(parameters=1, train_rows=10, validation_rows=0)).eval_steps is None
