"""The optimisers: the state of each by weight, and where it works; without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

from finetune_api.hyperparameters import Optimiser
from finetune_api.spec import Method
from finetune_api.status import Resolved
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.memory.activations import FULL_WIDTH

EIGHT_BIT_BLOCK, EIGHT_BIT_SMALLEST = 256, 4096
"""Weights that share a scaling factor, and the size of a tensor below which its state stays in FP32."""
MATRIX = 2
"""Dimensions from which Adafactor keeps a row and a column."""


@dataclass(frozen=True, slots=True)
class State:
    """What an optimiser keeps: so many values for each weight, or with `is_factored` a row and a column."""

    values: int
    is_factored: bool = False


_ADAM, _LION, _ADEMAMIX = State(2), State(1), State(3)
STATES: Mapping[Optimiser, State] = {
    Optimiser.ADAMW_TORCH: _ADAM,
    Optimiser.ADAMW_TORCH_FUSED: _ADAM,
    Optimiser.ADAMW_8BIT: _ADAM,
    Optimiser.PAGED_ADAMW_8BIT: _ADAM,
    Optimiser.PAGED_ADAMW: _ADAM,
    Optimiser.ADAFACTOR: State(1, is_factored=True),
    Optimiser.LION: _LION,
    Optimiser.LION_8BIT: _LION,
    Optimiser.PAGED_LION: _LION,
    Optimiser.PAGED_LION_8BIT: _LION,
    Optimiser.ADEMAMIX: _ADEMAMIX,
    Optimiser.ADEMAMIX_8BIT: _ADEMAMIX,
    Optimiser.PAGED_ADEMAMIX: _ADEMAMIX,
    Optimiser.PAGED_ADEMAMIX_8BIT: _ADEMAMIX,
    Optimiser.ADAGRAD: State(1),
    Optimiser.RMSPROP: State(1),
    Optimiser.SGD: State(0),
}
SHARDED = (Optimiser.ADAMW_TORCH, Optimiser.ADAMW_TORCH_FUSED)
"""Those that work with weights that are sharded between GPUs."""


def default_optimiser(method: str | None, *, has_gpu: bool) -> Optimiser:
    """Return the optimiser of a job that sets none."""
    return Optimiser.PAGED_ADAMW_8BIT if method == Method.QLORA and has_gpu else Optimiser.ADAMW_TORCH_FUSED


def needs_gpu(optim: str) -> bool:
    """Return whether the optimiser has 8 bits or pages its state, which is meant for a GPU's memory."""
    return optim.endswith("_8bit") or optim.startswith("paged_")


def state_bytes(
    shapes: Sequence[tuple[int, ...]], settings: Resolved, embeddings: Sequence[tuple[int, ...]] = ()
) -> int:
    """Return the size of the optimiser's state for trained tensors of these shapes, and for embeddings, whose state the
    library keeps in FP32."""
    optim = Optimiser(settings.optim or default_optimiser(settings.method, has_gpu=True))
    others = sum(_tensor_bytes(shape, optim) for shape in shapes)
    return others + sum(_tensor_bytes(shape, optim, is_embedding=True) for shape in embeddings)


def _tensor_bytes(shape: tuple[int, ...], optim: Optimiser, *, is_embedding: bool = False) -> int:
    state, size = STATES[optim], prod(shape)
    if state.is_factored and len(shape) >= MATRIX:
        return FULL_WIDTH * (prod(shape[:-1]) + prod((*shape[:-2], shape[-1])))
    if is_embedding or not optim.endswith("_8bit") or size < EIGHT_BIT_SMALLEST:
        return state.values * size * FULL_WIDTH
    return state.values * (size + ceil(size / EIGHT_BIT_BLOCK) * FULL_WIDTH)


def refuse_sharded_optimiser(settings: Resolved, ranks: int) -> None:
    """Refuse an optimiser that cannot update sharded weights: its kernels raise in the first step."""
    optim = settings.optim
    if settings.method == Method.FULL and ranks > 1 and optim and optim not in SHARDED:
        raise InvalidConfig(
            f"hyperparameters.optim {optim} does not work with tuning.method Full on several GPUs: use "
            "adamw_torch_fused or adamw_torch, tuning.method LoRA or QLoRA, or one GPU"
        )
