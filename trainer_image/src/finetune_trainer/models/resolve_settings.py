"""The settings of a job: the method for `Auto`, and settings that fit the memory budget, if there is one."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, prod

from finetune_api.defaults import Facts, resolve
from finetune_api.handoff import ExitCode
from finetune_api.manifest.spec_rules import broken_rules
from finetune_api.scalars import parse_quantity
from finetune_api.spec import Attention, FineTuneJobSpec, Method, Mode, Objective, Precision
from finetune_api.status import Resolved
from finetune_api.tuning import Lora
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.evaluation.ability import BATCH_TOKENS
from finetune_trainer.models.memory.activations import UNQUANTISED
from finetune_trainer.models.memory.estimate import (
    MemoryEstimate,
    estimate,
    estimate_measuring,
    format_bytes,
    micro_batches,
    with_micro_batch,
)
from finetune_trainer.models.memory.optimisers import refuse_sharded_optimiser
from finetune_trainer.models.memory.shape import ModelShape
from finetune_trainer.models.shared_experts import find_few_experts, refuse_few_experts
from finetune_trainer.tokenization.packing import FLASH_MODELS, count_packed

logger = logging.getLogger(__name__)

FILLED = 0.9
"""Share of a GPU's free memory that the estimate may take."""
SHARED_BASE, QUANTISED = "tuning.lora.shardBase true", "tuning.method QLoRA"
LARGEST_QUANTISED = 2**31 - 1
"""The kernels of bitsandbytes count the weights of a tensor in 32 bits, and larger ones without an error wrongly."""
SHORTEST = 64
"""Advised lengths are multiples of this, and not below it."""


def choose_settings(
    spec: FineTuneJobSpec, shape: ModelShape | None, facts: Facts, lengths: Sequence[int] = ()
) -> Resolved:
    """Return every setting, with the estimated memory; raises WontFit if `tuning.vramBudget` is set and too small.

    `lengths` are those of the training samples, in tokens: whether to pack depends on them.

    To fit the budget, smaller micro-batches and gradient checkpointing are tried if the job does not set them: both
    change the memory and not the result.
    """
    _check_attention(spec, shape)
    if spec.mode is Mode.EVALUATE:
        settings = resolve(spec, facts)
        refuse_few_experts(settings, shape, spec.resources.ranks)
        return settings
    budget = _budget(spec)
    method, reason = choose_method(spec, shape, facts)
    facts = replace(facts, method=method, method_reason=reason)
    spec, facts = _pack(spec, shape, facts, lengths)
    settings = resolve(spec, facts)
    _check_warmup(spec, settings)
    _check_decay(spec, settings)
    refuse_sharded_optimiser(settings, spec.resources.ranks)
    refuse_few_experts(settings, shape, spec.resources.ranks)
    _check_quantised(settings, shape)
    if shape is None:
        logger.warning("the model's configuration lacks its dimensions: GPU memory is not estimated")
        return settings
    if budget is not None:
        settings = _fit(spec, shape, settings, budget) or _refuse(spec, shape, settings, budget)
    total = _estimate(spec, shape, settings).total
    return settings.model_copy(update={"estimated_gpu_memory_bytes": total})


def estimate_settings(
    spec: FineTuneJobSpec, shape: ModelShape, facts: Facts, memory: int | None
) -> tuple[Resolved, MemoryEstimate]:
    """Return the settings of a job and their estimate; of a job that does not fit `memory`, those that need least."""
    settings = resolve(spec, facts)
    if memory is not None:
        settings = _fit(spec, shape, settings, memory) or _smallest(spec, settings)
    return settings, _estimate(spec, shape, settings)


def _check_warmup(spec: FineTuneJobSpec, settings: Resolved) -> None:
    """Refuse a number of warm-up steps after which no step is left for the peak; a fraction always leaves one."""
    asked, steps = spec.hyperparameters.warmup_steps or 0, settings.total_steps or 0
    if asked >= max(steps, 1):
        raise InvalidConfig(
            f"hyperparameters.warmupSteps is {asked:g}, but the training has {steps} step{'s' if steps != 1 else ''}, "
            f"so that no step would have the learning rate: set warmupSteps to {max(steps - 1, 0)} or less, or to a "
            "fraction below 1"
        )


