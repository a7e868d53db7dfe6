"""Training against a reference: log-probabilities before the first step, computed once and kept as a column."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.world import unshard
from finetune_trainer.errors import TrainerError
from finetune_trainer.models.adapters.whole_modules import share_whole_modules
from finetune_trainer.training.methods.loop import LoopTrainer
from finetune_trainer.training.methods.parts import LoopContext

FROZEN_COPY = "ref"
"""TRL's name for the frozen copy of the initial adapter."""
HELD_OUT, HELD_OUT_BY_PROMPT = "validation", "validation by prompt"
"""Names of the held-out rows in the file of log-probabilities: in the data set's usual order, or by prompt."""
CHECKED_ROWS = 8
LARGEST_DRIFT = 0.1
"""Nats per token between model and reference before the first step: rounding is far below, another model above."""


def has_usual_order(path: Path | None) -> bool:
    """Return whether the file has log-probabilities of the held-out rows in the data set's usual order."""
    if path is None or not path.exists():
        return False
    with safe_open(path, "pt") as file:
        return any(name.startswith(f"{HELD_OUT}/") for name in file.keys())  # noqa: SIM118 - not a mapping


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
        super().__init__(loop, **arguments)
        loop.reporter.set_stage("Reference")
        self.model.eval()
        if isinstance(self.model, PeftModel):
            share_whole_modules(self.model, FROZEN_COPY)
        known = load_file(loop.reference) if loop.reference and loop.reference.exists() else {}
        self.train_dataset = self._with_reference(self.train_dataset, "train", known)
        if self.eval_dataset is not None:
            self.eval_dataset = self._with_reference(self.eval_dataset, held_out, known)
        if loop.reference and not loop.reference.exists():
            save_file(known, loop.reference)
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
        """Add the reference's columns, from `known` or computed and added to it."""
        names = {name: f"{split}/{name}" for name in self.REFERENCE_COLUMNS}
        if any(name not in known for name in names.values()):
            columns = self._measure_reference(dataset).unbind(1)
            known |= {name: column.contiguous() for name, column in zip(names.values(), columns, strict=True)}
        for name, key in names.items():
            dataset = dataset.add_column(name, known[key].numpy())
        return dataset

    def _measure_reference(self, dataset: Dataset) -> torch.Tensor:
        """Return a line for each row and a column for each of `REFERENCE_COLUMNS`; with several processes each computes
        a shard, and all gather the whole."""
        size, world = self.args.per_device_train_batch_size, self._loop.world
        batches = [range(at, min(at + size, len(dataset))) for at in range(0, len(dataset), size)]
        shares = torch.zeros(-(-len(batches) // world.size), size, len(self.REFERENCE_COLUMNS))
        for number, (share, (batch, _)) in enumerate(zip(shares, world.shard(batches), strict=True)):
            self._loop.stop.raise_if_set()
            self._loop.reporter.set_share(number, len(shares))
            inputs = self._prepare_inputs(self.data_collator([dataset[at] for at in batch]))
            found = self.compute_ref_log_probs(self.model, inputs)
            share[: len(batch)] = torch.stack([values.float().cpu() for values in found], dim=1)
        return unshard(world.gather(shares), len(batches)).flatten(0, 1)[: len(dataset)]

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
