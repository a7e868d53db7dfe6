"""The estimate for models that do not fit here; against counted bytes it is tested with torch."""

from dataclasses import replace
from math import prod
from typing import Any

import pytest
from model_shapes import LLAMA_8B, llama_tensors, shape_of

from finetune_api.handoff import ExitCode
from finetune_api.objectives import Objective
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.memory.estimate import (
    GIB,
    MemoryEstimate,
    estimate,
    estimate_measuring,
    format_bytes,
    share_batch,
    weight_bytes,
)
from finetune_trainer.models.memory.shape import ModelShape, read_shape, with_teacher


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape_of(LLAMA_8B)


def settings(method: str = "QLoRA", **changes: Any) -> Resolved:
    return Resolved(
        method=method,
        precision="Auto",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        global_batch_size=16,
        max_length=2048,
        gradient_checkpointing=method == "QLoRA",
        lora_rank=16,
        lora_dropout=0.05,
        double_quant=True,
    ).model_copy(update=changes)


def part(shape: ModelShape, name: str, objective: Objective = Objective.CHAT, **changes: Any) -> int:
    return dict(estimate(shape, settings(**changes), objective).parts())[name]


def test_the_shape_of_an_8b_model_gives_its_8_030_261_248_weights(llama: ModelShape) -> None:
    assert llama.parameters == 8_030_261_248
    assert len(llama.linear) == 7 * 32
    assert llama.other == 2 * 128256 * 4096 + 65 * 4096


def test_double_quantisation_costs_4_127_bits_a_weight_and_plain_4_5(llama: ModelShape) -> None:
    linear = llama.parameters - llama.other
    double = weight_bytes(llama, settings()) - 2 * llama.other
    plain = weight_bytes(llama, settings(double_quant=False)) - 2 * llama.other
    assert 8 * double / linear == pytest.approx(4.127, abs=0.001)
    assert 8 * plain / linear == pytest.approx(4.5, abs=0.001)


def test_full_takes_16_bytes_a_weight_before_activations(llama: ModelShape) -> None:
    memory = estimate(llama, settings("Full"), Objective.CHAT)
    assert memory.weights + memory.gradients + memory.optimiser == 16 * llama.parameters
    assert memory.adapter == 0


def test_several_gpus_share_out_what_full_holds_and_borrow_the_largest_part(llama: ModelShape) -> None:
    alone = estimate(llama, settings("Full"), Objective.CHAT)
    shared = estimate(llama, settings("Full"), Objective.CHAT, ranks=8)
    assert shared.optimiser == alone.optimiser // 8
    assert shared.weights == alone.weights // 8 + 2 * _gathered(llama)
    assert shared.gradients == alone.gradients // 8 + 4 * llama.other
    assert shared.activations == alone.activations - 2 * (llama.parameters - llama.other)


def test_in_fp16_several_gpus_gather_the_weights_of_full_in_fp32(llama: ModelShape) -> None:
    alone = estimate(llama, settings("Full", precision="FP16"), Objective.CHAT)
    shared = estimate(llama, settings("Full", precision="FP16"), Objective.CHAT, ranks=8)
    assert shared.weights == alone.weights // 8 + 4 * _gathered(llama)
    assert shared.activations == alone.activations


def test_several_gpus_each_hold_the_base_under_an_adapter(llama: ModelShape) -> None:
    alone = estimate(llama, settings("LoRA"), Objective.CHAT)
    together = estimate(llama, settings("LoRA"), Objective.CHAT, ranks=8)
    assert (together.weights, together.optimiser) == (alone.weights, alone.optimiser)
    assert together.gradients == 2 * alone.gradients
    assert together.reserve == alone.reserve + GIB // 2


def test_a_sharded_base_takes_its_share_and_what_is_gathered_and_the_adapter_stays_whole(llama: ModelShape) -> None:
    alone = estimate(llama, settings("LoRA"), Objective.CHAT)
    shared = estimate(llama, settings("LoRA", shard_base=True), Objective.CHAT, ranks=8)
    assert shared.weights == alone.weights // 8 + 2 * _gathered(llama)
    for part in ("adapter", "gradients", "optimiser", "activations", "logits"):
        assert getattr(shared, part) == getattr(alone, part), part
    assert estimate(llama, settings("LoRA", shard_base=True), Objective.CHAT) == alone


