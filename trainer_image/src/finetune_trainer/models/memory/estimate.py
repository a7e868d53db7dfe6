"""Estimate of a training's GPU memory, part by part, from the model's shape and the settings; without torch.

The parts that are counted tensors (weights, adapter, gradients, optimiser) are exact to a per mille; activations are
those of a Llama-like layer or one with experts, within 15 % of the allocated peak.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import ceil, prod

from finetune_api.objectives import SAMPLED, SMALLEST_KTO_BATCH
from finetune_api.spec import Method, Objective
from finetune_api.status import Resolved
from finetune_api.tuning import InitLoraWeights
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.whole_names import embeddings_of, trains_head, whole_tensors
from finetune_trainer.models.memory.activations import (
    FULL_WIDTH,
    UNQUANTISED,
    activation_bytes,
    adapter_shapes,
    cast_bytes,
    compute_width,
    count_row,
    count_tokens,
    stored_width,
    trained_shapes,
)
from finetune_trainer.models.memory.optimisers import state_bytes
from finetune_trainer.models.memory.shape import ModelShape

GIB = 1 << 30
RESERVE = GIB
"""CUDA's context, the libraries' workspaces, and fragmentation of the allocator."""
COMMUNICATION = GIB // 2
"""NCCL's buffers with several ranks: an assumption, until `make gpu` has measured them."""
NF4_BLOCK, NF4_CONSTANTS_BLOCK = 64, 256
NF4_VALUES = 2
"""Weights in a byte."""
NF4_TABLES = 16 * FULL_WIDTH
NF4_CONSTANTS_TABLES = 256 * FULL_WIDTH + FULL_WIDTH
LOSS_TOKENS, LOSS_WORDS = 4096, 32768
"""The loss is computed in tiles of this many tokens and words: the logits of a whole batch are never stored."""
FROM_WEIGHTS = (InitLoraWeights.PISSA, InitLoraWeights.OLORA)
"""First values of an adapter that are kept, because they are subtracted."""
EXPERT_STACKS = 2
"""Parameters of a module of experts: the projections up and down."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part, per GPU; `total` is their sum."""

    weights: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    reference: int
    reward_model: int
    generation: int
    teacher: int = 0
    rollouts: int = 0
    reserve: int = RESERVE

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(size for _, size in self.parts())

    def parts(self) -> list[tuple[str, int]]:
        """Return name and bytes of every part."""
        return [(one.name, getattr(self, one.name)) for one in fields(self)]

    def __str__(self) -> str:
        named = sorted(((size, name) for name, size in self.parts() if size), reverse=True)
        return ", ".join(f"{name} {format_bytes(size)}" for size, name in named)


def estimate(
    shape: ModelShape,
    settings: Resolved,
    objective: Objective,
    *,
    has_reward_model: bool = False,
    ranks: int = 1,
    is_trained: bool = True,
    measured_answers: int = 1,
) -> MemoryEstimate:
    """Estimate the memory of one training on each of its GPUs; settings that depend on the device count as on a GPU.

    A reward model is assumed to be as large as the model itself. With method Full, several GPUs hold one shard each
    and gather a layer and the next one; so they do with a frozen base that is sharded, in 4 bits if it is so, with all
    of its constants. With an adapter on a whole base, each holds a second copy of its gradients to send.

    Answers are sampled all at once if they fit, else fewer: those of a micro-batch count, and of a sharded model all.
    What is only measured has no gradients and no optimiser; autocast keeps its copies of the whole adapter, and
    `measured_answers` are sampled at a time.
    """
    is_full = settings.method == Method.FULL
    shares = ranks if is_full else 1
    is_sharded = ranks > 1 and (is_full or bool(settings.shard_base))
    is_cast = shares > 1 and settings.precision not in {"FP16", "FP32"}  # layers are gathered in BF16
    width = 2 if is_cast else stored_width(settings)
    held = _held(shape, settings, objective, ranks if is_sharded else 1)
    share = settings.rollouts_gpu_memory_fraction
    answers = _answers(settings, ranks, is_together=ranks > 1 and (is_sharded or bool(settings.shard_teacher)))
    sampled = answers if objective in SAMPLED else 0 if is_trained else measured_answers
    training = MemoryEstimate(
        weights=held + (_gathered(shape, settings, width) if is_sharded else 0),
        adapter=0 if is_full else _adapter(shape, settings),
        gradients=_gradients(shape, settings, ranks, is_sharded=is_sharded) if is_trained else 0,
        optimiser=ceil(_state(shape, settings) / shares) if is_trained else 0,
        activations=activation_bytes(shape, settings, objective, is_cast=is_cast)
        + (0 if is_trained else cast_bytes(shape, settings)),
        logits=0 if objective is Objective.REWARD_MODEL else _logits(shape, settings, objective),
        reference=_reference(shape, settings, objective, ranks),
        reward_model=shape.parameters * compute_width(settings) if has_reward_model else 0,
        teacher=_teacher(shape.teacher, settings, objective, ranks) if shape.teacher else 0,
        generation=_generation(shape, settings, sampled) if share is None else 0,
        reserve=RESERVE + (COMMUNICATION if ranks > 1 else 0),
    )
    if is_sharded:
        before = held + _before_training(shape, settings, width)
        more = max(before + training.adapter + training.reserve - training.total, 0)
        training = replace(training, weights=training.weights + more)
    return replace(training, rollouts=_rollouts(shape, settings, share, training.total)) if share else training


