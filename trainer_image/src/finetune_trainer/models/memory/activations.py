"""Estimate of what a step allocates apart from weights and optimiser: what autograd keeps, gradients between layers,
and weights that are cast or dequantised; without torch.

Layers are Llama-like, or have experts instead of a dense MLP. Attention is fused, except for the types that have none.
"""

from collections.abc import Mapping
from math import prod

from finetune_api.spec import Lora, Method, Objective
from finetune_api.status import Resolved
from finetune_trainer.models.adapters.patterns import find_value
from finetune_trainer.models.adapters.whole_names import whole_tensors
from finetune_trainer.models.memory.shape import ModelShape, ends_in

FULL_WIDTH = 4
"""Bytes of a number in FP32: trained weights, gradients and optimiser."""
UNQUANTISED = frozenset({"falcon"})
"""Model types whose linear layers are of a class of their own, which transformers does not replace by 4-bit ones."""
EAGER = frozenset(
    {
        "bloom", "deepseek_v4", "flint", "gemma2", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "granite_swa",
        "granitemoe_swa", "hy_v4", "mimo_v2_flash", "mpt", "openai-gpt", "vaultgemma", "xglm",
    }
)  # fmt: skip
"""Model types that transformers has no fused attention for: each head holds a score for every pair of tokens."""
DORA_COPIES = 4
SCORE_BACKWARD = 3 * FULL_WIDTH
"""Bytes of a score in the backward pass of the softmax: its output and both gradients, in FP32."""
PAIRED = frozenset({Objective.DPO, Objective.REWARD_MODEL})


def activation_bytes(shape: ModelShape, settings: Resolved, objective: Objective, *, is_cast: bool) -> int:
    """Return what is kept for the backward pass: all layers, or with checkpointing one layer and all inputs.

    With `is_cast` the weights are gathered in the number format of the computation, and autocast keeps no copies.
    """
    tokens = count_tokens(settings, objective)
    scores = _scores(shape, settings, tokens)
    casts = 0 if is_cast else cast_bytes(shape, settings)
    layer = tokens * _layer_bytes_per_token(shape, settings) + casts // shape.layers
    layer += scores * _score_width(settings)
    last_norm = tokens * FULL_WIDTH * shape.hidden * (2 if settings.method == Method.FULL else 1)
    kept = shape.layers * layer
    if settings.gradient_checkpointing:
        kept = layer + tokens * shape.layers * shape.hidden * stored_width(settings)
    weights = max(_whole_weights(shape, settings), _dora_weights(shape, settings))
    return kept + last_norm + weights + _gradients(shape, settings, tokens, scores)


def count_tokens(settings: Resolved, objective: Objective) -> int:
    """Return the tokens of the longest micro-batch; a pair is two sequences."""
    rows = (settings.per_device_train_batch_size or 1) * (2 if objective in PAIRED else 1)
    return rows * count_row(settings)


def compute_width(settings: Resolved) -> int:
    """Return the bytes of a number of the computation."""
    return FULL_WIDTH if settings.precision == "FP32" else 2


def stored_width(settings: Resolved) -> int:
    """Return the bytes of a weight that is not quantised; what is between layers has the same format."""
    return FULL_WIDTH if settings.method == Method.FULL else compute_width(settings)


def trained_shapes(shape: ModelShape, settings: Resolved) -> list[tuple[int, ...]]:
    """Return the shapes of the trained tensors: those of the adapter, and of modules that are trained in full."""
    if settings.method == Method.FULL:
        return list(shape.tensors.values())
    return [*adapter_shapes(shape, settings), *whole_tensors(settings.modules_to_save, shape).values()]


def adapter_shapes(shape: ModelShape, settings: Resolved) -> list[tuple[int, ...]]:
    """Return the shapes of the adapter's tensors."""
    rank = settings.lora_rank or 16
    adapted = adapted_layers(shape, settings)
    linear: list[tuple[int, ...]] = []
    for name, size in adapted.items():
        own = find_value(settings.rank_pattern, name, rank)
        linear += [(own, size[1]), (size[0], own)]
    linear += [(size[0],) for size in adapted.values() if settings.use_dora]
    if not settings.target_experts:
        return linear
    stacks = [stack for stacks in shape.stacks.values() for stack in stacks]
    return [*linear, *(half for n, out, ins in stacks for half in ((n * rank, ins), (out, n * rank)))]


def adapted_layers(shape: ModelShape, settings: Resolved | Lora) -> Mapping[str, tuple[int, ...]]:
    """Return the linear layers that get an adapter."""
    excluded, layers = settings.exclude_modules or (), shape.adapted(settings.target_modules)
    return {name: size for name, size in layers.items() if not ends_in(name.removesuffix(".weight"), excluded)}


def _trains_experts(settings: Resolved) -> bool:
    return settings.method == Method.FULL or bool(settings.target_experts)


def count_row(settings: Resolved) -> int:
    """Return the tokens of the longest row, with a sampled answer."""
    return (settings.max_length or 0) + (settings.max_completion_length or 0)


def _scores(shape: ModelShape, settings: Resolved, tokens: int) -> int:
    """Return the number of scores of eager attention in one layer."""
    return tokens * count_row(settings) * shape.heads if shape.model_type in EAGER else 0


def _score_width(settings: Resolved) -> int:
    """Return the bytes of a score that are kept: that of the softmax in FP32, and a copy in 16 bits."""
    width = compute_width(settings)
    return FULL_WIDTH if width == FULL_WIDTH else FULL_WIDTH + width


