"""Training against a reference: what the model said before its first step, taken once and kept as a column."""

from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader

from finetune_api.handoff import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.methods.loop import Watch, WatchedTrainer

FROZEN_COPY = "ref"
"""TRL's name for the adapter as it was."""
CHECKED_ROWS = 8
LARGEST_DRIFT = 0.1
"""Nats per token between model and reference before the first step: rounding stays far below, another model above."""


class ReferencedTrainer(WatchedTrainer):
    """Stands before TRL's DPO and KTO trainers and takes the reference's log-probabilities before the training.

    The reference is the initial adapter, of which TRL makes a frozen copy, and the whole model under method Full. Once
    taken, neither a copy nor a second model is held, and no step runs the reference again. TRL's own precomputation is
    passed over: it hears no stop, and it rounds the adapter of a quantised model before it is measured.
    """

    REFERENCE_COLUMNS: ClassVar[tuple[str, ...]]
    train_dataset: Dataset
    eval_dataset: Dataset | None

    def __init__(self, watch: Watch, **arguments: Any) -> None:
        super().__init__(watch, **arguments)
        watch.reporter.stage("Loading")
        self.train_dataset = self._with_reference(self.train_dataset)
        if self.eval_dataset is not None:
            self.eval_dataset = self._with_reference(self.eval_dataset)
        self.precompute_ref_logps = True
        if isinstance(self.model, PeftModel):
            self.model.delete_adapter(FROZEN_COPY)
        self._require_start_at_reference()

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The rows are tokenised already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        """Left to `_with_reference`, which runs when the weights are those that the training starts from."""
        return dataset

    def _with_reference(self, dataset: Dataset) -> Dataset:
        self.model.eval()
        columns: list[list[torch.Tensor]] = [[] for _ in self.REFERENCE_COLUMNS]
        size = self.args.per_device_eval_batch_size
        for batch in DataLoader(dataset, batch_size=size, collate_fn=self.data_collator, shuffle=False):
            self._watch.stop.raise_if_set()
            self._watch.reporter.beat()
            found = self.compute_ref_log_probs(self.model, self._prepare_inputs(batch))
            for column, values in zip(columns, found, strict=True):
                column.append(values.float().cpu())
        for name, values in zip(self.REFERENCE_COLUMNS, columns, strict=True):
            dataset = dataset.add_column(name, torch.cat(values).numpy())
        return dataset

    def _require_start_at_reference(self) -> None:
        """The first rows' rewards are zero, or the model is compared with another than it starts from."""
        rows = [self.train_dataset[at] for at in range(min(len(self.train_dataset), CHECKED_ROWS))]
        drift = sum(map(self._drift, rows)) / len(rows)
        if drift > LARGEST_DRIFT:
            told = f"the reference is not the model that the training starts from: {drift:.3g} nats per token apart"
            raise TrainerError(ExitCode.INTERNAL_ERROR, told)

    def _drift(self, row: dict[str, Any]) -> float:
        """Nats per answer token between model and reference, of the answer that differs more."""
        inputs = self._prepare_inputs(self.data_collator([row]))
        self._measure_batch(inputs)
        noted = self._metrics["eval"]
        rewards = [abs(float(noted[name][-1])) for name in ("rewards/chosen", "rewards/rejected") if noted[name]]
        noted.clear()
        return max(rewards) / float(self.beta) / int(inputs["completion_mask"].sum(-1).max())
