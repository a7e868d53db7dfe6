"""Packed sequences for TRL's loop: the dataset, the batches, and the check that rows do not attend to each other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, masking_utils
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from typing_extensions import override

from finetune_trainer.errors import InvalidConfig
from finetune_trainer.evaluation.logprobs import LARGEST_LEAK
from finetune_trainer.tokenization.packing import fill_groups, fold_rows
from finetune_trainer.tokenization.sample_table import Samples
from finetune_trainer.tokenization.samples import UNTRAINED, Encoded
from finetune_trainer.training.methods.columns import to_dataset

LENGTHS = "seq_lengths"
"""TRL's name of the column; TRL keeps it together with ids and labels."""
PLACES = "places"
"""Column with the samples that share a sequence."""
ROW_TOKENS = "row_tokens"
"""Tokens of each line without its padding: numbers, which need not be read from the device."""
PROBE_LENGTHS = (8, 3, 5, 8)
"""Rows of the probe: two sequences of two rows, which make three lines, one with two rows."""


@dataclass
class PackedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]  # the library has no types
    """Join the rows of packed sequences into lines with positions that restart at each row; pad single rows like TRL.

    There is no attention mask, because the model derives a block-diagonal one from the positions. Each padding token
    has position 0, so it is a row of its own. With `padding_free`, for flash kernels, all rows of a batch are one line
    without padding, `[1, tokens]`, with cumulative lengths.
    """

    max_length: int = 0
    samples: Samples[Encoded] | None = None
    """The samples that a packed data set refers to; held-out rows are not packed."""

    @override
    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one batch with `row_tokens`."""
        if self.samples is not None and PLACES in examples[0]:
            examples = [join_samples(self.samples, example[PLACES]) for example in examples]
        if self.padding_free or LENGTHS not in examples[0]:
            batch: dict[str, Any] = super().torch_call(examples)
            return batch | {ROW_TOKENS: [len(example["input_ids"]) for example in examples]}
        lines = fold_rows([example[LENGTHS] for example in examples], len(examples) * self.max_length)
        ids, labels = (_split_rows(examples, name) for name in ("input_ids", "labels"))
        positions = [torch.arange(len(row)) for row in ids]
        return {
            "input_ids": _pad_lines(ids, lines, self.pad_token_id),
            "labels": _pad_lines(labels, lines, UNTRAINED),
            "position_ids": _pad_lines(positions, lines, 0),
            ROW_TOKENS: [sum(len(ids[at]) for at in line) for line in lines],
        }


def _split_rows(examples: Sequence[dict[str, Any]], name: str) -> list[torch.Tensor]:
    return [row for example in examples for row in torch.split(torch.tensor(example[name]), example[LENGTHS])]


def _pad_lines(rows: Sequence[torch.Tensor], lines: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    return pad_sequence([torch.cat([rows[at] for at in line]) for line in lines], True, padding)


def to_packed_dataset(samples: Samples[Encoded], max_length: int, max_rows: int | None) -> Dataset:
    """Return which samples share a sequence, eight bytes for each: the collator joins them when they are trained."""
    places, starts = group_many(samples.numbers("length"), max_length, max_rows)
    return to_dataset(pa.table({PLACES: pa.ListArray.from_arrays(starts, places)}))


def group_many(lengths: npt.NDArray[Any], max_length: int, max_rows: int | None) -> tuple[npt.NDArray[np.int32], ...]:
    """Return the same groups as `group_lengths` in two arrays: the samples of all groups, and where each group starts
    (and the last one ends)."""
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    groups = np.fromiter(fill_groups(lengths[order].data, max_length, max_rows), np.int32, len(order))
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups))]).astype(np.int32)
    return order[np.argsort(groups, kind="stable")], starts


def join_samples(samples: Samples[Encoded], places: Sequence[int]) -> dict[str, list[int]]:
    """Return the samples at these places as one sequence; the first token of each carries no label."""
    ids = samples.ids("input_ids", places)
    lengths = list(map(len, ids))
    labels = np.concatenate(samples.ids("labels", places))
    labels[np.cumsum([0, *lengths[:-1]])] = UNTRAINED
    return {"input_ids": np.concatenate(ids).tolist(), "labels": labels.tolist(), LENGTHS: lengths}


@contextmanager
def mask_rows(*, is_packed: bool) -> Iterator[None]:
    """Let transformers make the masks of packed rows, or of one row in each line, without looking at the positions:
    that reads from the device at every forward pass."""
    find = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = _number_rows if is_packed else lambda _positions: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = find


@contextmanager
def balance_tokens(ids: torch.Tensor, tokens: Sequence[int]) -> Iterator[None]:
    """Balance the experts of a mixture by the tokens of each line and not by its padding, which TRL finds in the
    attention mask: packed rows have none."""
    from transformers.models.mixtral import modeling_mixtral  # noqa: PLC0415 - only a mixture needs it

    own = modeling_mixtral.load_balancing_loss_func
    is_token = torch.arange(ids.shape[1]) < torch.tensor(tokens)[:, None]
    modeling_mixtral.load_balancing_loss_func = lambda logits, experts, chosen, _: own(
        logits, experts, chosen, is_token
    )
    try:
        yield
    finally:
        modeling_mixtral.load_balancing_loss_func = own


def _number_rows(position_ids: torch.Tensor) -> torch.Tensor:
    """Return the number of each token's row in its line: a row begins where the positions do not go up by one."""
    steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
    return (steps != 1).cumsum(-1)