def _check_decay(spec: FineTuneJobSpec, settings: Resolved) -> None:
    """Refuse a number of decay steps for which the training is too short; a fraction always fits."""
    asked = spec.hyperparameters.decay_steps or 0
    if asked >= 1 and settings.decay_steps != asked:
        raise InvalidConfig(
            f"hyperparameters.decaySteps is {asked:g}, but the training has {settings.total_steps} steps, "
            f"{settings.warmup_steps:g} of them warm-up: set decaySteps to {settings.decay_steps} or less, or to a "
            "fraction below 1"
        )


def _check_quantised(settings: Resolved, shape: ModelShape | None) -> None:
    """Refuse QLoRA for weights that bitsandbytes cannot quantise, and to shard a base that it leaves in 16 bits."""
    if settings.method != Method.QLORA or shape is None:
        return
    stacks = {name: max(map(prod, sizes)) for name, sizes in shape.stacks.items()}
    largest = max(stacks, key=stacks.__getitem__, default="")
    why = ""
    if stacks and stacks[largest] > LARGEST_QUANTISED:
        why = (
            f"bitsandbytes quantises up to {LARGEST_QUANTISED:,} weights at once, and {largest} has {stacks[largest]:,}"
        )
    elif settings.shard_base and shape.model_type in UNQUANTISED:
        why = f"bitsandbytes quantises no layer of {shape.model_type}, so that tuning.lora.shardBase has no effect"
    if why:
        raise InvalidConfig(f"tuning.method QLoRA: {why}: set it to LoRA")


def _check_attention(spec: FineTuneJobSpec, shape: ModelShape | None) -> None:
    """Refuse FlashAttention where it is known not to work; the trainer checks the GPU and the loaded model."""
    hyper = spec.hyperparameters
    if hyper.attention is not Attention.FLASH:
        return
    why = None
    if not spec.resources.gpus_per_node:
        why = "it needs a GPU, and resources.gpusPerNode is 0"
    elif hyper.precision is Precision.FP32:
        why = "the kernel computes in BF16 and FP16, not in FP32"
    elif shape and shape.model_type not in FLASH_MODELS:
        why = f"the kernel is not known to be exact for {shape.model_type}"
    if why:
        raise InvalidConfig(f"hyperparameters.attention FlashAttention: {why}: set it to Auto")


def _pack(
    spec: FineTuneJobSpec, shape: ModelShape | None, facts: Facts, lengths: Sequence[int]
) -> tuple[FineTuneJobSpec, Facts]:
    """Set the batch for packing, whose rows are sequences: a step gets as many as hold its intended rows."""
    hyper = spec.hyperparameters
    if hyper.neftune_noise_alpha is not None:  # its noise depends on the length of a row
        return spec, facts
    sequences = count_packed(
        lengths, hyper.max_length, spec.objective, hyper.packing, shape.model_type if shape else ""
    )
    if sequences is None:
        return spec, facts
    single = resolve(spec, facts)
    changes: dict[str, object] = {}
    if hyper.gradient_accumulation_steps is None:
        batch = hyper.per_device_train_batch_size or 1
        wanted = (single.global_batch_size or 1) * sequences / len(lengths)
        batches = max(1, round(wanted / (batch * spec.resources.ranks)))
        changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": batches}
    if hyper.max_steps is None:
        changes["num_train_epochs"] = single.num_train_epochs
    packed = spec.model_copy(update={"hyperparameters": hyper.model_copy(update=changes)})
    return packed, replace(facts, train_rows=sequences, packing=True)


def grow_micro_batch(spec: FineTuneJobSpec, settings: Resolved, shape: ModelShape, free: int) -> Resolved:
    """Return the settings with the largest micro-batch of the same effective batch whose estimate is within 90 % of
    `free` bytes and within the budget, if the job sets neither batch size nor accumulation.

    KTO keeps its micro-batch, over which it measures the divergence; of RLHF a micro-batch holds whole groups, unless
    the process itself has a part of one.
    """
    hyper = spec.hyperparameters
    is_open = hyper.per_device_train_batch_size is None and hyper.gradient_accumulation_steps is None
    if not is_open or spec.objective is Objective.KTO or spec.mode is Mode.EVALUATE:
        return settings
    limit = min(int(FILLED * free), _budget(spec) or free)
    micro = settings.per_device_train_batch_size or 1
    whole = micro * (settings.gradient_accumulation_steps or 1)
    group = math.gcd(whole, settings.num_generations or 1)
    for larger in range(whole, micro, -1):
        if whole % larger or larger % group:
            continue
        grown = with_micro_batch(settings, larger)
        total = _estimate(spec, shape, grown).total
        if total <= limit:
            return grown.model_copy(update={"estimated_gpu_memory_bytes": total})
    return settings


