"""Packed sequences for TRL's loop: the dataset, the batches, and the check that rows do not attend to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.tokenization.packing import fold_rows, group_lengths
from finetune_trainer.tokenization.sample_table import as_samples
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded
from finetune_trainer.training.methods.columns import to_dataset

LENGTHS = "seq_lengths"
"""TRL's name of the column; TRL keeps it together with ids and labels."""
ROW_TOKENS = "row_tokens"
JOINED_AT_ONCE = 1024
PROBE_TOKENS = 8
LARGEST_LEAK = 1e-3
Row = npt.NDArray[np.int32]


@dataclass
class PackedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]  # the library has no types
    """Join the rows of packed sequences into lines with positions that restart at each row; pad single rows like TRL.

    There is no attention mask, because the model derives a block-diagonal one from the positions. Each padding token
    has position 0, so it is a row of its own.
    """

    max_length: int = 0

    @override
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one batch; `row_tokens` counts the tokens of each line without its padding."""
        if LENGTHS not in examples[0]:
            batch: dict[str, Any] = super().torch_call(examples)
            return batch
        lines = fold_rows([example[LENGTHS] for example in examples], len(examples) * self.max_length)
        ids, labels = (_split_rows(examples, name) for name in ("input_ids", "labels"))
        positions = [torch.arange(len(row)) for row in ids]
        return {
            "input_ids": _pad_lines(ids, lines, self.pad_token_id),
            "labels": _pad_lines(labels, lines, UNTRAINED),
            "position_ids": _pad_lines(positions, lines, 0),
            ROW_TOKENS: torch.tensor([sum(len(ids[at]) for at in line) for line in lines]),
        }


def _split_rows(examples: Sequence[dict[str, Any]], name: str) -> list[torch.Tensor]:
    return [row for example in examples for row in torch.split(torch.tensor(example[name]), example[LENGTHS])]


def _pad_lines(rows: Sequence[torch.Tensor], lines: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    return pad_sequence([torch.cat([rows[at] for at in line]) for line in lines], True, padding)


def to_packed_dataset(samples: Sequence[Encoded], max_length: int, max_rows: int | None) -> Dataset:
    """Return the samples packed into sequences, as the three columns that the collator reads."""
    table = as_samples(samples)
    groups = group_lengths(table.numbers("length").tolist(), max_length, max_rows)
    ids, labels = table.ids("input_ids"), table.ids("labels")
    parts = [groups[at : at + JOINED_AT_ONCE] for at in range(0, len(groups), JOINED_AT_ONCE)]
    return to_dataset(pa.Table.from_batches([_join(part, ids, labels) for part in parts]))


def _join(groups: Sequence[Sequence[int]], ids: Sequence[Row], labels: Sequence[Row]) -> pa.RecordBatch:
    """Return one line for each group; the first token of a row carries no label."""
    rows = [at for group in groups for at in group]
    lengths = [len(ids[at]) for at in rows]
    joined = np.concatenate([labels[at] for at in rows])
    joined[np.cumsum([0, *lengths[:-1]])] = UNTRAINED
    in_rows = np.cumsum([0, *map(len, groups)], dtype=np.int32)
    in_tokens = np.cumsum([0, *lengths], dtype=np.int32)[in_rows]
    columns = {
        "input_ids": pa.ListArray.from_arrays(in_tokens, np.concatenate([ids[at] for at in rows])),
        "labels": pa.ListArray.from_arrays(in_tokens, joined),
        LENGTHS: pa.ListArray.from_arrays(in_rows, pa.array(lengths, pa.int64())),
    }
    return pa.RecordBatch.from_pydict(columns)


def require_isolated_rows(model: PreTrainedModel | PeftModel) -> None:
    """Raise if a row changes the logits of the next row in its sequence, with the attention that the model uses.

    A model with non-finite logits passes: its loss is reported later.
    """
    was_training = model.training
    model.eval()
    leak = _leak(model)
    model.train(was_training)
    if leak > LARGEST_LEAK:
        raise TrainerError(
            ExitCode.INVALID_CONFIG,
            f"this model's attention ({model.config._attn_implementation}) lets packed rows attend to each other: set "
            "hyperparameters.packing Off",
        )


@torch.no_grad()
def _leak(model: PreTrainedModel | PeftModel) -> float:
    """Return how far other tokens in the first row change the second row's logits, relative to the largest logit."""
    positions = torch.arange(PROBE_TOKENS, device=model.device).repeat(2)[None]
    second = torch.arange(PROBE_TOKENS, 2 * PROBE_TOKENS, device=model.device)
    found = []
    for shift in (0, PROBE_TOKENS // 2):
        ids = torch.cat([second.flip(0) - shift, second])[None]
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        found.append(logits[0, PROBE_TOKENS:].float())
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())