def require_isolated_rows(
    model: PreTrainedModel | PeftModel,
    collator: PackedCollator,
    *,
    is_packed: bool = True,
    largest_leak: float = LARGEST_LEAK,
) -> None:
    """Raise if other rows change a row's logits in a batch of the trainer's collator, with the attention in use.

    A model with non-finite logits passes: its loss is reported later.
    """
    was_training = model.training
    model.eval()
    leaks = [_leak(model, collator, row, is_packed=is_packed) for row in range(len(PROBE_LENGTHS))]
    model.train(was_training)
    if any(leak > largest_leak for leak in leaks):
        raise InvalidConfig(
            f"this model's attention ({model.config._attn_implementation}) lets packed rows attend to each other: set "
            f"{'hyperparameters.packing Never' if is_packed else 'hyperparameters.attention SDPA'}"
        )


@torch.no_grad()
def _leak(model: PreTrainedModel | PeftModel, collator: PackedCollator, row: int, *, is_packed: bool) -> float:
    """Return how far other tokens in the other rows change this row's logits, relative to the largest logit."""
    found = []
    for shift in (0, sum(PROBE_LENGTHS) // 2):
        batch = collator.torch_call(_probe_examples(row, shift, is_packed=is_packed))
        is_watched = batch["labels"] == row
        inputs = {name: value for name, value in batch.items() if name not in ("labels", ROW_TOKENS)}
        logits = model(**send_to_device(inputs, model.device), use_cache=False).logits
        found.append(logits[is_watched.to(logits.device)].float())
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


def _probe_examples(row: int, shift: int, *, is_packed: bool) -> list[dict[str, Any]]:
    """Return rows whose labels are the row's number, and whose tokens are shifted except in one row."""
    total, places = sum(PROBE_LENGTHS), iter(range(sum(PROBE_LENGTHS)))
    rows = [list(islice(places, length)) for length in PROBE_LENGTHS]
    tokens = [one if at == row else [(token + shift) % total for token in one] for at, one in enumerate(rows)]
    labels = [[at] * len(one) for at, one in enumerate(tokens)]
    if not is_packed:
        return [{"input_ids": one, "labels": two} for one, two in zip(tokens, labels, strict=True)]
    return [
        {"input_ids": _flat(tokens[half]), "labels": _flat(labels[half]), LENGTHS: list(map(len, tokens[half]))}
        for half in (slice(2), slice(2, None))
    ]


def _flat(rows: Sequence[Sequence[int]]) -> list[int]:
    return [token for row in rows for token in row]