def choose_method(spec: FineTuneJobSpec, shape: ModelShape | None, facts: Facts) -> tuple[Method, str]:
    """Return the method and the reason: `Auto` is Full if it fits a given budget and no setting needs an adapter."""
    if spec.tuning.method is not Method.AUTO:
        return spec.tuning.method, "set in tuning.method"
    budget = _budget(spec)
    if budget is None or shape is None:
        return Method.QLORA, "Auto is QLoRA without tuning.vramBudget"
    asked = [
        name
        for name, value in (
            ("tuning.lora", spec.tuning.lora),
            ("tuning.quantization", spec.tuning.quantization),
            ("tuning.initialAdapter", spec.tuning.initial_adapter),
            ("checkpoint.keep", spec.checkpoint.keep or None),
            ("more GPUs than can share out the experts", find_few_experts(shape, spec.resources.ranks) or None),
        )
        if value is not None
    ]
    if asked:
        return Method.QLORA, f"Auto is QLoRA with {asked[0]}"
    full = resolve(spec, replace(facts, method=Method.FULL))
    fitting = _fit(spec, shape, full, budget)
    needed = format_bytes(_estimate(spec, shape, fitting or _smallest(spec, full)).total)
    if fitting:
        return Method.FULL, f"Auto is Full: its estimate of {needed} is within tuning.vramBudget {format_bytes(budget)}"
    return Method.QLORA, f"Auto is QLoRA: Full needs {needed}, above tuning.vramBudget {format_bytes(budget)}"


def _budget(spec: FineTuneJobSpec) -> int | None:
    if spec.tuning.vram_budget is None:
        return None
    try:
        return parse_quantity(spec.tuning.vram_budget)
    except ValueError as error:
        raise InvalidConfig(f"tuning.vramBudget: {error}: write 80Gi, for example") from error


def _estimate(
    spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved, by: Callable[..., MemoryEstimate] = estimate
) -> MemoryEstimate:
    has_reward_model = spec.rlhf is not None and spec.rlhf.reward_model is not None
    return by(shape, settings, spec.objective, has_reward_model=has_reward_model, ranks=spec.resources.ranks)


def estimate_served(spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved) -> MemoryEstimate:
    """Return the memory of each GPU to measure the adapter of QLoRA on the base in 16 bits, shared out as in 4 bits,
    with the questions on general ability; of the answers to held-out rows as many at once as a micro-batch has."""
    answers = (settings.per_device_train_batch_size or 1) if spec.evaluation.answers else 1
    if spec.evaluation.ability:
        rows = max(settings.per_device_train_batch_size or 1, ceil(BATCH_TOKENS / (settings.max_length or 1)))
        settings = settings.model_copy(update={"per_device_train_batch_size": rows})
    return _estimate(spec, shape, settings, partial(estimate_measuring, answers=answers))


def fit_served(spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved, memory: int) -> Resolved | None:
    """Return the settings with the largest micro-batch with which that fits the memory; None if none does.

    The micro-batch of the training may fill the GPU with what only a training holds.
    """
    return next((one for one in micro_batches(settings) if estimate_served(spec, shape, one).total <= memory), None)


def least_served(spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved) -> int:
    """Return the bytes that it takes with the smallest micro-batch."""
    *_, smallest = micro_batches(settings)
    return estimate_served(spec, shape, smallest).total


def _fit(spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved, budget: int) -> Resolved | None:
    """Return the first settings that fit, varying only those that the job does not set."""
    return next((one for one in _open_settings(spec, settings) if _fits(spec, shape, one, budget)), None)


def _fits(spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved, budget: int) -> bool:
    return _estimate(spec, shape, settings).total <= budget


