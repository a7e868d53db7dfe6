"""How much GPU memory a training takes, part by part, from the model's shape and the settings; torch is not needed.

The parts that are counted tensors (weights, adapter, gradients, optimiser) are exact to a per mille; activations are
those of a Llama-like layer with fused attention, within 15 % of what is allocated on the way.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from math import ceil, prod

from finetune_api.handoff import ExitCode
from finetune_api.spec import Method, Objective
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.shape import ModelShape

GIB = 1 << 30
FULL_WIDTH = 4
"""Bytes of a number in FP32: trained weights, gradients, optimiser, and what QLoRA leaves unquantised."""
RESERVE = GIB
"""CUDA's context, the libraries' workspaces, and what the allocator loses between blocks."""
NF4_BLOCK, NF4_CONSTANTS_BLOCK = 64, 256
NF4_TABLES = 16 * FULL_WIDTH
NF4_CONSTANTS_TABLES = 256 * FULL_WIDTH + FULL_WIDTH
ADAM_MOMENTS = 2
EIGHT_BIT_BLOCK, EIGHT_BIT_SMALLEST = 256, 4096
LOSS_TOKENS, LOSS_WORDS = 4096, 32768
"""The loss is computed in tiles of this many tokens and words: logits of whole batches never exist."""
PAIRED = frozenset({Objective.DPO, Objective.REWARD_MODEL})


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
    reserve: int = RESERVE

    @property
    def total(self) -> int:
        """The estimate."""
        return sum(size for _, size in self.parts())

    def parts(self) -> list[tuple[str, int]]:
        """Name and bytes of every part."""
        return [(one.name, getattr(self, one.name)) for one in fields(self)]

    def __str__(self) -> str:
        named = sorted(((size, name) for name, size in self.parts() if size), reverse=True)
        return ", ".join(f"{name} {format_bytes(size)}" for size, name in named)


def estimate(
    shape: ModelShape, settings: Resolved, objective: Objective, *, has_reward_model: bool = False, ranks: int = 1
) -> MemoryEstimate:
    """The memory of one training on each of its GPUs; settings that only the device decides count as on a GPU.

    A reward model is taken to be as large as the model itself. Several GPUs share out what Full holds, each borrowing
    one layer at a time; of an adapter's gradients each holds a second copy to send.
    """
    trained = _trained(shape, settings)
    weights = weight_bytes(shape, settings)
    sizes = [prod(size) for size in trained]
    parameters = sum(sizes)
    is_full = settings.method == Method.FULL
    if objective is Objective.REWARD_MODEL:
        weights -= shape.head * (_compute(settings) if settings.method == Method.LORA else FULL_WIDTH)
    shares = ranks if is_full else 1
    borrowed = _borrowed(shape) if shares > 1 else 0
    copies = 2 if ranks > shares else 1
    return MemoryEstimate(
        weights=ceil(weights / shares) + borrowed,
        adapter=0 if is_full else parameters * FULL_WIDTH,
        gradients=ceil(parameters * FULL_WIDTH * copies / shares) + borrowed,
        optimiser=ceil(_optimiser(sizes, settings) / shares),
        activations=_activations(shape, settings, objective),
        logits=0 if objective is Objective.REWARD_MODEL else _logits(shape, settings, objective),
        reference=_reference(shape, settings, objective),
        reward_model=shape.parameters * _compute(settings) if has_reward_model else 0,
        generation=_generation(shape, settings) if objective is Objective.RLHF else 0,
    )


def weight_bytes(shape: ModelShape, settings: Resolved) -> int:
    """The base model as the method loads it: FP32 in Full, 16 bit in LoRA, NF4 beside FP32 in QLoRA."""
    if settings.method == Method.FULL:
        return shape.parameters * FULL_WIDTH
    if settings.method == Method.LORA:
        return shape.parameters * _compute(settings)
    quantised = sum(_nf4(prod(size), settings.double_quant is not False) for size in shape.linear.values())
    return quantised + shape.other * FULL_WIDTH


def micro_batches(settings: Resolved) -> Iterator[Resolved]:
    """The settings, then with ever smaller micro-batches of the same effective batch, down to single rows.

    KTO, which measures its divergence over a batch, ends at two rows.
    """
    yield settings
    micro = settings.per_device_train_batch_size or 1
    whole = micro * (settings.gradient_accumulation_steps or 1)
    fewest = 1 if settings.desirable_weight is None else 2
    for smaller in range(micro // 2, fewest - 1, -1):
        if smaller <= micro // 2 and whole % smaller == 0:
            micro = smaller
            changes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": whole // micro}
            yield settings.model_copy(update=changes)


def share_batch(settings: Resolved, ranks: int) -> Resolved:
    """The settings for each of so many processes, which may be others than preflight knew of: a step keeps its rows."""
    whole = settings.global_batch_size or 1
    micro, accumulation = settings.per_device_train_batch_size or 1, settings.gradient_accumulation_steps or 1
    if micro * accumulation * ranks == whole:
        return settings
    if whole % ranks:
        raise TrainerError(
            ExitCode.INVALID_CONFIG,
            f"a step has {whole} rows, which {ranks} processes cannot share evenly: set resources.nodes and "
            f"resources.gpusPerNode so that their product divides {whole}, or run the job anew",
        )
    mine = whole // ranks
    micro = max(size for size in range(1, min(micro, mine) + 1) if mine % size == 0)
    changes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": mine // micro}
    return settings.model_copy(update=changes)


def format_bytes(size: int) -> str:
    """GiB where there is at least a tenth of one, else MiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.3g} MiB"


