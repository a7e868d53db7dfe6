"""A model's log-probabilities and loss on held-out rows."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.peft_base import find_base
from finetune_trainer.tokenization.samples import Encoded

COMPARED_TOKENS = 512
"""Number of tokens whose distributions are kept and compared."""
LOSS_TOKENS = 2048
"""Number of trained tokens over which a loss is the mean."""
LARGEST_LEAK, LARGEST_LEAK_IN_16_BITS = 1e-3, 0.05
"""Largest change of a row's logits by other rows or padding that counts as rounding, relative to the largest logit: a
row that attends to another one changes about as much as it has. Experts get other numbers of tokens, for which a
library may add in another order, and each number in BF16 has 8 bits."""


@dataclass(frozen=True)
class HeldOut:
    """The rows on which a saved model is compared, and a callback for each."""

    samples: Sequence[Encoded]
    on_rows: Callable[[], None]


@dataclass(frozen=True)
class RowLogprobs:
    """One row: log-probabilities in FP32 (tokens by vocabulary) and the correct tokens."""

    log_probs: torch.Tensor
    labels: torch.Tensor

    @property
    def nats(self) -> float:
        """The loss, summed over the tokens."""
        return float(-self.log_probs.gather(1, self.labels[:, None]).double().sum())


def iterate_logprobs(model: PreTrainedModel | PeftModel, held_out: HeldOut) -> Iterator[RowLogprobs]:
    """Yield row after row, up to `LOSS_TOKENS` trained tokens; on the CPU, whatever device the model is on."""
    model.eval()
    remaining = LOSS_TOKENS
    for sample in held_out.samples:
        if not remaining:
            return
        held_out.on_rows()
        targets = torch.tensor(sample.labels[1:])
        positions = (targets >= 0).nonzero()[:remaining, 0]
        if len(positions):
            remaining -= len(positions)
            ids = torch.tensor([sample.input_ids[: int(positions[-1]) + 1]])
            yield RowLogprobs(logits_at(model, ids, positions)[0].float().log_softmax(-1).cpu(), targets[positions])


def mean_loss(model: PreTrainedModel | PeftModel, held_out: HeldOut) -> float:
    """Return the mean loss on the first `LOSS_TOKENS` trained tokens, in nats."""
    nats, tokens = 0.0, 0
    for seen in iterate_logprobs(model, held_out):
        nats += seen.nats
        tokens += len(seen.labels)
    return nats / max(tokens, 1)


def logits_at(
    model: PreTrainedModel | PeftModel, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the logits at these positions alone (rows by positions by vocabulary): those of a long row over a large
    vocabulary fill the memory. `mask` is 0 where a row is padded."""
    positions, inputs = positions.to(model.device), {"input_ids": ids.to(model.device)}
    if mask is not None:
        inputs["attention_mask"] = mask.to(model.device)
    base = find_base(model)
    with torch.no_grad():
        if "logits_to_keep" in inspect.signature(base.forward).parameters:
            logits: torch.Tensor = model(**inputs, use_cache=False, logits_to_keep=positions).logits
        else:
            logits = model(**inputs, use_cache=False).logits[:, positions]
    return logits
