"""Supervised fine-tuning (Instruction, Chat, DomainAdaptation) on tokenised and labelled rows."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from finetune_api.spec import Attention
from finetune_trainer.models.attention import flash_kernel, use_attention
from finetune_trainer.tokenization.labeler import UNTRAINED, Encoded
from finetune_trainer.tokenization.packing import MAX_ROWS
from finetune_trainer.tokenization.sample_table import as_samples
from finetune_trainer.training.methods.columns import to_dataset
from finetune_trainer.training.methods.loop import LoopTrainer, MeasuredBatch, TrainerParts
from finetune_trainer.training.methods.packed import (
    ROW_TOKENS,
    PackedCollator,
    require_isolated_rows,
    to_packed_dataset,
)


class RowTrainer(LoopTrainer, SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with an evaluation loss weighted by token, and the attention kernel of `kernel`."""

    kernel: str | None = None
    """transformers' name of a flash kernel, for batches that are one line without padding; None: the model's own."""

    @override
    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Train one micro-batch; the kernel is the same in the backward pass, which may recompute the forward pass."""
        with use_attention(self.model, self.kernel):
            return super().training_step(*arguments, **options)

    @override
    def _measure_batch(self, inputs: dict[str, torch.Tensor]) -> MeasuredBatch:
        with use_attention(self.model, self.kernel):
            return super()._measure_batch(inputs)

    @override
    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Return the loss of a batch and correct TRL's token count, which is wrong without an attention mask."""
        tokens = inputs.pop(ROW_TOKENS, None)
        loss = super().compute_loss(model, inputs, *arguments, **options)
        if tokens is not None and self.model.training:
            missed = tokens.sum() - inputs["position_ids"].shape[1]
            self._total_train_tokens += int(self.accelerator.gather(missed).sum())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        return int((inputs["labels"][:, 1:] != UNTRAINED).sum())


def build_sft_trainer(parts: TrainerParts, max_rows: int | None = MAX_ROWS) -> RowTrainer:
    """Return the trainer, ready for `evaluate()`, `train()` and `measure()`.

    With packing, at most `max_rows` rows share a sequence; held-out rows are not packed.
    """
    settings = parts.settings
    arguments = SFTConfig(  # no tokenising, masking, truncating or packing by the library
        **parts.library_settings(),
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=False,
        max_length=None,
        packing=False,
    )
    if settings.packing:
        train_dataset = to_packed_dataset(parts.train, settings.max_length or 0, max_rows)
    else:
        train_dataset = to_row_dataset(parts.train)
    trainer = RowTrainer(**parts.trainer_arguments(train_dataset, to_row_dataset), args=arguments)
    is_flat = settings.attention == Attention.FLASH
    if settings.packing or is_flat:
        trainer.kernel = flash_kernel() if is_flat else None
        padding = trainer.data_collator.pad_token_id
        trainer.data_collator = PackedCollator(padding, padding_free=is_flat, max_length=settings.max_length or 0)
        with use_attention(trainer.model, trainer.kernel), trainer.compute_loss_context_manager():
            require_isolated_rows(trainer.model, trainer.data_collator, is_packed=bool(settings.packing))
    return trainer


def to_row_dataset(samples: Sequence[Encoded]) -> Dataset:
    """Return the samples as the two columns that TRL's collator pads."""
    return to_dataset(as_samples(samples).table.select(["input_ids", "labels"]))