def test_a_sharded_base_in_4_bits_is_gathered_in_4_bits_and_its_constants_stay_whole(llama: ModelShape) -> None:
    alone = estimate(llama, settings("QLoRA"), Objective.CHAT)
    shared = estimate(llama, settings("QLoRA", shard_base=True), Objective.CHAT, ranks=8)
    layers = llama.parameters - llama.other
    constants = alone.weights - 2 * llama.other - layers // 2
    assert layers // 64 < constants < layers // 60
    gathered = 2 * llama.other + 2 * (layers // llama.layers) // 2
    assert shared.weights == (alone.weights - constants) // 8 + constants + gathered
    for part in ("adapter", "gradients", "optimiser", "activations", "logits"):
        assert getattr(shared, part) == getattr(alone, part), part
    assert estimate(llama, settings("QLoRA", shard_base=True), Objective.CHAT) == alone


def test_what_is_held_before_the_first_activation_counts_where_it_is_more_than_the_training(llama: ModelShape) -> None:
    """Of short rows, while the weights outside the layers are received; of experts, while they are quantised."""
    embeddings = replace(llama, tensors=llama.tensors | {"more.embed_tokens.weight": (1_000_000, 4096)})
    short = {"shard_base": True, "max_length": 64, "per_device_train_batch_size": 1}
    memory = estimate(embeddings, settings("LoRA", **short), Objective.CHAT, ranks=8)
    assert memory.total == 2 * embeddings.parameters // 8 + 4 * embeddings.other + memory.adapter + memory.reserve

    up, down = (128, 8192, 4096), (128, 4096, 4096)
    module = "model.layers.0.mlp.experts"
    stacks = {f"{module}.gate_up_proj": up, f"{module}.down_proj": down}
    experts = replace(llama, tensors=llama.tensors | stacks)
    memory = estimate(experts, settings("QLoRA", **short), Objective.CHAT, ranks=8)
    share = (experts.parameters - experts.other) / 2 / 8 + 2 * experts.other / 8
    expected = share + 2 * experts.other + 4 * prod(up) + memory.adapter + memory.reserve
    assert memory.total == pytest.approx(expected, rel=0.02)


def test_to_measure_a_shared_base_in_16_bits_nothing_is_held_for_gradients(llama: ModelShape) -> None:
    trained = settings("QLoRA", shard_base=True)
    measured = estimate_measuring(llama, trained, Objective.CHAT, ranks=8)
    lora = estimate(llama, settings("LoRA", shard_base=True, gradient_checkpointing=True), Objective.CHAT, ranks=8)
    assert (measured.gradients, measured.optimiser) == (0, 0)
    assert measured.weights == lora.weights
    copies = measured.adapter // 2  # autocast keeps those of the whole adapter in 16 bits
    assert measured.activations == lora.activations + copies
    one_answer = 2 * 2 * llama.layers * llama.key_value_heads * llama.head_size * 2048
    assert measured.generation == one_answer


def test_to_measure_takes_what_is_held_while_the_base_is_loaded(llama: ModelShape) -> None:
    """Of short rows, although a training with gradients of a large adapter would take more."""
    short = settings("QLoRA", shard_base=True, max_length=64, per_device_train_batch_size=1, lora_rank=256)
    embeddings = replace(llama, tensors=llama.tensors | {"more.embed_tokens.weight": (2_000_000, 4096)})
    measured = estimate_measuring(embeddings, short, Objective.CHAT, ranks=8)
    loaded = 2 * embeddings.parameters // 8 + 4 * embeddings.other + measured.adapter + measured.reserve
    assert measured.total >= loaded


def _gathered(shape: ModelShape) -> int:
    """The weights outside the layers, and two layers."""
    return shape.other + 2 * ((shape.parameters - shape.other) // shape.layers)


def test_gpus_that_share_out_the_model_sample_their_answers_of_a_step_at_once(llama: ModelShape) -> None:
    """They sample token by token together, so that none of them can sample fewer at once than the others."""
    wanted = settings("LoRA", shard_base=True, per_device_train_batch_size=1)
    one, shared, larger = (
        estimate(llama, one, Objective.RLHF, ranks=ranks).generation
        for one, ranks in ((wanted, 1), (wanted, 8), (wanted.model_copy(update={"global_batch_size": 64}), 8))
    )
    assert (shared, larger) == (2 * one, 8 * one)
    student = with_teacher(llama, llama)
    assert student
    wanted = settings("LoRA", shard_teacher=True, per_device_train_batch_size=1)
    assert estimate(student, wanted, Objective.DISTILLATION, ranks=8).generation == 2 * one


@pytest.mark.parametrize(
    ("micro", "accumulation", "whole", "ranks", "shared"),
    [
        (2, 8, 16, 1, (2, 8)),
        (2, 2, 16, 4, (2, 2)),
        (2, 8, 16, 4, (2, 2)),
        (4, 2, 24, 8, (3, 1)),
        (2, 4, 32, 1, (2, 16)),
    ],
)
def test_a_step_keeps_its_rows_whatever_the_number_of_processes(
    micro: int, accumulation: int, whole: int, ranks: int, shared: tuple[int, int]
) -> None:
    batch = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    found = share_batch(settings(**batch, global_batch_size=whole), ranks)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == shared
    assert found.global_batch_size == whole


@pytest.mark.parametrize(
    ("micro", "whole", "ranks", "shared"), [(2, 16, 8, (2, 1)), (2, 24, 8, (3, 1)), (4, 24, 2, (4, 3))]
)
def test_each_process_of_kto_gets_batches_of_two_rows_or_more(
    micro: int, whole: int, ranks: int, shared: tuple[int, int]
) -> None:
    batch = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": whole // micro}
    found = share_batch(settings(**batch, global_batch_size=whole, desirable_weight=1.0), ranks)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == shared


def test_a_step_of_kto_with_one_row_for_each_process_is_refused() -> None:
    kto = settings(per_device_train_batch_size=2, gradient_accumulation_steps=8, desirable_weight=1.0)
    with pytest.raises(TrainerError, match="16 rows, one for each of 16 processes, and KTO needs two") as caught:
        share_batch(kto, 16)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_a_step_that_cannot_be_shared_evenly_is_refused_with_both_numbers() -> None:
    with pytest.raises(TrainerError, match="a step has 16 rows, which 3 processes cannot share evenly") as caught:
        share_batch(settings(per_device_train_batch_size=2, gradient_accumulation_steps=8), 3)
    assert caught.value.code is ExitCode.INVALID_CONFIG


def test_an_adapter_of_rank_16_on_every_linear_layer_has_42_million_weights(llama: ModelShape) -> None:
    memory = estimate(llama, settings("LoRA"), Objective.CHAT)
    assert memory.adapter == memory.gradients == 4 * 41_943_040
    assert memory.optimiser == 8 * 41_943_040
    assert memory.weights == 2 * llama.parameters


def test_the_8_bit_optimiser_takes_a_quarter(llama: ModelShape) -> None:
    eight_bit, whole = part(llama, "optimiser"), part(llama, "optimiser", optim="adamw_torch_fused")
    assert eight_bit / whole == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("optim", "size"),
    [
        ("adamw_torch", 8 * 41_943_040),
        ("paged_adamw_32bit", 8 * 41_943_040),
        ("lion_32bit", 4 * 41_943_040),
        ("ademamix", 12 * 41_943_040),
        ("adagrad", 4 * 41_943_040),
        ("rmsprop", 4 * 41_943_040),
        ("sgd", 0),
        # A row and a column of each factor: 16 and its width, and its height and 16.
        ("adafactor", 4 * 32 * (2 * (8192 + 32) + 2 * (5120 + 32) + 3 * (18432 + 32))),
    ],
)
def test_an_optimiser_takes_what_its_formula_keeps(llama: ModelShape, optim: str, size: int) -> None:
    assert part(llama, "optimiser", optim=optim) == size


@pytest.mark.parametrize(("optim", "of_adam"), [("lion_8bit", 1 / 2), ("paged_ademamix_8bit", 3 / 2)])
def test_other_optimisers_with_8_bits_take_their_share_of_adams(llama: ModelShape, optim: str, of_adam: float) -> None:
    assert part(llama, "optimiser", optim=optim) == of_adam * part(llama, "optimiser", optim="adamw_8bit")


@pytest.mark.parametrize("how", ["PiSSA", "OLoRA"])
def test_first_values_from_the_weights_are_a_second_adapter_without_gradients(llama: ModelShape, how: str) -> None:
    assert part(llama, "adapter", init_lora_weights=how) == 2 * part(llama, "adapter")
    assert part(llama, "gradients", init_lora_weights=how) == part(llama, "gradients")


def test_excluded_modules_have_no_adapter_and_dora_adds_a_number_for_each_output(llama: ModelShape) -> None:
    assert part(llama, "adapter") - part(llama, "adapter", exclude_modules=["q_proj"]) == 32 * 16 * (4096 + 4096) * 4
    one = part(llama, "adapter") - part(llama, "adapter", exclude_modules=["layers.3.mlp.up_proj"])
    assert one == 16 * (4096 + 14336) * 4
    outputs = 2 * 4096 + 2 * 1024 + 2 * 14336 + 4096
    assert part(llama, "adapter", use_dora=True) - part(llama, "adapter") == 32 * outputs * 4


def test_modules_trained_in_full_are_copies_in_fp32_with_gradients_and_state(llama: ModelShape) -> None:
    def added(names: list[str], name: str, **changes: Any) -> int:
        return part(llama, name, modules_to_save=names, **changes) - part(llama, name, **changes)

    table = 128256 * 4096
    for name in ("adapter", "gradients"):
        assert added(["embed_tokens"], name) == 4 * table
        assert added(["embed_tokens", "lm_head", "model.norm"], name) == 4 * (2 * table + 4096)
        assert added(["lm_head"], name, init_lora_weights="PiSSA", method="LoRA") == 4 * table
    assert added(["embed_tokens"], "optimiser", optim="adamw_torch") == 8 * table
    assert added(["embed_tokens"], "optimiser", optim="paged_adamw_8bit") == 8 * table, "of embeddings it has 32 bits"
    assert added(["lm_head"], "optimiser", optim="paged_adamw_8bit") == 2 * (table + 4 * table // 256)
    assert added(["embed_tokens"], "weights") == added(["embed_tokens"], "logits") == 0
    assert added(["lm_head"], "logits") == 4 * table
    tied = shape_of(LLAMA_8B, tied=True)
    for names in (["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]):
        assert part(tied, "adapter", modules_to_save=names) - part(tied, "adapter") == 4 * table
        assert part(tied, "logits", modules_to_save=names) - part(tied, "logits") == 4 * table


def test_each_module_has_the_rank_of_its_own_pattern(llama: ModelShape) -> None:
    def added(patterns: dict[str, int], name: str = "adapter") -> int:
        return part(llama, name, rank_pattern=patterns) - part(llama, name)

    assert added({"q_proj": 64, "down_proj": 4}) == 4 * 32 * (48 * (4096 + 4096) - 12 * (14336 + 4096))
    assert added({r"layers\.3\.mlp\..*": 8}) == added({r"layers\.3\.mlp\..*": 8}, "gradients") == -4 * 8 * 3 * 18432
    assert added({"q_proj": 64}, "activations") > 0


def test_only_the_requested_modules_have_an_adapter(llama: ModelShape) -> None:
    assert part(llama, "adapter", target_modules=["q_proj"]) == 32 * 16 * (4096 + 4096) * 4


def test_activations_grow_with_length_and_micro_batch_and_shrink_with_checkpointing(llama: ModelShape) -> None:
    single = part(llama, "activations", method="LoRA", per_device_train_batch_size=1, max_length=1024)
    assert part(llama, "activations", method="LoRA", per_device_train_batch_size=1) == pytest.approx(
        2 * single, rel=0.02
    )
    assert part(llama, "activations", method="LoRA", max_length=1024) == pytest.approx(2 * single, rel=0.1)
    checkpointed = part(llama, "activations", method="LoRA", gradient_checkpointing=True)
    assert checkpointed < part(llama, "activations", method="LoRA") / 10


@pytest.mark.parametrize(("precision", "width"), [("BF16", 4 + 2), ("FP32", 4)])
def test_attention_that_is_not_fused_keeps_a_score_for_each_pair_of_tokens_and_head(
    llama: ModelShape, precision: str, width: int
) -> None:
    settings = {"method": "LoRA", "precision": precision, "per_device_train_batch_size": 3}
    eager = replace(llama, model_type="gemma2")
    scores = 3 * 32 * 2048 * 2048
    kept = part(eager, "activations", **settings) - part(llama, "activations", **settings)
    assert 32 * width * scores <= kept <= (32 * width + 12) * scores


@pytest.mark.parametrize(("precision", "copies"), [("FP32", 0), ("BF16", 4)])
def test_modules_with_the_same_input_keep_it_once_in_fp32_and_a_copy_each_in_16_bits(
    llama: ModelShape, precision: str, copies: int
) -> None:
    def kept(targets: list[str] | None) -> int:
        changes = {"precision": precision, "lora_dropout": 0.0, "target_modules": targets}
        return part(llama, "activations", method="LoRA", per_device_train_batch_size=1, **changes)

    one_per_input = ["q_proj", "gate_proj", "down_proj"]
    copy = 2048 * 32 * 4096 * 2
    assert (kept(None) - kept(one_per_input)) / copy == pytest.approx(copies, abs=0.15)


def test_attention_keeps_a_mask_only_for_rows_that_are_padded_or_packed(llama: ModelShape) -> None:
    single = {"method": "LoRA", "per_device_train_batch_size": 1}
    mask = 2048 * 32 * 2 * 2048
    assert part(llama, "activations", packing=True, **single) - part(llama, "activations", **single) == mask


def test_attention_keeps_queries_keys_values_and_outputs_in_16_bits(llama: ModelShape) -> None:
    wider = replace(llama, head_size=2 * llama.head_size)
    grown = part(wider, "activations", method="LoRA") - part(llama, "activations", method="LoRA")
    assert grown == 2 * 2048 * 32 * 4 * 2 * (32 * 128)


def test_qlora_unpacks_one_linear_layer_at_a_time(llama: ModelShape) -> None:
    plain = part(llama, "activations", method="LoRA", gradient_checkpointing=True, max_length=0)
    assert part(llama, "activations", method="QLoRA", max_length=0) - plain == 14336 * 4096 * 2


def test_the_loss_takes_one_tile_and_in_full_the_gradient_of_the_head(llama: ModelShape) -> None:
    tile = 4096 * 32768 * 2
    assert part(llama, "logits") == tile
    assert part(llama, "logits", per_device_train_batch_size=1, max_length=512) == tile // 8
    assert part(llama, "logits", method="Full") == tile + 4 * 128256 * 4096


def test_a_pair_costs_two_sequences_and_a_reward_model_has_no_logits(llama: ModelShape) -> None:
    one = part(llama, "activations", per_device_train_batch_size=4)
    assert part(llama, "activations", Objective.DPO) == pytest.approx(one, rel=0.02)
    assert part(llama, "logits", Objective.REWARD_MODEL) == 0
    assert part(llama, "weights", Objective.REWARD_MODEL) == part(llama, "weights") - 2 * 128256 * 4096


def test_the_reference_is_a_second_model_only_where_no_adapter_can_be_switched_off(llama: ModelShape) -> None:
    assert part(llama, "reference", Objective.RLHF, beta=0.04) == 0
    assert part(llama, "reference", Objective.RLHF, method="Full", beta=0.04) == 2 * llama.parameters
    assert part(llama, "reference", Objective.RLHF, method="Full", beta=0.0) == 0


def test_several_gpus_share_out_the_reference_and_gather_two_layers_and_what_is_outside_of_them(
    llama: ModelShape,
) -> None:
    full = settings(method="Full", beta=0.04)
    found = estimate(llama, full, Objective.RLHF, ranks=8).reference
    assert found == 2 * (llama.parameters / 8 + llama.other + 2 * (llama.parameters - llama.other) / 32)


def test_a_reference_that_is_used_once_before_training_takes_no_memory_during_it(llama: ModelShape) -> None:
    for objective in (Objective.DPO, Objective.KTO):
        assert part(llama, "reference", objective, method="Full", beta=0.1) == 0


def test_sampling_keeps_the_keys_and_values_of_as_many_answers_as_a_micro_batch_has(llama: ModelShape) -> None:
    sampled = part(llama, "generation", Objective.RLHF, max_completion_length=128)
    assert sampled == 2 * (2048 + 128) * 2 * 32 * 8 * 128 * 2
    assert part(llama, "generation") == 0


def test_with_method_full_sampling_keeps_keys_in_fp32_and_those_of_the_teacher_in_16_bits(llama: ModelShape) -> None:
    changes: dict[str, Any] = {"precision": "BF16", "max_completion_length": 128}
    halves = part(llama, "generation", Objective.RLHF, method="LoRA", **changes)
    assert part(llama, "generation", Objective.RLHF, method="Full", **changes) == 1.5 * halves
    assert part(llama, "generation", Objective.RLHF, method="Full", **changes | {"precision": "FP32"}) == 2 * halves
    student = with_teacher(llama, replace(llama, layers=64))
    assert student
    assert part(student, "generation", Objective.DISTILLATION, method="Full", **changes) == 2 * halves


def test_vllm_has_its_share_of_the_smallest_gpu_that_the_training_and_a_copy_of_the_model_fit_in(
    llama: ModelShape,
) -> None:
    def parts(share: float | None) -> MemoryEstimate:
        changes = {"max_completion_length": 128, "rollouts_gpu_memory_fraction": share}
        return estimate(llama, settings("LoRA", **changes), Objective.RLHF)

    alone = parts(None).total - parts(None).generation
    large, small = parts(0.5), parts(0.1)
    assert (large.generation, large.total) == (0, pytest.approx(alone / 0.5, rel=1e-9))
    answer = (2048 + 128) * 2 * 32 * 8 * 128 * 2
    assert small.total == pytest.approx((2 * llama.parameters + answer) / 0.1, rel=1e-9), (
        "the copy needs the larger GPU"
    )


def test_a_teacher_is_held_in_16_bits_and_answers_as_many_prompts_at_once_as_a_micro_batch_has(
    llama: ModelShape,
) -> None:
    teacher = replace(llama, layers=80)
    student = with_teacher(llama, teacher)
    assert student
    changes: dict[str, Any] = {"max_completion_length": 128, "per_device_train_batch_size": 1, "max_length": 384}
    inside = 512 * (3 * 14336 + 4 * 4096)
    assert part(student, "teacher", Objective.DISTILLATION, **changes) == 2 * (llama.parameters + inside)
    assert part(student, "generation", Objective.DISTILLATION, **changes) == 512 * 2 * 80 * 8 * 128 * 2
    assert part(student, "logits", Objective.DISTILLATION, **changes) == 2 * 4 * 512 * 32768
    assert with_teacher(llama, None) is None


def test_an_embedding_that_is_the_head_too_is_gathered_for_each_of_them(llama: ModelShape) -> None:
    tied = replace(llama, tensors={name: size for name, size in llama.tensors.items() if "lm_head" not in name})
    for changes in ({"shard_base": True}, {}):
        method = "LoRA" if changes else "Full"
        one, other = (estimate(shape, settings(method, **changes), Objective.CHAT, ranks=8) for shape in (llama, tied))
        width = 4 if method == "Full" else 2
        assert one.weights - other.weights == width * llama.head // 8


def test_a_sharded_teacher_takes_its_share_and_what_is_gathered(llama: ModelShape) -> None:
    student = with_teacher(replace(llama, layers=16), llama)
    changes = {"max_completion_length": 128, "shard_teacher": True}
    alone = estimate(student, settings("LoRA", **changes), Objective.DISTILLATION)
    shared = estimate(student, settings("LoRA", **changes), Objective.DISTILLATION, ranks=8)
    assert alone.teacher - shared.teacher == 2 * (llama.parameters * 7 // 8 - _gathered(llama))


def test_a_tied_model_has_no_head_of_its_own() -> None:
    tied = shape_of(LLAMA_8B, tied=True)
    assert (tied.tied, tied.head) == (True, 0)
    assert tied.parameters == 8_030_261_248 - 128256 * 4096


def test_routers_are_neither_quantised_nor_adapted_and_experts_are_quantised_as_stacks(llama: ModelShape) -> None:
    router = {"model.layers.0.mlp.gate.weight": (8, 4096)}
    single = {
        f"model.layers.0.mlp.experts.{at}.{name}.weight": (1024, 4096) for at in range(8) for name in ("w1", "w2")
    }
    stacked = {f"model.layers.0.mlp.experts.{name}": (8, 1024, 4096) for name in ("gate_up_proj", "down_proj")}
    biases = {"model.layers.0.mlp.experts.down_proj_bias": (8, 4096)}
    for experts in (single, stacked):
        shape = replace(llama, tensors={**llama.tensors, **router, **experts, **biases})
        assert shape.linear.keys() == llama.linear.keys()
        assert shape.adapted(None) == llama.adapted(None)
        assert list(shape.experts.values()) == [16 * 1024 * 4096]
        assert shape.other == llama.other + 9 * 4096 + 7 * 4096
        added = weight_bytes(shape, settings()) - weight_bytes(llama, settings()) - 2 * 16 * 4096
        assert 8 * added / (16 * 1024 * 4096) == pytest.approx(4.127, abs=0.001)


@pytest.mark.parametrize(("checkpointing", "layers"), [(True, 1), (False, 3)])
def test_qlora_unpacks_the_experts_of_one_layer_at_a_time_with_checkpointing(
    llama: ModelShape, checkpointing: bool, layers: int
) -> None:
    stacks = {f"model.layers.{at}.mlp.experts.gate_up_proj": (8, 1024, 4096) for at in range(3)}
    mixture = replace(llama, tensors={**llama.tensors, **stacks})
    changes = {"max_length": 0, "gradient_checkpointing": checkpointing}
    added = part(mixture, "activations", **changes) - part(llama, "activations", **changes)
    assert added == layers * 2 * 8 * 1024 * 4096


def test_the_sizes_of_gpt_2_have_names_of_their_own_and_those_of_a_composite_model_lie_deeper() -> None:
    gpt_2 = read_shape({"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12}, {"wte.weight": (50257, 768)})
    assert gpt_2 is not None
    assert (gpt_2.intermediate, gpt_2.key_value_heads, gpt_2.head_size) == (3072, 12, 64)
    assert gpt_2.linear == {}
    composite = read_shape({"model_type": "gemma3", "text_config": LLAMA_8B}, llama_tensors(LLAMA_8B))
    assert composite is not None
    assert composite.layers == 32


def test_a_configuration_without_sizes_gives_no_shape() -> None:
    assert read_shape({"model_type": "llama"}, {"a": (2, 2)}) is None
    assert read_shape(LLAMA_8B | {"vocab_size": "many"}, {"a": (2, 2)}) is None


def test_the_parts_are_named_largest_first() -> None:
    memory = MemoryEstimate(5 * GIB, 0, GIB // 4, 0, 7 * GIB, 0, 0, 0, 0)
    assert str(memory) == "activations 7.0 GiB, weights 5.0 GiB, reserve 1.0 GiB, gradients 0.2 GiB"
    assert memory.total == 13 * GIB + GIB // 4
    assert format_bytes(3 << 20) == "3 MiB"


@pytest.mark.parametrize("stored", ["one by one", "stacked"])
def test_an_adapter_on_experts_has_two_matrices_for_each_expert_and_projection(llama: ModelShape, stored: str) -> None:
    module, experts, inner = "model.layers.3.mlp.experts", 8, 1024
    if stored == "stacked":
        stacks = {f"{module}.gate_up_proj": (experts, 4096, 2 * inner), f"{module}.down_proj": (experts, inner, 4096)}
    else:
        stacks = {
            f"{module}.{at}.{name}.weight": (inner, 4096) for at in range(experts) for name in ("gate", "up_proj")
        }
        stacks |= {f"{module}.{at}.down_proj.weight": (4096, inner) for at in range(experts)}
    mixture = replace(llama, tensors={**llama.tensors, **stacks})
    changes = {"target_modules": ["q_proj"], "target_experts": True}
    added = experts * 16 * ((4096 + 2 * inner) + (inner + 4096))
    for name, width in (("adapter", 4), ("gradients", 4)):
        assert part(mixture, name, **changes) - part(llama, name, **changes) == width * added
    moments = part(mixture, "optimiser", **changes) - part(llama, "optimiser", **changes)
    assert moments == pytest.approx(2 * added, rel=0.02)
    assert part(mixture, "adapter", target_modules=["q_proj"]) == part(llama, "adapter", target_modules=["q_proj"])
