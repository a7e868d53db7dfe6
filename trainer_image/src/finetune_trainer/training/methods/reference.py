"""Training against a reference: what the model said before its first step, taken once and kept as a column."""

from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.world import unshard
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.methods.loop import LoopContext, LoopTrainer

FROZEN_COPY = "ref"
"""TRL's name for the adapter as it was."""
CHECKED_ROWS = 8
LARGEST_DRIFT = 0.1
"""Nats per token between model and reference before the first step: rounding stays far below, another model above."""


class ReferencedTrainer(LoopTrainer):
    """Stands before TRL's DPO and KTO trainers and takes the reference's log-probabilities before the training.

    The reference is the initial adapter, of which TRL makes a frozen copy, and the whole model under method Full. Once
    taken, neither a copy nor a second model is held, and no step runs the reference again. TRL's own precomputation is
    passed over: it hears no stop, and it rounds the adapter of a quantised model before it is measured.
    """

    REFERENCE_COLUMNS: ClassVar[tuple[str, ...]]
    train_dataset: Dataset
    eval_dataset: Dataset | None

    def __init__(self, loop: LoopContext, **arguments: Any) -> None:
        super().__init__(loop, **arguments)
        loop.reporter.stage("Reference")
        self.train_dataset = self._with_reference(self.train_dataset)
        if self.eval_dataset is not None:
            self.eval_dataset = self._with_reference(self.eval_dataset)
        self.precompute_ref_logps = True
        if isinstance(self.model, PeftModel):
            self.model.delete_adapter(FROZEN_COPY)
        self._require_start_at_reference()

    @override
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The rows are tokenised already."""
        return dataset

    @override
    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        """Left to `_with_reference`, which runs when the weights are those that the training starts from."""
        return dataset

    def _with_reference(self, dataset: Dataset) -> Dataset:
        """Batches are dealt out where several processes train: each asks for a share, and all know every answer."""
        self.model.eval()
        size, world = self.args.per_device_eval_batch_size, self._loop.world
        batches = [range(at, min(at + size, len(dataset))) for at in range(0, len(dataset), size)]
        shares = torch.zeros(-(-len(batches) // world.size), size, len(self.REFERENCE_COLUMNS))
        for number, (share, (batch, _)) in enumerate(zip(shares, world.shard(batches), strict=True)):
            self._loop.stop.raise_if_set()
            self._loop.reporter.share(number, len(shares))
            inputs = self._prepare_inputs(self.data_collator([dataset[at] for at in batch]))
            found = self.compute_ref_log_probs(self.model, inputs)
            share[: len(batch)] = torch.stack([values.float().cpu() for values in found], dim=1)
        columns = unshard(world.gather(shares), len(batches)).flatten(0, 1)[: len(dataset)]
        for at, name in enumerate(self.REFERENCE_COLUMNS):
            dataset = dataset.add_column(name, columns[:, at].numpy())
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