def _open_settings(spec: FineTuneJobSpec, settings: Resolved) -> Iterator[Resolved]:
    """Yield smaller micro-batches before checkpointing, which costs a third more time."""
    hyper = spec.hyperparameters
    is_open = hyper.per_device_train_batch_size is None and hyper.gradient_accumulation_steps is None
    yield from micro_batches(settings) if is_open else [settings]
    if hyper.gradient_checkpointing is None and not settings.gradient_checkpointing:
        checkpointed = settings.model_copy(update={"gradient_checkpointing": True})
        yield from micro_batches(checkpointed) if is_open else [checkpointed]


def _smallest(spec: FineTuneJobSpec, settings: Resolved) -> Resolved:
    *_, last = _open_settings(spec, settings)
    return last


def _refuse(spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved, budget: int) -> Resolved:
    smallest = _smallest(spec, settings)
    memory = _estimate(spec, shape, smallest)
    raise TrainerError(
        ExitCode.WONT_FIT,
        f"{settings.method} is estimated at {format_bytes(memory.total)} of GPU memory, above tuning.vramBudget "
        f"{format_bytes(budget)} ({memory}). {_what_would_fit(spec, shape, smallest, memory, budget)}",
    )


def _what_would_fit(
    spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved, memory: MemoryEstimate, budget: int
) -> str:
    """Return the mildest change that fits, and the budget with which none is needed."""
    raised = f"raise the budget to {format_bytes(memory.total + (1 << 26))}"
    for advice, changed in _milder(spec, shape, settings, budget):
        total = _estimate(spec, shape, changed).total
        if total <= budget:
            return f"Set {advice} ({format_bytes(total)}), or {raised}"
    return f"No setting makes it fit: use a smaller model, or {raised}"


def _milder(
    spec: FineTuneJobSpec, shape: ModelShape, settings: Resolved, budget: int
) -> Iterator[tuple[str, Resolved]]:
    """Yield changes to what the job sets, mildest first, each on top of those before."""
    advice: list[str] = []
    *_, single = micro_batches(settings)
    batch, accumulation = single.per_device_train_batch_size, single.gradient_accumulation_steps
    smaller = f"perDeviceTrainBatchSize {batch} and gradientAccumulationSteps {accumulation}"
    may_share_teacher = shape.teacher and spec.resources.ranks > 1 and not settings.shard_teacher
    for is_open, change, update in (
        (settings.per_device_train_batch_size != batch, smaller, {}),
        (not settings.gradient_checkpointing, "gradientCheckpointing true", {"gradient_checkpointing": True}),
        (may_share_teacher, "distillation.shardTeacher true", {"shard_teacher": True}),
        (may_share_base(spec, settings), SHARED_BASE, {"shard_base": True}),
    ):
        if is_open:
            single = single.model_copy(update=update)
            advice.append(change)
            yield " and ".join(advice), single
    shorter = _longest_fitting(single, lambda one: _fits(spec, shape, one, budget))
    if shorter:
        yield " and ".join([*advice, f"hyperparameters.maxLength {shorter.max_length}"]), shorter
    if settings.method != Method.QLORA:
        single = single.model_copy(update={"method": Method.QLORA.value, "lora_rank": single.lora_rank or 16})
        whole = single.model_copy(update={"shard_base": settings.shard_base})
        yield " and ".join([*(one for one in advice if one != SHARED_BASE), QUANTISED]), whole
        if single.shard_base and not whole.shard_base:
            yield " and ".join([*advice, QUANTISED]), single


def may_share_base(spec: FineTuneJobSpec, settings: Resolved) -> bool:
    """Return whether the base can be shared out over the job's GPUs, and is not."""
    if settings.method == Method.FULL or settings.shard_base:
        return False
    lora = (spec.tuning.lora or Lora()).model_copy(update={"shard_base": True})
    tuning = spec.tuning.model_copy(update={"lora": lora})
    return not broken_rules(spec.model_copy(update={"tuning": tuning}))


def _longest_fitting(settings: Resolved, fits: Callable[[Resolved], bool]) -> Resolved | None:
    """Return the settings with the longest `maxLength` that fits, at least a quarter of the job's."""
    asked = settings.max_length or 0
    low, high = max(asked // 4 // SHORTEST, 1), asked // SHORTEST
    found = None
    while low <= high:
        middle = (low + high) // 2
        one = settings.model_copy(update={"max_length": middle * SHORTEST})
        if fits(one):
            found, low = one, middle + 1
        else:
            high = middle - 1
    return found
