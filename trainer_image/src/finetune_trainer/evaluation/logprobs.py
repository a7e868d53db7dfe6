"""What a model says of held-out texts: its loss, and its distribution over the next tokens."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.tokenization.samples import Encoded

COMPARED_TOKENS = 512
"""How many tokens' distributions are kept and compared."""
LOSS_TOKENS = 2048
"""How many trained tokens a loss is the mean of."""


@dataclass(frozen=True)
class HeldOut:
    """The rows that a saved model is compared on, and who is told of each."""

    samples: Sequence[Encoded]
    on_rows: Callable[[], None]


@dataclass(frozen=True)
class RowLogprobs:
    """One row: log-probabilities in FP32 (tokens by vocabulary) and the right tokens."""

    log_probs: torch.Tensor
    labels: torch.Tensor

    @property
    def nats(self) -> float:
        """The loss, summed over the tokens."""
        return float(-self.log_probs.gather(1, self.labels[:, None]).double().sum())


def iterate_logprobs(
    model: PreTrainedModel | PeftModel, held_out: HeldOut, tokens: int = LOSS_TOKENS
) -> Iterator[RowLogprobs]:
    """Row after row, until that many trained tokens are seen; on the CPU, whatever the model is on."""
    model.eval()
    remaining = tokens
    for sample in held_out.samples:
        if not remaining:
            return
        held_out.on_rows()
        targets = torch.tensor(sample.labels[1:])
        positions = (targets >= 0).nonzero()[:remaining, 0]
        if len(positions):
            remaining -= len(positions)
            yield RowLogprobs(
                _logits(model, sample.input_ids, positions).float().log_softmax(-1).cpu(), targets[positions]
            )


def mean_loss(model: PreTrainedModel | PeftModel, held_out: HeldOut) -> float:
    """Mean loss on these tokens, in nats."""
    nats, tokens = 0.0, 0
    for seen in iterate_logprobs(model, held_out):
        nats += seen.nats
        tokens += len(seen.labels)
    return nats / max(tokens, 1)


def _logits(model: PreTrainedModel | PeftModel, ids: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
    """The logits at these positions alone: those of a whole long row over a large vocabulary fill the memory."""
    inputs = torch.tensor([ids[: int(positions[-1]) + 1]], device=model.device)
    positions = positions.to(model.device)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        if "logits_to_keep" in inspect.signature(base.forward).parameters:
            logits: torch.Tensor = model(input_ids=inputs, use_cache=False, logits_to_keep=positions).logits[0]
        else:
            logits = model(input_ids=inputs, use_cache=False).logits[0, positions]
    return logits