def _borrowed(shape: ModelShape) -> int:
    """The largest part that is put together at once: a layer, or what stands before and after the layers."""
    layer = sum(prod(size) for size in shape.linear.values()) // shape.layers
    return FULL_WIDTH * max(layer, shape.other)


def _compute(settings: Resolved) -> int:
    return FULL_WIDTH if settings.precision == "FP32" else 2


def _trained(shape: ModelShape, settings: Resolved) -> list[tuple[int, ...]]:
    """The shapes of the tensors that are trained."""
    if settings.method == Method.FULL:
        return list(shape.tensors.values())
    rank = settings.lora_rank or 16
    adapted = shape.adapted(settings.target_modules).values()
    return [half for size in adapted for half in ((rank, size[1]), (size[0], rank))]


def _nf4(elements: int, double_quant: bool) -> int:
    blocks = ceil(elements / NF4_BLOCK)
    packed = ceil(elements / 2) + NF4_TABLES
    if not double_quant:
        return packed + blocks * FULL_WIDTH
    return packed + blocks + ceil(blocks / NF4_CONSTANTS_BLOCK) * FULL_WIDTH + NF4_CONSTANTS_TABLES


def _optimiser(sizes: Iterable[int], settings: Resolved) -> int:
    """Both moments of Adam; the 8-bit optimisers keep small tensors in FP32."""
    default = "paged_adamw_8bit" if settings.method == Method.QLORA else "adamw_torch_fused"
    if not (settings.optim or default).endswith("_8bit"):
        return sum(sizes) * ADAM_MOMENTS * FULL_WIDTH
    return sum(ADAM_MOMENTS * (size * FULL_WIDTH if size < EIGHT_BIT_SMALLEST else _eight_bit(size)) for size in sizes)


def _eight_bit(size: int) -> int:
    return size + ceil(size / EIGHT_BIT_BLOCK) * FULL_WIDTH


def _tokens(settings: Resolved, objective: Objective) -> int:
    """Tokens of the longest micro-batch; a pair is two sequences."""
    length = (settings.max_length or 0) + (settings.max_completion_length or 0)
    return (settings.per_device_train_batch_size or 1) * length * (2 if objective in PAIRED else 1)


def _activations(shape: ModelShape, settings: Resolved, objective: Objective) -> int:
    """What the forward pass keeps for the backward pass: every layer, or with checkpointing its input and one layer."""
    tokens = _tokens(settings, objective)
    layer = tokens * _layer_bytes_per_token(shape, settings) + _casts(shape, settings) // shape.layers
    last_norm = tokens * FULL_WIDTH * shape.hidden * (2 if settings.method == Method.FULL else 1)
    kept = shape.layers * layer
    if settings.gradient_checkpointing:
        kept = layer + tokens * shape.layers * shape.hidden * _residual(settings)
    unpacked = _largest_linear(shape) * _compute(settings) if settings.method == Method.QLORA else 0
    return kept + last_norm + unpacked + tokens * _gradient_bytes_per_token(shape, settings)


