"""The table of defaults, by method, size and rows."""

from typing import Any

import pytest

from finetune_api.defaults import Facts, resolve
from finetune_api.spec import FineTuneJobSpec, Method

SMALL = Facts(parameters=135_000_000, train_rows=1000, validation_rows=50)


REWARDED = {"rewards": [{"type": "Length", "targetTokens": 8}]}
TAUGHT = {"teacher": {"uri": "s3://models/larger"}}
BLOCKS = {"RLHF": {"rlhf": REWARDED}, "Distillation": {"distillation": TAUGHT}}


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


@pytest.mark.parametrize(
    ("hyper", "expected"),
    [
        ({"lrSchedulerType": "cosine"}, (6, None, None)),
        ({"lrSchedulerType": "cosine_with_min_lr"}, (6, None, 0.1)),
        ({"lrSchedulerType": "warmup_stable_decay"}, (6, 19, 0.0)),
        ({"lrSchedulerType": "warmup_stable_decay", "decaySteps": 30, "minLrRatio": 0.2}, (6, 30, 0.2)),
        ({"lrSchedulerType": "warmup_stable_decay", "decaySteps": 0}, (6, 0, 0.0)),
        ({"lrSchedulerType": "warmup_stable_decay", "warmupSteps": 0.99, "decaySteps": 0.01}, (188, 1, 0.0)),
        ({"lrSchedulerType": "warmup_stable_decay", "maxSteps": 1}, (0, 1, 0.0)),
    ],
)
def test_what_follows_the_peak_is_a_share_of_the_steps_and_ends_with_them(
    hyper: dict[str, Any], expected: tuple[int, int | None, float | None]
) -> None:
    """189 steps; 3 % of them are warm-up, and 10 % the decay, both rounded up."""
    it = resolved(hyperparameters=hyper)
    assert (it.warmup_steps, it.decay_steps, it.min_lr_ratio) == expected


@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.0), (0.05, 0.05)])
def test_dora_has_no_dropout_unless_it_is_set(dropout: float | None, expected: float) -> None:
    """With dropout it keeps every weight for the backward pass."""
    assert resolved(tuning={"lora": {"useDora": True, "dropout": dropout}}).lora_dropout == expected


def test_full_tuning_has_no_adapter_settings() -> None:
    it = resolved(tuning={"method": "Full"})
    assert (it.lora_rank, it.global_batch_size, it.num_train_epochs) == (None, 32, 2.0)


@pytest.mark.parametrize(
    ("method", "resources", "expected"),
    [
        ("QLoRA", {}, True),
        ("Full", {}, True),
        ("LoRA", {}, False),
        ("LoRA", {"gpusPerNode": 2}, True),
        ("LoRA", {"numNodes": 2}, True),
    ],
)
def test_activations_are_recomputed_except_by_lora_in_one_process(
    method: str, resources: dict[str, int], expected: bool
) -> None:
    assert resolved(tuning={"method": method}, resources=resources).gradient_checkpointing is expected
    asked = resolved(
        tuning={"method": method}, resources=resources, hyperparameters={"gradientCheckpointing": not expected}
    )
    assert asked.gradient_checkpointing is not expected


def test_given_values_win() -> None:
    it = resolved(
        hyperparameters={"maxSteps": 24, "perDeviceTrainBatchSize": 4, "gradientAccumulationSteps": 1, "warmupSteps": 0}
    )
    assert (it.total_steps, it.global_batch_size, it.warmup_steps, it.eval_steps) == (24, 4, 0.0, 2)