def _held(shape: ModelShape, settings: Resolved, objective: Objective, shares: int) -> int:
    """Return one share of the base's weights; the constants of NF4 are whole in each."""
    head = shape.head * stored_width(settings) if objective is Objective.REWARD_MODEL else 0
    whole = _constants_of(shape, settings) if shares > 1 else 0
    return ceil((weight_bytes(shape, settings) - head - whole) / shares) + whole


def _adapter(shape: ModelShape, settings: Resolved) -> int:
    """Return the size of the adapter, and of its first values if they are kept."""
    first = adapter_shapes(shape, settings) if settings.init_lora_weights in FROM_WEIGHTS else []
    return FULL_WIDTH * sum(map(prod, [*trained_shapes(shape, settings), *first]))


def _gradients(shape: ModelShape, settings: Resolved, ranks: int, *, is_sharded: bool) -> int:
    """Return the size of the gradients with what is needed to exchange them."""
    whole = FULL_WIDTH * sum(map(prod, trained_shapes(shape, settings)))
    if ranks == 1:
        return whole
    if settings.method == Method.FULL:
        return ceil(whole / ranks) + _reduced(shape)
    return whole if is_sharded else 2 * whole


def _answers(settings: Resolved, ranks: int, *, is_together: bool) -> int:
    """Return how many answers are sampled at once."""
    return ceil((settings.global_batch_size or 1) / ranks) if is_together else settings.per_device_train_batch_size or 1


def estimate_measuring(
    shape: ModelShape,
    settings: Resolved,
    objective: Objective,
    *,
    has_reward_model: bool = False,
    ranks: int = 1,
    answers: int = 1,
) -> MemoryEstimate:
    """Estimate, for each GPU of a training with QLoRA, the memory to measure its adapter on the base in 16 bits, which
    is shared out as it was in 4 bits; one layer's activations are held at once."""
    measured = settings.model_copy(update={"method": Method.LORA.value, "gradient_checkpointing": True})
    return estimate(
        shape,
        measured,
        objective,
        has_reward_model=has_reward_model,
        ranks=ranks,
        is_trained=False,
        measured_answers=answers,
    )


def _before_training(shape: ModelShape, settings: Resolved, width: int) -> int:
    """Return what is held at once next to the shares before the first activation: the weights outside the layers, as
    they are received and copied, or while a base in 4 bits is loaded the same weights, not yet shared out, and a stack
    of experts with the matrices that it is made of."""
    received = 2 * shape.other * width
    if not _is_quantised(shape, settings):
        return received
    stack = max((prod(size) for stacks in shape.stacks.values() for size in stacks), default=0)
    return max(received, (shape.other + 2 * stack) * stored_width(settings))


def _state(shape: ModelShape, settings: Resolved) -> int:
    """Return the optimiser's state of all trained tensors."""
    whole = shape.tensors if settings.method == Method.FULL else whole_tensors(settings.modules_to_save, shape)
    embeddings, others = embeddings_of(whole, shape), trained_shapes(shape, settings)
    for size in embeddings:
        others.remove(size)
    return state_bytes(others, settings, embeddings)