def _residual(settings: Resolved) -> int:
    """Bytes of a number between layers, and of what QLoRA's layers give back: as wide as the norms' weights."""
    return _compute(settings) if settings.method == Method.LORA else FULL_WIDTH


def _layer_bytes_per_token(shape: ModelShape, settings: Resolved) -> int:
    """Norms compute in FP32, attention and linear layers in the number format of the computation."""
    width, is_full = _compute(settings), settings.method == Method.FULL
    norms = FULL_WIDTH * 2 * shape.hidden * (2 if is_full else 1)
    attention = width * (3 if is_full else 4) * shape.heads * shape.head_size
    has_mask = settings.packing or (settings.per_device_train_batch_size or 1) > 1
    mask = width * (settings.max_length or 0) if has_mask else 0
    gated = (_residual(settings) if settings.method == Method.QLORA else width) * 3 * shape.intermediate
    return norms + attention + mask + gated + _linear_inputs(shape, settings)


def _linear_inputs(shape: ModelShape, settings: Resolved) -> int:
    """What a layer's linear modules keep of their inputs: each a cast copy of its own, and the mask of its dropout; in
    FP32 without dropout they keep one input together."""
    width, is_full = _compute(settings), settings.method == Method.FULL
    adapted = {} if is_full else shape.adapted(settings.target_modules)
    dropout = 0 if is_full or not settings.lora_dropout else 1
    inputs = sum(size for _, size in (shape.linear if is_full else adapted).values()) // shape.layers
    if width == FULL_WIDTH and not dropout:
        attended = shape.heads * shape.head_size if is_full else 0
        inputs = min(inputs, 2 * shape.hidden + attended + shape.intermediate)
    between = len(adapted) * (settings.lora_rank or 16) * width // shape.layers
    return inputs * (width + dropout) + between


def _gradient_bytes_per_token(shape: ModelShape, settings: Resolved) -> int:
    """Gradients on their way through one layer; adapters read and answer in FP32."""
    width = _compute(settings) if settings.method == Method.FULL else FULL_WIDTH
    return 2 * (FULL_WIDTH * shape.hidden + width * shape.intermediate)


def _casts(shape: ModelShape, settings: Resolved) -> int:
    """Autocast keeps a 16-bit copy of every FP32 weight that is trained."""
    width = _compute(settings)
    if width == FULL_WIDTH:
        return 0
    if settings.method == Method.FULL:
        return width * sum(prod(size) for size in shape.linear.values())
    return width * sum(prod(size) for size in _trained(shape, settings))


def _largest_linear(shape: ModelShape) -> int:
    return max((prod(size) for size in shape.linear.values()), default=0)


def _logits(shape: ModelShape, settings: Resolved, objective: Objective) -> int:
    """One tile of the loss, and in Full the gradient of the output head, which is summed up beside the others."""
    tile = min(_tokens(settings, objective), LOSS_TOKENS) * LOSS_WORDS
    head = shape.vocabulary * shape.hidden * FULL_WIDTH if settings.method == Method.FULL else 0
    return tile * _compute(settings) + head


def _reference(shape: ModelShape, settings: Resolved, objective: Objective) -> int:
    """A second model only where every step asks for it and no adapter can be switched off instead; DPO and KTO ask
    once, before the first step, and keep the answers."""
    is_held = objective is Objective.RLHF and settings.method == Method.FULL and settings.beta
    return shape.parameters * _compute(settings) if is_held else 0


def _generation(shape: ModelShape, settings: Resolved) -> int:
    """Keys and values of all answers of one step, which are sampled together."""
    length = (settings.max_length or 0) + (settings.max_completion_length or 0)
    per_token = 2 * shape.layers * shape.key_value_heads * shape.head_size * _compute(settings)
    return (settings.global_batch_size or 1) * length * per_token
