"""A complete model from base and training result: merged, saved, reloaded and compared with its source."""

import gc
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.labels import Encoded
from finetune_trainer.model import DTYPES, load_plain
from finetune_trainer.report.record import MergeCheck

CPU = torch.device("cpu")
COMPARED_TOKENS = 512
LARGEST_MEAN_KL = 0.05
WIDER = {"FP16": "BF16 or FP32", "BF16": "FP32", "FP32": "None"}
"""What to ask for in place of a number format that is too narrow for the weights."""


@dataclass(frozen=True)
class HeldOut:
    """The rows that a saved model is compared on, and who is told of each."""

    samples: Sequence[Encoded]
    on_rows: Callable[[], None]


@dataclass(frozen=True)
class Seen:
    """What a model says on held-out tokens: log-probabilities (tokens by vocabulary) and the right tokens."""

    log_probs: torch.Tensor
    labels: torch.Tensor

    @property
    def loss(self) -> float:
        """Mean loss on these tokens, in nats."""
        return float(-self.log_probs.gather(1, self.labels[:, None]).mean())


def merge_adapter(base: Path, adapter: Path, output: Path, precision: str, held_out: HeldOut) -> MergeCheck:
    """Adds the adapter to the unquantised base, on the CPU; under QLoRA the base is read again, never dequantised."""
    model = PeftModel.from_pretrained(load_plain(base, DTYPES[precision], CPU), str(adapter))
    reference = observe(model, held_out)
    model.merge_and_unload().save_pretrained(output)
    del model
    return _compare(output, precision, reference, held_out)


def save_full(base: Path, weights: Path, output: Path, precision: str, held_out: HeldOut) -> MergeCheck:
    """Writes the fully tuned model in one number format; the reference is the model as trained, in FP32."""
    model = load_plain(base, torch.float32, CPU)
    unexpected = model.load_state_dict(load_file(weights), strict=False).unexpected_keys
    if unexpected:
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"trained weights do not fit the model: {unexpected[0]}")
    reference = observe(model, held_out)
    model.to(DTYPES[precision]).save_pretrained(output)
    del model
    return _compare(output, precision, reference, held_out)


def stored_precision(base: Path) -> str:
    """The number format that the base model is stored in, by its config; FP32 where that says nothing."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    names = {"bfloat16": "BF16", "float16": "FP16"}
    return names.get(str(config.get("dtype") or config.get("torch_dtype")), "FP32")


def observe(model: PreTrainedModel | PeftModel, held_out: HeldOut) -> Seen:
    """The model's log-probabilities on the first trained tokens of the rows."""
    model.eval()
    rows: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    remaining = COMPARED_TOKENS
    for sample in held_out.samples:
        if not remaining:
            break
        held_out.on_rows()
        targets = torch.tensor(sample.labels[1:])
        positions = (targets >= 0).nonzero()[:remaining, 0]
        if not len(positions):
            continue
        rows.append(_logits(model, sample.input_ids, positions).float().log_softmax(-1))
        labels.append(targets[positions])
        remaining -= len(positions)
    return Seen(torch.cat(rows), torch.cat(labels))


def _logits(model: PreTrainedModel | PeftModel, ids: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
    """The logits at these positions alone: those of a whole long row over a large vocabulary fill the memory."""
    inputs = torch.tensor([ids[: int(positions[-1]) + 1]])
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        if "logits_to_keep" in inspect.signature(base.forward).parameters:
            logits: torch.Tensor = model(input_ids=inputs, use_cache=False, logits_to_keep=positions).logits[0]
        else:
            logits = model(input_ids=inputs, use_cache=False).logits[0, positions]
    return logits


def _compare(directory: Path, precision: str, reference: Seen, held_out: HeldOut) -> MergeCheck:
    gc.collect()
    seen = observe(load_plain(directory, DTYPES[precision], CPU), held_out)
    kl = (reference.log_probs.exp() * (reference.log_probs - seen.log_probs)).sum(-1).mean()
    agreement = (reference.log_probs.argmax(-1) == seen.log_probs.argmax(-1)).float().mean()
    check = MergeCheck(
        precision=precision,
        loss=seen.loss,
        reference_loss=reference.loss,
        mean_kl=max(float(kl), 0.0),
        top1_agreement=float(agreement),
        largest_difference=float((reference.log_probs - seen.log_probs).abs().max()),
        tokens=len(seen.labels),
    )
    if not check.mean_kl < LARGEST_MEAN_KL:
        raise TrainerError(
            ExitCode.INVALID_CONFIG,
            f"saved in {precision}, the merged model does not answer as its source (mean KL {check.mean_kl:.3g} on "
            f"{check.tokens} held-out tokens): set output.merge to {WIDER[precision]}",
        )
    return check
