"""The method for `Auto`, and the message for a job over its budget; on the shape of an 8B model, without its files."""

from dataclasses import replace
from typing import Any

import pytest
from model_shapes import LLAMA_8B, shape_of

from finetune_api.defaults import Facts
from finetune_api.handoff import ExitCode
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.memory.estimate import GIB
from finetune_trainer.models.memory.shape import ModelShape, with_teacher
from finetune_trainer.models.resolve_settings import (
    choose_settings,
    estimate_served,
    fit_served,
    grow_micro_batch,
    least_served,
)

LLAMA = shape_of(LLAMA_8B)
SMALL = shape_of(LLAMA_8B | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16})
FACTS = Facts(parameters=LLAMA.parameters, train_rows=1000, validation_rows=0)


def make_spec(tuning: dict[str, Any], hyper: dict[str, Any], **blocks: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(
        {
            "objective": "Chat",
            "model": {"uri": "s3://bucket/model"},
            "dataset": {"train": {"uri": "s3://bucket/rows.jsonl"}},
            "output": {"uri": "s3://bucket/out"},
            "tuning": tuning,
            "hyperparameters": hyper,
        }
        | blocks
    )


def choose(shape: ModelShape | None = LLAMA, hyper: dict[str, Any] | None = None, **tuning: Any) -> Resolved:
    return choose_settings(make_spec(tuning, hyper or {}), shape, FACTS)


def refusal(shape: ModelShape = LLAMA, hyper: dict[str, Any] | None = None, **tuning: Any) -> str:
    with pytest.raises(TrainerError) as caught:
        choose(shape, hyper, **tuning)
    assert caught.value.code is ExitCode.WONT_FIT
    assert len(caught.value.message) <= 1024
    assert "\n" not in caught.value.message
    return caught.value.message


def test_without_a_budget_auto_is_qlora_and_nothing_is_refused() -> None:
    settings = choose(hyper={"maxLength": 1_048_576})
    assert settings.method == "QLoRA"
    assert settings.method_reason == "Auto is QLoRA without tuning.vramBudget"
    assert (settings.estimated_gpu_memory_bytes or 0) > 100 * GIB


def test_auto_is_full_where_the_budget_permits_and_the_reason_has_both_numbers() -> None:
    settings = choose(SMALL, vramBudget="80Gi")
    assert settings.method == "Full"
    assert settings.method_reason is not None
    assert settings.method_reason.startswith("Auto is Full: its estimate of ")
    assert settings.method_reason.endswith("is within tuning.vramBudget 80.0 GiB")
    assert settings.estimated_gpu_memory_bytes is not None
    assert settings.estimated_gpu_memory_bytes <= 80 * GIB


def test_auto_is_qlora_where_full_is_above_the_budget() -> None:
    settings = choose(vramBudget="80Gi")
    assert settings.method == "QLoRA"
    assert settings.method_reason is not None
    assert settings.method_reason.startswith("Auto is QLoRA: Full needs 1")
    assert settings.method_reason.endswith("above tuning.vramBudget 80.0 GiB")


def test_auto_is_qlora_if_the_job_keeps_adapters_of_other_steps() -> None:
    spec = make_spec({"vramBudget": "80Gi"}, {}, checkpoint={"keep": 1})
    settings = choose_settings(spec, SMALL, FACTS)
    assert (settings.method, settings.method_reason) == ("QLoRA", "Auto is QLoRA with checkpoint.keep")


@pytest.mark.parametrize("asked", [{"lora": {"rank": 8}}, {"quantization": {"doubleQuant": False}}])
def test_auto_is_qlora_if_the_job_sets_an_adapter(asked: dict[str, Any]) -> None:
    settings = choose(SMALL, vramBudget="80Gi", **asked)
    assert settings.method == "QLoRA"
    assert settings.method_reason == f"Auto is QLoRA with tuning.{next(iter(asked))}"


def test_a_method_that_was_set_stays() -> None:
    settings = choose(SMALL, method="LoRA", vramBudget="80Gi")
    assert (settings.method, settings.method_reason) == ("LoRA", "set in tuning.method")


@pytest.mark.parametrize(
    ("hyper", "batch"),
    [
        ({}, (1, 4)),
        ({"perDeviceTrainBatchSize": 2}, (2, 2)),
        ({"perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 8}, (2, 8)),
    ],
)
def test_with_packing_a_step_has_as_many_sequences_as_hold_its_rows(
    hyper: dict[str, Any], batch: tuple[int, int]
) -> None:
    """Four rows of 512 tokens fill a sequence of 2048: the 16 rows of a step are in four sequences."""
    spec = make_spec({"method": "LoRA"}, {"maxLength": 2048, "packing": "Always"} | hyper)
    settings = choose_settings(spec, LLAMA, FACTS, [512] * 1000)
    assert settings.packing is True
    assert (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) == batch


def test_rows_are_not_packed_if_noise_depends_on_their_length() -> None:
    packed, noisy = (
        choose_settings(make_spec({"method": "LoRA"}, hyper), LLAMA, FACTS, [64] * 1000)
        for hyper in ({}, {"neftuneNoiseAlpha": 5})
    )
    assert (packed.packing, noisy.packing) == (True, False)
    assert noisy.global_batch_size == 16


@pytest.mark.parametrize(("asked", "fits"), [(0.2, True), (95, True), (96, False)])
def test_a_number_of_decay_steps_that_the_training_does_not_have_is_refused(asked: float, fits: bool) -> None:
    hyper = {"lrSchedulerType": "warmup_stable_decay", "maxSteps": 100, "warmupSteps": 5, "decaySteps": asked}
    if fits:
        assert choose(hyper=hyper).decay_steps == (asked if asked > 1 else 20)
        return
    with pytest.raises(TrainerError, match="decaySteps is 96, but the training has 100 steps, 5 of them") as caught:
        choose(hyper=hyper)
    assert caught.value.code is ExitCode.INVALID_CONFIG


@pytest.mark.parametrize(("asked", "steps", "fits"), [(0.99, 5, True), (4, 5, True), (5, 5, False), (1, 1, False)])
def test_a_number_of_warm_up_steps_that_ends_below_the_peak_is_refused(asked: float, steps: int, fits: bool) -> None:
    hyper = {"maxSteps": steps, "warmupSteps": asked}
    if fits:
        assert choose(hyper=hyper).warmup_steps == 4
        return
    with pytest.raises(TrainerError, match=f"warmupSteps is {asked:g}, but the training has {steps} step") as caught:
        choose(hyper=hyper)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_an_open_micro_batch_is_halved_before_the_job_is_refused_and_the_effective_batch_stays() -> None:
    needed = choose(method="LoRA").estimated_gpu_memory_bytes or 0
    settings = choose(method="LoRA", vramBudget=needed - GIB)
    assert settings.per_device_train_batch_size == 1
    assert settings.gradient_accumulation_steps == 16
    assert settings.global_batch_size == 16
    assert settings.gradient_checkpointing is False


def test_open_checkpointing_comes_after_the_micro_batch() -> None:
    settings = choose(method="LoRA", vramBudget="26Gi")
    assert settings.gradient_checkpointing is True
    assert (settings.per_device_train_batch_size, settings.global_batch_size) == (2, 16)


def test_a_fixed_micro_batch_is_not_changed_but_advised_about() -> None:
    fixed = {"perDeviceTrainBatchSize": 32, "maxLength": 4096}
    sentence = refusal(hyper=fixed, method="QLoRA", vramBudget="24Gi")
    assert sentence.startswith("QLoRA is estimated at ")
    assert "above tuning.vramBudget 24.0 GiB (activations " in sentence
    assert "Set perDeviceTrainBatchSize 1 and gradientAccumulationSteps 32 (" in sentence
    assert "or raise the budget to " in sentence


def test_fixed_checkpointing_is_advised_about_after_the_micro_batch() -> None:
    fixed = {"perDeviceTrainBatchSize": 2, "gradientAccumulationSteps": 1, "gradientCheckpointing": False}
    sentence = refusal(hyper=fixed, method="QLoRA", vramBudget="11Gi")
    accumulation = "perDeviceTrainBatchSize 1 and gradientAccumulationSteps 2"
    assert f"Set {accumulation} and gradientCheckpointing true (" in sentence


def test_the_longest_length_that_fits_is_advised_about() -> None:
    sentence = refusal(hyper={"maxLength": 32768}, method="QLoRA", vramBudget="24Gi")
    assert "Set hyperparameters.maxLength " in sentence
    length = int(sentence.split("maxLength ")[1].split()[0])
    assert choose(hyper={"maxLength": length}, method="QLoRA", vramBudget="24Gi").max_length == length
    refusal(hyper={"maxLength": length + 64}, method="QLoRA", vramBudget="24Gi")


def test_qlora_is_advised_where_no_shorter_text_helps() -> None:
    sentence = refusal(method="Full", vramBudget="24Gi")
    assert sentence.startswith("Full is estimated at 1")
    assert "Set tuning.method QLoRA (" in sentence


@pytest.mark.parametrize("objective", ["Chat", "DPO", "KTO", "RewardModel"])
def test_auto_is_full_on_several_gpus_if_it_fits(objective: str) -> None:
    spec = make_spec({"vramBudget": "80Gi"}, {}, objective=objective, resources={"gpusPerNode": 2})
    assert choose_settings(spec, SMALL, FACTS).method == "Full"


def refusal_with(gpus: int, tuning: dict[str, Any]) -> str:
    with pytest.raises(TrainerError) as caught:
        choose_settings(make_spec(tuning, {}, resources={"gpusPerNode": gpus}), LLAMA, FACTS)
    assert caught.value.code is ExitCode.WONT_FIT
    return caught.value.message


SHARED: dict[str, Any] = {"lora": {"shardBase": True}}


def test_on_several_gpus_a_shared_out_base_is_advised_before_shorter_texts_where_the_rules_allow_it() -> None:
    tuning: dict[str, Any] = {"method": "LoRA", "vramBudget": "12Gi"}
    assert "Set tuning.lora.shardBase true (" in refusal_with(4, tuning)
    settings = choose_settings(make_spec(tuning | SHARED, {}, resources={"gpusPerNode": 4}), LLAMA, FACTS)
    assert settings.shard_base is True
    assert "shardBase" not in refusal_with(1, tuning)
    assert "shardBase" not in refusal_with(4, tuning | {"lora": {"useDora": True}})


def test_on_several_gpus_a_shared_out_teacher_is_advised_before_a_shared_out_base() -> None:
    student = with_teacher(SMALL, LLAMA)
    job = {"objective": "Distillation", "distillation": {"teacher": {"uri": "s3://bucket/larger"}}}

    def refused(gpus: int) -> str:
        spec = make_spec({"method": "QLoRA", "vramBudget": "16Gi"}, {}, **job, resources={"gpusPerNode": gpus})
        with pytest.raises(TrainerError) as caught:
            choose_settings(spec, student, FACTS)
        return caught.value.message

    assert "Set distillation.shardTeacher true (" in refused(4)
    assert "shardTeacher" not in refused(1)


def test_weights_that_bitsandbytes_cannot_quantise_are_refused_with_the_method_that_trains_them() -> None:
    name = "model.layers.0.mlp.experts"
    stacks = {f"{name}.gate_up_proj": (160, 2816, 5120), f"{name}.down_proj": (160, 5120, 1408)}
    large = replace(LLAMA, tensors=LLAMA.tensors | stacks)
    with pytest.raises(TrainerError, match=r"QLoRA: .* and model\.layers\.0\.mlp has 2,306,867,200: set it"):
        choose(large, method="QLoRA")
    assert choose(large, method="LoRA").method == "LoRA"

    falcon = replace(LLAMA, model_type="falcon")
    pair = {"resources": {"gpusPerNode": 2}}
    with pytest.raises(TrainerError, match=r"no layer of falcon, so that tuning\.lora\.shardBase has no effect"):
        choose_settings(make_spec({"method": "QLoRA"} | SHARED, {}, **pair), falcon, FACTS)
    assert choose_settings(make_spec({"method": "LoRA"} | SHARED, {}, **pair), falcon, FACTS).shard_base is True


def test_experts_that_the_gpus_cannot_share_out_are_refused_before_a_gpu_is_held_and_auto_avoids_it() -> None:
    mixture = replace(SMALL, tensors=SMALL.tensors | {"model.layers.0.mlp.experts.down_proj": (8, 64, 64)})
    nodes = {"resources": {"numNodes": 2, "gpusPerNode": 8}}
    for tuning in ({"method": "LoRA"} | SHARED, {"method": "Full"}):
        with pytest.raises(TrainerError, match="16 GPUs cannot share out the 8 experts of a layer"):
            choose_settings(make_spec(tuning, {}, **nodes), mixture, FACTS)
    settings = choose_settings(make_spec({"vramBudget": "80Gi"}, {}, **nodes), mixture, FACTS)
    assert settings.method_reason == "Auto is QLoRA with more GPUs than can share out the experts"


def test_qlora_is_advised_with_a_whole_base_before_a_shared_out_one() -> None:
    lora, qlora = {"method": "LoRA"}, {"method": "QLoRA"}
    assert "Set tuning.method QLoRA (" in refusal_with(2, lora | {"vramBudget": "9Gi"})
    assert "Set tuning.lora.shardBase true and tuning.method QLoRA (" in refusal_with(
        2, lora | {"vramBudget": "8700Mi"}
    )
    assert "Set tuning.method QLoRA (" in refusal_with(2, lora | SHARED | {"vramBudget": "8700Mi"})
    assert "Set tuning.lora.shardBase true (" in refusal_with(2, qlora | {"vramBudget": "8700Mi"})
    assert "shardBase" not in refusal_with(1, qlora | {"vramBudget": "8Gi"})


def test_the_budget_that_is_advised_is_enough() -> None:
    sentence = refusal(method="QLoRA", vramBudget="2Gi")
    assert "No setting makes it fit: use a smaller model, or raise the budget to " in sentence
    budget = sentence.rpartition("raise the budget to ")[2].removesuffix(" GiB")
    assert choose(method="QLoRA", vramBudget=f"{budget}Gi").method == "QLoRA"


def test_a_model_of_unknown_sizes_is_neither_estimated_nor_refused() -> None:
    settings = choose(None, vramBudget="1Gi")
    assert settings.method == "QLoRA"
    assert settings.estimated_gpu_memory_bytes is None


def test_a_budget_that_is_not_a_quantity_is_an_invalid_config() -> None:
    with pytest.raises(TrainerError, match=r"tuning\.vramBudget: 'lots' is not a quantity") as caught:
        choose(vramBudget="lots")
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_learnt_reward_takes_the_memory_of_one_more_model_and_computed_ones_none() -> None:
    def estimated(rlhf: dict[str, Any]) -> int:
        spec = make_spec({"method": "LoRA"}, {"maxLength": 512}, objective="RLHF", rlhf=rlhf)
        return choose_settings(spec, LLAMA, FACTS).estimated_gpu_memory_bytes or 0

    computed = estimated({"rewards": [{"type": "Regex", "pattern": "[aeiou]"}]})
    learnt = estimated({"rewardModel": {"uri": "s3://bucket/reward"}})
    assert learnt - computed == 2 * LLAMA.parameters


@pytest.mark.parametrize(("gpus", "method", "is_refused"), [(2, "Full", True), (1, "Full", False), (2, "QLoRA", False)])
@pytest.mark.parametrize("optim", ["adamw_8bit", "lion_32bit", "adafactor", "sgd"])
def test_an_optimiser_that_cannot_update_shards_is_refused_before_a_gpu_is_held(
    gpus: int, method: str, is_refused: bool, optim: str
) -> None:
    spec = make_spec({"method": method}, {"optim": optim}, resources={"gpusPerNode": gpus})
    if not is_refused:
        assert choose_settings(spec, LLAMA, FACTS).optim == optim
        return
    with pytest.raises(TrainerError, match=rf"{optim} does not work with .* Full on several GPUs") as caught:
        choose_settings(spec, LLAMA, FACTS)
    assert caught.value.code is ExitCode.INVALID_CONFIG


GEMMA_2 = replace(LLAMA, model_type="gemma2")


@pytest.mark.parametrize(
    ("hyper", "resources", "shape", "why"),
    [
        ({}, {"gpusPerNode": 0}, LLAMA, "it needs a GPU, and resources.gpusPerNode is 0: set it to Auto"),
        ({"precision": "FP32"}, {}, LLAMA, "the kernel computes in BF16 and FP16, not in FP32: set it to Auto"),
        ({}, {}, GEMMA_2, "the kernel is not known to be exact for gemma2: set it to Auto"),
    ],
)
def test_flash_attention_that_cannot_work_is_refused_before_a_gpu_is_held(
    hyper: dict[str, Any], resources: dict[str, Any], shape: ModelShape, why: str
) -> None:
    spec = make_spec({}, hyper | {"attention": "FlashAttention"}, resources=resources)
    with pytest.raises(TrainerError) as caught:
        choose_settings(spec, shape, FACTS)
    assert caught.value.code is ExitCode.INVALID_CONFIG
    assert caught.value.message == f"hyperparameters.attention FlashAttention: {why}"


def test_the_requested_attention_is_resolved_and_none_stays_open() -> None:
    assert choose(hyper={"attention": "FlashAttention"}).attention == "FlashAttention"
    assert choose().attention is None


def grow(
    free: int, hyper: dict[str, Any] | None = None, tuning: dict[str, Any] | None = None, **blocks: Any
) -> Resolved:
    spec = make_spec(tuning or {"method": "QLoRA"}, hyper or {}, **blocks)
    return grow_micro_batch(spec, choose_settings(spec, LLAMA, FACTS), LLAMA, free)


def batches(settings: Resolved) -> tuple[int | None, int | None]:
    return settings.per_device_train_batch_size, settings.gradient_accumulation_steps


def test_a_micro_batch_grows_until_the_estimate_fills_the_free_memory_and_a_step_keeps_its_rows() -> None:
    sizes = [batches(grow(gib * GIB)) for gib in (12, 24, 40, 80)]
    assert sizes == sorted(sizes)
    assert sizes[0] == (2, 8)
    assert sizes[-1] == (16, 1)
    assert all((micro or 0) * (steps or 0) == 16 for micro, steps in sizes)


def test_the_largest_micro_batch_takes_no_more_than_90_percent_of_the_free_memory() -> None:
    needed = grow(80 * GIB).estimated_gpu_memory_bytes or 0
    assert batches(grow(int(needed / 0.9) + 16)) == (16, 1)
    assert batches(grow(int(needed / 0.9) - 16)) == (8, 2)


def test_a_micro_batch_stays_within_the_budget() -> None:
    needed = grow(80 * GIB).estimated_gpu_memory_bytes or 0
    assert batches(grow(80 * GIB, tuning={"method": "QLoRA", "vramBudget": needed - 1})) == (8, 2)


@pytest.mark.parametrize(
    ("hyper", "expected"),
    [({"perDeviceTrainBatchSize": 2}, (2, 8)), ({"gradientAccumulationSteps": 4}, (2, 4))],
)
def test_a_micro_batch_that_the_job_sets_does_not_grow(hyper: dict[str, int], expected: tuple[int, int]) -> None:
    assert batches(grow(80 * GIB, hyper)) == expected


def test_the_micro_batch_of_kto_does_not_grow_because_the_divergence_is_measured_over_it() -> None:
    assert batches(grow(80 * GIB, objective="KTO")) == (2, 8)


def test_a_micro_batch_of_rlhf_grows_by_whole_groups() -> None:
    rlhf = {"rewards": [{"type": "Length", "targetTokens": 8}], "numGenerations": 8}
    small = {"maxLength": 64}
    micro, steps = batches(grow(80 * GIB, small, objective="RLHF", rlhf=rlhf | {"maxCompletionLength": 64}))
    assert (micro or 0) % 8 == 0
    assert (micro or 0) * (steps or 0) == 16
    shared = grow(
        80 * GIB, small, objective="RLHF", rlhf=rlhf | {"maxCompletionLength": 64}, resources={"gpusPerNode": 4}
    )
    assert batches(shared) == (4, 1), "half of a group in each process"


QUANTISED_SHARES = {"method": "QLoRA", "lora": {"shardBase": True}}


def test_a_micro_batch_that_fills_the_gpu_is_made_smaller_to_measure_in_16_bits() -> None:
    spec = make_spec(QUANTISED_SHARES, {"maxLength": 4096}, resources={"gpusPerNode": 2})
    settings = choose_settings(spec, LLAMA, FACTS).model_copy(
        update={"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    )
    least = least_served(spec, LLAMA, settings)
    assert least < estimate_served(spec, LLAMA, settings).total
    assert fit_served(spec, LLAMA, settings, least - 1) is None
    tight, ample = (fit_served(spec, LLAMA, settings, memory) for memory in (least, 80 * GIB))
    assert tight
    assert (tight.per_device_train_batch_size, tight.gradient_accumulation_steps) == (1, 16)
    assert ample == settings


def test_answers_to_held_out_rows_are_as_many_at_once_as_a_micro_batch_has() -> None:
    blocks = {"resources": {"gpusPerNode": 2}}
    asked = {"evaluation": {"answers": {"match": "Exact"}}}
    plain, asking = (make_spec(QUANTISED_SHARES, {"maxLength": 512}, **blocks | more) for more in ({}, asked))
    settings = choose_settings(plain, LLAMA, FACTS).model_copy(update={"per_device_train_batch_size": 4})
    assert estimate_served(asking, LLAMA, settings).generation == 4 * estimate_served(plain, LLAMA, settings).generation


def test_questions_on_general_ability_are_read_more_tokens_at_once_than_a_short_row_has() -> None:
    blocks = {"resources": {"gpusPerNode": 2}}
    asked = {"evaluation": {"ability": {"uri": "s3://data/questions.jsonl"}}}
    plain, asking = (make_spec(QUANTISED_SHARES, {"maxLength": 512}, **blocks | more) for more in ({}, asked))
    settings = choose_settings(plain, LLAMA, FACTS).model_copy(update={"per_device_train_batch_size": 1})
    assert (
        estimate_served(asking, LLAMA, settings).activations > 4 * estimate_served(plain, LLAMA, settings).activations
    )