def weight_bytes(shape: ModelShape, settings: Resolved) -> int:
    """Return the size of the base as the method loads it: Full in FP32, LoRA in 16 bits, QLoRA in NF4 and 16 bits."""
    if not _is_quantised(shape, settings):
        return shape.parameters * stored_width(settings)
    packed = sum(ceil(size / NF4_VALUES) for size in _quantised_sizes(shape))
    return packed + _constants_of(shape, settings) + shape.other * stored_width(settings)


def micro_batches(settings: Resolved) -> Iterator[Resolved]:
    """Yield the settings, then with smaller and smaller micro-batches of the same effective batch, down to single rows.

    KTO, which measures its divergence over a batch, stops at two rows.
    """
    yield settings
    micro = settings.per_device_train_batch_size or 1
    whole = micro * (settings.gradient_accumulation_steps or 1)
    fewest = _fewest_rows(settings)
    for smaller in range(micro // 2, fewest - 1, -1):
        if smaller <= micro // 2 and whole % smaller == 0:
            micro = smaller
            yield with_micro_batch(settings, micro)


def with_micro_batch(settings: Resolved, rows: int) -> Resolved:
    """Return the settings with so many rows in a micro-batch, and the same effective batch."""
    whole = (settings.per_device_train_batch_size or 1) * (settings.gradient_accumulation_steps or 1)
    changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": whole // rows}
    return settings.model_copy(update=changes)


def share_batch(settings: Resolved, ranks: int) -> Resolved:
    """Return the settings for each of so many processes, possibly other than in preflight: a step keeps its rows."""
    if settings.global_batch_size is None:  # nothing is trained
        return settings
    whole = settings.global_batch_size
    micro, accumulation = settings.per_device_train_batch_size or 1, settings.gradient_accumulation_steps or 1
    if micro * accumulation * ranks == whole:
        return settings
    if whole % ranks:
        raise InvalidConfig(
            f"a step has {whole} rows, which {ranks} processes cannot share evenly: set resources.numNodes and "
            f"resources.gpusPerNode so that their product divides {whole}, or run the job again"
        )
    own = whole // ranks
    sizes = [size for size in range(_fewest_rows(settings), own + 1) if own % size == 0]
    if not sizes:
        raise InvalidConfig(
            f"a step has {whole} rows, one for each of {ranks} processes, and KTO needs two or more: set "
            "resources.numNodes and resources.gpusPerNode to a smaller product, or run the job again"
        )
    micro = max((size for size in sizes if size <= micro), default=sizes[0])
    changes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": own // micro}
    return settings.model_copy(update=changes)


def _fewest_rows(settings: Resolved) -> int:
    """Return the rows that a micro-batch has at least."""
    return 1 if settings.desirable_weight is None else SMALLEST_KTO_BATCH


def format_bytes(size: int) -> str:
    """Format bytes in GiB from a tenth of one, else in MiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.3g} MiB"


def _gathered(shape: ModelShape, settings: Resolved, width: int) -> int:
    """Return what is gathered at once: the weights outside the layers, which are kept until the end of the backward
    pass, a layer, and the one that is gathered while the first one computes."""
    if _is_quantised(shape, settings):
        return shape.other * width + min(2, shape.layers) * ceil(_layer(shape) / NF4_VALUES)
    return width * (_outside(shape) + min(2, shape.layers) * _layer(shape))


def _outside(shape: ModelShape) -> int:
    """Return the number of weights that are gathered outside the layers of a model that is sharded while it is loaded:
    an embedding that is the output head too is gathered for each of them."""
    return shape.other + (0 if shape.head else shape.vocabulary * shape.hidden)


def _reduced(shape: ModelShape) -> int:
    """Return the largest gradient before it is reduced: of a layer, or of the weights outside the layers."""
    return FULL_WIDTH * max(_layer(shape), shape.other)


def _layer(shape: ModelShape) -> int:
    return (sum(prod(size) for size in shape.linear.values()) + sum(shape.experts.values())) // shape.layers


def _is_quantised(shape: ModelShape, settings: Resolved) -> bool:
    return settings.method == Method.QLORA and shape.model_type not in UNQUANTISED


def _quantised_sizes(shape: ModelShape) -> Iterator[int]:
    """Yield the number of weights in each tensor that is stored in NF4."""
    yield from (prod(size) for size in shape.linear.values())
    yield from (size // EXPERT_STACKS for size in shape.experts.values() for _ in range(EXPERT_STACKS))


def _constants_of(shape: ModelShape, settings: Resolved) -> int:
    """Return the size of the constants of all blocks of NF4, and of the tables to read them; none in 16 bits."""
    if not _is_quantised(shape, settings):
        return 0
    return sum(_nf4_constants(size, settings.double_quant is not False) for size in _quantised_sizes(shape))


def _nf4_constants(elements: int, double_quant: bool) -> int:
    blocks = ceil(elements / NF4_BLOCK)
    if not double_quant:
        return NF4_TABLES + blocks * FULL_WIDTH
    return NF4_TABLES + blocks + ceil(blocks / NF4_CONSTANTS_BLOCK) * FULL_WIDTH + NF4_CONSTANTS_TABLES


def _logits(shape: ModelShape, settings: Resolved, objective: Objective) -> int:
    """Return one tile of the loss, and the gradient of a trained output head, which is accumulated separately.

    A divergence needs the tiles of both models, in FP32.
    """
    tile = min(count_tokens(settings, objective), LOSS_TOKENS) * LOSS_WORDS
    width = 2 * FULL_WIDTH if objective is Objective.DISTILLATION else compute_width(settings)
    is_trained = settings.method == Method.FULL or trains_head(settings.modules_to_save, shape)
    head = shape.vocabulary * shape.hidden * FULL_WIDTH if is_trained else 0
    return tile * width + head


def _reference(shape: ModelShape, settings: Resolved, objective: Objective, ranks: int) -> int:
    """Return the size of a second model, needed only if every step uses it and no adapter can be switched off instead.
    Several GPUs share it out with the policy.

    DPO and KTO use it once, before the first step, and keep the log-probabilities.
    """
    is_held = objective is Objective.RLHF and settings.method == Method.FULL and settings.beta
    return _held_to_read(shape, ranks) * compute_width(settings) if is_held else 0


def _teacher(shape: ModelShape, settings: Resolved, objective: Objective, ranks: int) -> int:
    """Return the size of the teacher in the number format of the computation, or of a share of it with what is gathered
    at once, and what one of its layers has at once of a micro-batch: it is run without gradients."""
    inside = 3 * shape.intermediate + 4 * shape.hidden
    held = _held_to_read(shape, ranks if settings.shard_teacher else 1)
    return (held + count_tokens(settings, objective) * inside) * compute_width(settings)


def _held_to_read(shape: ModelShape, shares: int) -> int:
    """Return the number of weights that each GPU holds of a model that is not trained: of one that is shared out its
    share, and what is gathered at once."""
    if shares == 1:
        return shape.parameters
    return ceil(shape.parameters / shares) + _outside(shape) + min(2, shape.layers) * _layer(shape)


def _rollouts(shape: ModelShape, settings: Resolved, share: float, training: int) -> int:
    """Return vLLM's share of the smallest GPU whose rest holds the training: a copy of the model and one answer fit."""
    answer = count_row(settings) * 2 * _cached(shape)
    copy = (shape.parameters + answer) * compute_width(settings)
    return ceil(max(training / (1 - share), copy / share)) - training


def _generation(shape: ModelShape, settings: Resolved, answers: int) -> int:
    """Return the keys and values of answers that are sampled together; the teacher answers as many held-out prompts.

    Keys are in the number format of the stored weights, because they are multiplied by rotary embeddings in that of the
    hidden states: with method Full in FP32. Values come from a linear layer.
    """
    width = compute_width(settings)
    per_token = _cached(shape) * (stored_width(settings) + width)
    if shape.teacher:
        per_token = max(per_token, _cached(shape.teacher) * 2 * width)
    return answers * count_row(settings) * per_token


def _cached(shape: ModelShape) -> int:
    """Return the numbers in the keys, and in the values, of a token."""
    return shape.layers * shape.key_value_heads * shape.head_size