def _layer_bytes_per_token(shape: ModelShape, settings: Resolved) -> int:
    """Return one layer's bytes per token: norms compute in FP32, the rest in the number format of the computation."""
    width, is_full = compute_width(settings), settings.method == Method.FULL
    norms = FULL_WIDTH * 2 * shape.hidden * (2 if is_full else 1)
    attention = width * (3 if is_full else 4) * shape.heads * shape.head_size
    has_mask = settings.packing or (settings.per_device_train_batch_size or 1) > 1
    mask = width * (settings.max_length or 0) if has_mask else 0
    linear = _linear_inputs(shape, settings) + _dora_outputs(shape, settings)
    return norms + attention + mask + _mlp_bytes_per_token(shape, settings) + linear


def _mlp_bytes_per_token(shape: ModelShape, settings: Resolved) -> int:
    """Return what an MLP keeps of a token: gate, up and their product; of experts those of every chosen one, its
    output, and if it is trained also its inputs."""
    if not shape.experts:
        return compute_width(settings) * 3 * shape.intermediate
    kept = 3 * shape.expert_intermediate + shape.hidden
    if _trains_experts(settings):
        kept += shape.expert_intermediate + shape.hidden
    return shape.experts_per_token * stored_width(settings) * kept


def _linear_inputs(shape: ModelShape, settings: Resolved) -> int:
    """Return the inputs that a layer's linear modules keep: each a cast copy of its own and the mask of its dropout; in
    FP32 without dropout, modules with the same input share one."""
    width, is_full = compute_width(settings), settings.method == Method.FULL
    adapted = {} if is_full else adapted_layers(shape, settings)
    dropout = 0 if is_full or not settings.lora_dropout else 1
    inputs = sum(size for _, size in (shape.linear if is_full else adapted).values()) // shape.layers
    if width == FULL_WIDTH and not dropout:
        attended = shape.heads * shape.head_size if is_full else 0
        inputs = min(inputs, 2 * shape.hidden + attended + shape.intermediate)
    ranks = sum(find_value(settings.rank_pattern, name, settings.lora_rank or 16) for name in adapted)
    between = ranks * width // shape.layers
    return inputs * (width + dropout) + between


def _dora_outputs(shape: ModelShape, settings: Resolved) -> int:
    """Return what DoRA keeps of a token in one layer: the outputs of each base module and of its adapter."""
    if not settings.use_dora:
        return 0
    outputs = sum(size for size, _ in adapted_layers(shape, settings).values())
    return 2 * compute_width(settings) * outputs // shape.layers


def _dora_weights(shape: ModelShape, settings: Resolved) -> int:
    """Return the whole weights that DoRA has at once for the norm of one module, in FP32: the base's, the update, their
    sum, and the identity from which the update is made. With dropout the backward pass also needs weights."""
    sizes = adapted_layers(shape, settings).values() if settings.use_dora else ()
    norm = max((FULL_WIDTH * (DORA_COPIES * out * ins + ins * ins) for out, ins in sizes), default=0)
    kept = compute_width(settings) * sum(prod(size) for size in sizes) if settings.lora_dropout else 0
    return norm + (kept // shape.layers if settings.gradient_checkpointing else kept)


def _gradients(shape: ModelShape, settings: Resolved, tokens: int, scores: int) -> int:
    """Return the gradients inside one layer: those of its MLP, or later, when what that kept is free, of its scores."""
    mlp = tokens * _gradient_bytes_per_token(shape, settings)
    freed = tokens * _mlp_bytes_per_token(shape, settings)
    return max(mlp, scores * (SCORE_BACKWARD - _score_width(settings)) - freed)


def _gradient_bytes_per_token(shape: ModelShape, settings: Resolved) -> int:
    """Return the gradients of an MLP; the inputs and outputs of adapters are in FP32, those of experts as stored."""
    is_full, is_trained = settings.method == Method.FULL, _trains_experts(settings)
    if shape.experts:
        # With trained experts the peak is earlier: in the projection down, while what the others keep is still held.
        inside = 2 * shape.hidden + (1 if is_trained else 2) * shape.expert_intermediate
        return 2 * FULL_WIDTH * shape.hidden + shape.experts_per_token * stored_width(settings) * inside
    width = compute_width(settings) if is_full else FULL_WIDTH
    return 2 * (FULL_WIDTH * shape.hidden + width * shape.intermediate)


def cast_bytes(shape: ModelShape, settings: Resolved) -> int:
    """Return the 16-bit copies that autocast keeps of trained FP32 weights."""
    width = compute_width(settings)
    if width == FULL_WIDTH:
        return 0
    if settings.method == Method.FULL:
        return width * sum(prod(size) for size in shape.linear.values())
    return width * sum(prod(size) for size in adapter_shapes(shape, settings))


def _whole_weights(shape: ModelShape, settings: Resolved) -> int:
    """Return the copies of whole weights that exist at once.

    QLoRA dequantises a linear layer and a layer's experts; without checkpointing all experts, because the backward pass
    of their layers needs them. With an adapter on experts, LoRA has such a copy of them too, with the update added, and
    the backward pass the gradient of one stack. In Full the gradient of experts is complete before it is accumulated,
    for one of their three projections at a time.
    """
    if settings.method == Method.FULL:
        return max(shape.experts.values(), default=0) // 3 * FULL_WIDTH
    is_plain = settings.method == Method.LORA or shape.model_type in UNQUANTISED
    linear = 0 if is_plain else max((prod(size) for size in shape.linear.values()), default=0)
    experts = gradient = 0
    if settings.target_experts or not is_plain:
        sizes = shape.experts.values()
        experts = max(sizes, default=0) if settings.gradient_checkpointing else sum(sizes)
    if settings.target_experts:
        gradient = max((prod(stack) for stacks in shape.stacks.values() for stack in stacks), default=0)
    return (linear + experts + gradient) * compute_width(settings)
