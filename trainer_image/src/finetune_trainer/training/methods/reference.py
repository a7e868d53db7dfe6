"""Training against a reference: log-probabilities before the first step, computed once and kept as a column."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.models.adapters.whole_modules import share_whole_modules
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import LoopContext
from finetune_trainer.training.methods.workarounds import without_hash

FROZEN_COPY = "ref"
"""TRL's name for the frozen copy of the initial adapter."""
HELD_OUT, HELD_OUT_BY_PROMPT = "validation", "validation by prompt"
"""Names of the held-out rows in the file of log-probabilities: in the data set's usual order, or by prompt."""
CHECKED_ROWS = 8
SECONDS_WORTH_STORING = 120.0
"""Work on the reference after which it is stored, so that a killed run does not lose more."""
LARGEST_DRIFT = 0.1
"""Nats per token between model and reference before the first step: rounding is far below, another model above."""


def has_usual_order(path: Path | None) -> bool:
    """Return whether the file has log-probabilities of the held-out rows in the data set's usual order."""
    if path is None or not path.exists():
        return False
    with safe_open(path, "pt") as file:
        return any(name.startswith(f"{HELD_OUT}/") for name in file.keys())  # noqa: SIM118 - not a mapping


def name_columns(names: Sequence[str], table: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return each column of a table by its name."""
    return {name: column.clone() for name, column in zip(names, table.unbind(1), strict=True)}


class ReferencedTrainer(LoopTrainer):
    """Compute the reference's log-probabilities before the training; a mixin in front of TRL's DPO and KTO trainers.

    The reference is the initial adapter, of which TRL makes a frozen copy, or the whole model with method Full. After
    that no copy or second model is kept, and no step runs the reference. TRL's precomputation is not used: it cannot
    be stopped, and it rounds the adapter of a quantised model before it is measured.
    """

    REFERENCE_COLUMNS: ClassVar[tuple[str, ...]]
    train_dataset: Dataset
    eval_dataset: Dataset | None

    def __init__(self, loop: LoopContext, *, held_out: str = HELD_OUT, **arguments: Any) -> None:
        with without_hash(type(self)):
            super().__init__(loop, **arguments)
        loop.reporter.set_stage("Reference")
        self.model.eval()
        if isinstance(self.model, PeftModel):
            share_whole_modules(self.model, FROZEN_COPY)
        known = load_file(loop.reference) if loop.reference and loop.reference.exists() else {}
        began = time.monotonic()
        self.train_dataset = self._with_reference(self.train_dataset, "train", known)
        if self.eval_dataset is not None:
            self.eval_dataset = self._with_reference(self.eval_dataset, held_out, known)
        self._write_reference(known)
        if time.monotonic() - began > SECONDS_WORTH_STORING:
            self._store_reference(known)
        self.precompute_ref_logps = True
        if isinstance(self.model, PeftModel):
            self.model.delete_adapter(FROZEN_COPY)
        self._require_start_at_reference()

    @override
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Return the dataset, which is tokenised already."""
        return dataset

    @override
    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        """Return the dataset; `_with_reference` runs later, when the model has its initial weights."""
        return dataset

    def _with_reference(self, dataset: Dataset, split: str, known: dict[str, torch.Tensor]) -> Dataset:
        """Add the reference's columns, from `known` or computed and added to it.

        What is computed is stored every now and then and at a stop, so that the next run computes only the other rows.
        """
        keys = [f"{split}/{name}" for name in self.REFERENCE_COLUMNS]
        unknown = torch.full((len(dataset),), torch.nan)
        table = torch.stack([known.get(key, unknown) for key in keys], dim=1)
        own_gaps = table.isnan().any(dim=1).to(torch.uint8)
        gaps = torch.stack(self._loop.world.gather(own_gaps)).amax(dim=0).nonzero()[:, 0].tolist()
        stored = time.monotonic()
        try:
            for rows, values in self._measure_reference(dataset, gaps):
                table[rows] = values
                if time.monotonic() - stored > SECONDS_WORTH_STORING:
                    self._store_reference(known | name_columns(keys, table))
                    stored = time.monotonic()
        except Stopped:
            self._store_reference(known | name_columns(keys, table))
            raise
        known |= name_columns(keys, table)
        for name, key in zip(self.REFERENCE_COLUMNS, keys, strict=True):
            dataset = dataset.add_column(name, known[key].numpy())
        return dataset

    def _measure_reference(self, dataset: Dataset, rows: Sequence[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield some of the rows and a line for each of them, with a value for each of `REFERENCE_COLUMNS`, until all
        are measured; each of several processes computes a shard, and all gather the whole."""
        size, world = self.args.per_device_train_batch_size, self._loop.world
        batches = [rows[at : at + size] for at in range(0, len(rows), size)]
        for number, (own, _) in enumerate(world.shard(batches)):
            self._loop.stop.raise_if_set()
            turn = batches[number * world.size : (number + 1) * world.size]
            self._loop.reporter.set_share(len(dataset) - len(rows) + number * world.size * size, len(dataset))
            inputs = self._prepare_inputs(self.data_collator([dataset[at] for at in own]))
            found = self.compute_ref_log_probs(self.model, inputs)
            share = torch.zeros(size, len(self.REFERENCE_COLUMNS))
            share[: len(own)] = torch.stack([values.float().cpu() for values in found], dim=1)
            measured = [row for batch in turn for row in batch]
            yield measured, torch.cat(world.gather(share))[: len(measured)]

    def _store_reference(self, known: dict[str, torch.Tensor]) -> None:
        """Store in the bucket what is known of the reference; the first process does it for all."""
        loop = self._loop
        if loop.reference and loop.checkpoints and loop.world.is_first:
            self._write_reference(known)
            loop.checkpoints.save_reference(loop.reference)

    def _write_reference(self, known: dict[str, torch.Tensor]) -> None:
        """Write the run's file; what was read from it before is still mapped into memory."""
        if self._loop.reference:
            new = self._loop.reference.with_suffix(".new")
            save_file(known, new)
            new.replace(self._loop.reference)

    def _require_start_at_reference(self) -> None:
        """Raise unless the first rows' rewards are near zero, as they are if the reference is the initial model."""
        rows = [self.train_dataset[at] for at in range(min(len(self.train_dataset), CHECKED_ROWS))]
        drift = sum(map(self._drift, rows)) / len(rows)
        if drift > LARGEST_DRIFT:
            found = f"the reference differs from the initial model by {drift:.3g} nats per token"
            raise TrainerError(ExitCode.INTERNAL_ERROR, found)

    def _drift(self, row: dict[str, Any]) -> float:
        """Return the nats per answer token between model and reference, of the answer that differs more."""
        inputs = self._prepare_inputs(self.data_collator([row]))
        self._measure_batch(inputs)
        noted = self._metrics["eval"]
        rewards = [abs(float(noted[name][-1])) for name in ("rewards/chosen", "rewards/rejected") if noted[name]]
        noted.clear()
        return max(rewards) / float(self.beta) / int(inputs["completion_mask"].sum(-1).max())
