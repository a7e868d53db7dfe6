"""Sequences of several rows for TRL's loop: the data set, the batches, and the proof that the rows stay apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.tokenization.packing import Packed, fold
from finetune_trainer.tokenization.samples import UNTRAINED

LENGTHS = "seq_lengths"
"""TRL's own name of the column, the one beside ids and labels that it keeps."""
ROW_TOKENS = "row_tokens"
PROBE_TOKENS = 8
LARGEST_LEAK = 1e-3


@dataclass
class PackedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]  # the library has no types
    """Lays the rows of packed sequences into lines, whose positions begin anew with every row; pads single rows as TRL
    does.

    There is no attention mask, for the model makes a block-diagonal one from the positions; each padding token has
    position 0 and so is a row of its own, which nothing looks at.
    """

    max_length: int = 0

    @override
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch; `row_tokens` counts the tokens of each line without its padding."""
        if LENGTHS not in examples[0]:
            batch: dict[str, Any] = super().torch_call(examples)
            return batch
        lines = fold([example[LENGTHS] for example in examples], len(examples) * self.max_length)
        ids, labels = (_rows(examples, name) for name in ("input_ids", "labels"))
        positions = [torch.arange(len(row)) for row in ids]
        return {
            "input_ids": _lay(ids, lines, self.pad_token_id),
            "labels": _lay(labels, lines, UNTRAINED),
            "position_ids": _lay(positions, lines, 0),
            ROW_TOKENS: torch.tensor([sum(len(ids[at]) for at in line) for line in lines]),
        }


def _rows(examples: Sequence[dict[str, Any]], name: str) -> list[torch.Tensor]:
    return [row for example in examples for row in torch.split(torch.tensor(example[name]), example[LENGTHS])]


def _lay(rows: Sequence[torch.Tensor], lines: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    return pad_sequence([torch.cat([rows[at] for at in line]) for line in lines], True, padding)


def to_packed_dataset(sequences: Sequence[Packed]) -> Dataset:
    """The sequences as the three columns that the collator reads."""
    return Dataset.from_dict(
        {
            "input_ids": [np.asarray(sequence.input_ids, dtype=np.int32) for sequence in sequences],
            "labels": [np.asarray(sequence.labels, dtype=np.int32) for sequence in sequences],
            LENGTHS: [sequence.lengths for sequence in sequences],
        }
    )


def require_isolated_rows(model: PreTrainedModel | PeftModel) -> None:
    """Refuses a model in whose attention, as it is loaded here, a row changes what is said of the row after it.

    A model whose output is no number passes: its loss tells more.
    """
    was_training = model.training
    model.eval()
    leak = _leak(model)
    model.train(was_training)
    if leak > LARGEST_LEAK:
        raise TrainerError(
            ExitCode.INVALID_CONFIG,
            f"this model's attention ({model.config._attn_implementation}) does not keep packed rows apart: set "
            "hyperparameters.packing Off",
        )


@torch.no_grad()
def _leak(model: PreTrainedModel | PeftModel) -> float:
    """How far other tokens in a first row move the logits of a second one, as a share of the largest logit."""
    positions = torch.arange(PROBE_TOKENS, device=model.device).repeat(2)[None]
    second = torch.arange(PROBE_TOKENS, 2 * PROBE_TOKENS, device=model.device)
    seen = []
    for shift in (0, PROBE_TOKENS // 2):
        ids = torch.cat([second.flip(0) - shift, second])[None]
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        seen.append(logits[0, PROBE_TOKENS:].float())
    return float((seen[0] - seen[1]).abs().max() / seen[0].abs().max())