@pytest.mark.parametrize(
    ("resources", "batch", "accumulation", "whole"),
    [
        ({"numNodes": 2, "gpusPerNode": 4}, 2, 1, 16),
        ({"gpusPerNode": 2}, 2, 4, 16),
        ({"numNodes": 16, "gpusPerNode": 0}, 1, 1, 16),
        ({"numNodes": 3}, 2, 2, 12),
        ({"numNodes": 8, "gpusPerNode": 8}, 1, 1, 64),
    ],
)
def test_the_rows_of_a_step_are_divided_among_all_processes(
    resources: dict[str, int], batch: int, accumulation: int, whole: int
) -> None:
    it = resolved(resources=resources)
    assert (it.per_device_train_batch_size, it.gradient_accumulation_steps) == (batch, accumulation)
    assert it.global_batch_size == whole
    assert it.total_steps == 3 * -(-1000 // whole)


def test_each_of_many_processes_of_kto_gets_two_rows() -> None:
    it = resolved(objective="KTO", tuning={"method": "LoRA"}, resources={"numNodes": 16})
    assert (it.per_device_train_batch_size, it.gradient_accumulation_steps, it.global_batch_size) == (2, 1, 32)


@pytest.mark.parametrize(
    ("rows", "steps", "epochs"),
    [(49, 6, 48 / 49), (49, 7, 1.0), (49, 10, 1 + 24 / 49), (49, 14, 2.0), (48, 6, 1.0), (5, 3, 3.0)],
)
def test_the_epochs_of_given_steps_count_a_short_last_step_by_its_rows(rows: int, steps: int, epochs: float) -> None:
    batch = {"perDeviceTrainBatchSize": 1, "gradientAccumulationSteps": 8}
    it = resolved(Facts(parameters=1, train_rows=rows, validation_rows=0), hyperparameters=batch | {"maxSteps": steps})
    assert it.num_train_epochs == pytest.approx(epochs, rel=1e-4)


@pytest.mark.parametrize(("warmup", "steps"), [(0.03, 1), (0.5, 3), (0, 0), (1, 1), (4, 4)])
def test_the_warm_up_is_resolved_to_steps(warmup: float, steps: int) -> None:
    assert resolved(hyperparameters={"maxSteps": 6, "warmupSteps": warmup}).warmup_steps == steps


@pytest.mark.parametrize(
    ("hyper", "warmup"),
    [({"maxSteps": 1}, 0), ({"maxSteps": 2}, 1), ({"maxSteps": 3, "warmupSteps": 0.9}, 2)],
)
def test_a_share_of_warm_up_leaves_a_step_at_the_peak(hyper: dict[str, Any], warmup: int) -> None:
    """The first step of a warm-up has the rate 0: a training of one step would learn nothing."""
    assert resolved(hyperparameters=hyper).warmup_steps == warmup


@pytest.mark.parametrize("objective", ["DPO", "KTO", "RewardModel"])
def test_a_single_step_over_few_rows_has_no_warm_up(objective: str) -> None:
    it = resolved(Facts(parameters=1, train_rows=12, validation_rows=0), objective=objective)
    assert (it.total_steps, it.warmup_steps) == (1, 0)


@pytest.mark.parametrize(
    ("objective", "hyper", "expected"),
    [
        ("Chat", {"lrSchedulerType": "constant"}, ("constant", 0)),
        ("Chat", {"lrSchedulerType": "constant_with_warmup"}, ("constant_with_warmup", 1)),
        ("RLHF", {}, ("constant", 0)),
        ("RLHF", {"warmupSteps": 0}, ("constant", 0)),
        ("RLHF", {"warmupSteps": 2}, ("constant_with_warmup", 2)),
        ("RLHF", {"warmupSteps": 2, "lrSchedulerType": "linear"}, ("linear", 2)),
    ],
)
def test_a_warm_up_changes_the_default_schedule_to_one_that_has_it(
    objective: str, hyper: dict[str, Any], expected: tuple[str, int]
) -> None:
    it = resolved(objective=objective, hyperparameters={"maxSteps": 6} | hyper, **BLOCKS.get(objective, {}))
    assert (it.lr_scheduler_type, it.warmup_steps) == expected


def test_without_held_out_rows_nothing_is_evaluated() -> None:
    assert resolved(Facts(parameters=1, train_rows=10, validation_rows=0)).eval_steps is None


@pytest.mark.parametrize(
    ("objective", "rate", "epochs", "warmup", "schedule", "dropout"),
    [
        ("Instruction", 2e-4, 3, 6, "cosine", 0.05),
        ("DomainAdaptation", 2e-4, 3, 6, "cosine", 0.05),
        ("DPO", 5e-6, 1, 7, "cosine", 0.0),
        ("KTO", 5e-6, 1, 7, "cosine", 0.0),
        ("RewardModel", 1e-4, 1, 2, "cosine", 0.05),
        ("RLHF", 5e-6, 1, 0, "constant", 0.0),
        ("Distillation", 2e-4, 1, 2, "cosine", 0.0),
    ],
)
def test_each_objective_has_its_own_recipe(  # noqa: PLR0917 - the columns of a table
    objective: str, rate: float, epochs: float, warmup: int, schedule: str, dropout: float
) -> None:
    it = resolved(objective=objective, **BLOCKS.get(objective, {}))
    assert (it.learning_rate, it.num_train_epochs, it.warmup_steps) == (rate, epochs, warmup)
    assert (it.lr_scheduler_type, it.lora_dropout) == (schedule, dropout)


@pytest.mark.parametrize(("lora", "dropout"), [({"targetExperts": True}, 0.0), ({"targetExperts": False}, 0.05)])
def test_an_adapter_that_is_also_on_experts_has_no_dropout(lora: dict[str, object], dropout: float) -> None:
    it = resolved(tuning={"lora": lora})
    assert (it.target_experts, it.lora_dropout) == (lora["targetExperts"], dropout)


def test_the_settings_of_an_objective_are_shown_with_their_defaults() -> None:
    dpo, kto, rlhf = (resolved(objective="DPO"), resolved(objective="KTO"), resolved(objective="RLHF", rlhf=REWARDED))
    assert (dpo.beta, dpo.loss_type, dpo.label_smoothing, dpo.sft_weight) == (0.1, "sigmoid", None, None)
    for loss_type, smoothing in (("robust", 0.1), ("exo_pair", 0.001), ("ipo", None)):
        assert resolved(objective="DPO", dpo={"lossType": loss_type}).label_smoothing == smoothing
    assert (kto.desirable_weight, kto.undesirable_weight) == (1.0, 1.0)
    taught = resolved(objective="Distillation", distillation=TAUGHT)
    assert (taught.beta, taught.max_completion_length, taught.temperature) == (1.0, 512, 1.0)
    assert (rlhf.algorithm, rlhf.num_generations, rlhf.max_completion_length, rlhf.beta) == ("GRPO", 8, 512, 0.04)
    assert (rlhf.loss_type, rlhf.scale_rewards, rlhf.mask_truncated_completions) == ("dapo", "group", None)
    alone = resolved(objective="RLHF", rlhf=REWARDED | {"algorithm": "RLOO"})
    assert (alone.loss_type, alone.scale_rewards) == (None, None)


@pytest.mark.parametrize("generations", [2, 3, 4, 5, 8, 12, 64])
@pytest.mark.parametrize(
    "hyper", [{}, {"perDeviceTrainBatchSize": 6}, {"gradientAccumulationSteps": 7}, {"perDeviceTrainBatchSize": 1}]
)
def test_a_step_of_rlhf_holds_whole_groups_of_answers(generations: int, hyper: dict[str, int]) -> None:
    it = resolved(objective="RLHF", rlhf=REWARDED | {"numGenerations": generations}, hyperparameters=hyper)
    assert it.global_batch_size % generations == 0
    assert hyper.get("perDeviceTrainBatchSize") in {None, it.per_device_train_batch_size}
    assert hyper.get("gradientAccumulationSteps") in {None, it.gradient_accumulation_steps}


@pytest.mark.parametrize("generations", [2, 3, 8, 12, 64])
@pytest.mark.parametrize("gpus", [2, 3, 4, 16])
@pytest.mark.parametrize("hyper", [{}, {"perDeviceTrainBatchSize": 6}, {"gradientAccumulationSteps": 7}])
def test_several_gpus_share_the_whole_groups_of_a_step(generations: int, gpus: int, hyper: dict[str, int]) -> None:
    rlhf = REWARDED | {"numGenerations": generations}
    it = resolved(objective="RLHF", rlhf=rlhf, hyperparameters=hyper, resources={"gpusPerNode": gpus})
    own = it.per_device_train_batch_size * it.gradient_accumulation_steps
    assert it.global_batch_size == gpus * own
    assert it.global_batch_size % generations == 0


@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16])
def test_a_step_of_rlhf_has_the_answers_of_one_gpu(gpus: int) -> None:
    it = resolved(objective="RLHF", rlhf=REWARDED, resources={"gpusPerNode": gpus})
    assert (it.global_batch_size, it.total_steps) == (16, 1000 * 8 // 16)


def test_an_epoch_of_rlhf_asks_every_prompt_once_with_all_its_answers() -> None:
    assert resolved(objective="RLHF", rlhf=REWARDED).total_steps == 1000 * 8 // 16


@pytest.mark.parametrize("rows", [3, 9, 10, 13, 16, 20, 1000])
@pytest.mark.parametrize(("objective", "group"), [("RLHF", 8), ("Distillation", 1)])
def test_full_steps_of_sampled_answers_are_as_many_passes_as_the_job_asks_for(
    objective: str, group: int, rows: int
) -> None:
    batch = {"perDeviceTrainBatchSize": 8, "gradientAccumulationSteps": group}
    facts = Facts(parameters=1, train_rows=rows, validation_rows=0)
    it = resolved(facts, objective=objective, hyperparameters=batch | {"numTrainEpochs": 4}, **BLOCKS[objective])
    prompts = it.total_steps * it.global_batch_size / group
    assert 4 * rows <= prompts < 4 * rows + it.global_batch_size / group
    given = batch | {"maxSteps": it.total_steps}
    again = resolved(facts, objective=objective, hyperparameters=given, **BLOCKS[objective])
    assert again.num_train_epochs == pytest.approx(prompts / rows, rel=1e-4)


def test_the_method_that_the_memory_estimate_chose_is_taken_with_its_reason() -> None:
    facts = Facts(1_000, 10, 0, method=Method.FULL, method_reason="fits 80Gi", estimated_gpu_memory_bytes=5)
    it = resolved(facts)
    assert (it.method, it.method_reason, it.estimated_gpu_memory_bytes) == ("Full", "fits 80Gi", 5)


@pytest.mark.parametrize("objective", ["DPO", "KTO", "RLHF", "Distillation"])
def test_a_stored_job_with_a_dropout_that_its_objective_does_not_use_is_recorded_without(objective: str) -> None:
    settings = resolved(
        objective=objective,
        tuning={"method": "LoRA", "lora": {"dropout": 0.1}},
        **BLOCKS.get(objective, {}),
    )
    assert settings.lora_dropout == 0
