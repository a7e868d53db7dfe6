"""Adapters whose factors A start from the inputs of their layers on the job's own rows (EVA); B is zero.

As PEFT does it, with one rank for each module instead of a redistribution (`rho` is 1), so that the ranks stay those
of the job, and with an end: PEFT reads the rows again and again until every direction stays the same.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.utils.incremental_pca import IncrementalPCA

from finetune_trainer.errors import InvalidConfig
from finetune_trainer.models.adapters.factors import ADAPTER
from finetune_trainer.models.adapters.starts import ITERATIONS, lora_layers, unfit
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded

logger = logging.getLogger(__name__)

EVA = "EVA"
SIMILAR = 0.99
"""Cosine of each direction before and after a batch from which the directions count as found, as in PEFT (`tau`)."""
MOST_BATCHES = 64
TOKENS_PER_RANK = 2
"""Trained tokens of a batch for each direction, as many as the randomised decomposition computes."""


def start_from_inputs(model: PeftModel, samples: Iterable[Encoded], rows: int, on_work: Callable[[], None]) -> int:
    """Set each factor A to the leading principal directions of its layer's inputs at trained tokens; return the number
    of batches that were read, each of at least `rows` rows."""
    layers = dict(lora_layers(model))
    for name, layer in layers.items():
        _require_fit(name, layer)
    rank = max(layer.r[ADAPTER] for layer in layers.values())
    inputs, count = LayerInputs(rank), 0
    handles = [layer.register_forward_pre_hook(inputs.hook(name)) for name, layer in layers.items()]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            for batch in _batches(samples, rows, TOKENS_PER_RANK * rank):
                inputs.read(model, batch)
                on_work()
                count += 1
                if inputs.are_found or count == MOST_BATCHES:
                    break
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    for name, layer in layers.items():
        found, weight = inputs.directions(name), layer.lora_A[ADAPTER].weight
        if found is None:
            raise unfit(EVA, f"{name} receives fewer than {TOKENS_PER_RANK * rank} trained tokens in each batch")
        weight.data = found[: len(weight)].to(weight.device, weight.dtype).contiguous()
    logger.info("EVA: the adapter starts from the inputs of %s batches", count)
    return count


class LayerInputs:
    """The principal directions of the inputs of layers; layers with one input, such as q, k and v, share theirs."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._found: dict[str, IncrementalPCA] = {}
        self._owners: dict[str, str] = {}
        self._changed: set[str] = set()
        self._mask = torch.empty(0)
        # The last input is held, so that no other tensor gets its identity.
        self._last: torch.Tensor | None = None
        self._owner = ""

    @property
    def are_found(self) -> bool:
        """Whether the last batch has changed no direction."""
        return not self._changed

    def directions(self, name: str) -> torch.Tensor | None:
        """Return the directions of a layer's inputs, the leading one first; None if it had too few."""
        found = self._found.get(self._owners.get(name, name))
        return None if found is None else found.components_

    def read(self, model: PeftModel, batch: Sequence[Encoded]) -> None:
        """Run the base on a batch, without its output head."""
        base = model.get_base_model()
        longest, device = max(one.tokens for one in batch), base.get_input_embeddings().weight.device
        ids = torch.tensor([one.input_ids + [0] * (longest - one.tokens) for one in batch], device=device)
        labels = torch.tensor([one.labels + [UNTRAINED] * (longest - one.tokens) for one in batch], device=device)
        read = torch.tensor([[1] * one.tokens + [0] * (longest - one.tokens) for one in batch], device=device)
        self._mask, self._last = (labels != UNTRAINED).flatten(), None
        self._changed = set()
        base.base_model(input_ids=ids, attention_mask=read, use_cache=False)
        self._last = None

    def hook(self, name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
        """Return the hook that reads a layer's input."""

        def take(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs[0] is self._last:
                self._owners[name] = self._owner
                return
            self._last, self._owner = inputs[0], name
            self._fit(name, inputs[0].reshape(-1, inputs[0].shape[-1]))

        return take

    def _fit(self, name: str, states: torch.Tensor) -> None:
        states = states[self._mask] if len(states) == len(self._mask) else states
        wanted = min(TOKENS_PER_RANK * self._rank, states.shape[-1])
        if len(states) < wanted:  # the experts of a mixture, each of which gets some of the tokens
            return
        found = self._found.get(name)
        before = found.components_.clone() if found else None
        if found is None:
            found = self._found[name] = IncrementalPCA(
                n_components=min(self._rank, wanted),
                lowrank=True,
                lowrank_q=wanted,
                lowrank_niter=ITERATIONS,
                lowrank_seed=0,
            )
        found.partial_fit(states.float())
        alike = before is not None and torch.cosine_similarity(found.components_, before).min() >= SIMILAR
        if not alike:
            self._changed.add(name)


def _batches(samples: Iterable[Encoded], rows: int, tokens: int) -> Iterator[list[Encoded]]:
    """Yield batches with at least so many rows and trained tokens, or one of all rows if they are fewer."""
    batch: list[Encoded] = []
    is_first = True
    for sample in samples:
        batch.append(sample)
        if len(batch) >= rows and sum(one.trained for one in batch) >= tokens:
            yield batch
            batch, is_first = [], False
    if is_first and sum(one.trained for one in batch) >= tokens:
        yield batch
    elif is_first:
        raise InvalidConfig(
            f"tuning.lora.initLoraWeights EVA needs {tokens} trained tokens, {TOKENS_PER_RANK} for each of the rank, "
            f"and the training rows have {sum(one.trained for one in batch)}: lower the rank, add rows, or set it to "
            "Default"
        )


def _require_fit(name: str, layer: Any) -> None:
    if not layer.lora_A:
        raise unfit(EVA, f"{name} is an embedding")
    rank, inputs = layer.lora_A[ADAPTER].weight.shape
    if rank > inputs:
        raise unfit(EVA, f"{name} has only {inputs} inputs, and the rank is {rank}")
