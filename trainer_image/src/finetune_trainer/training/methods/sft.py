"""Supervised fine-tuning (Instruction, Chat, DomainAdaptation) on tokenised and labelled rows."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from finetune_api.spec import Attention, Precision
from finetune_trainer.evaluation.logprobs import LARGEST_LEAK, LARGEST_LEAK_IN_16_BITS
from finetune_trainer.models.attention import flash_kernel, use_attention
from finetune_trainer.tokenization.labeler import UNTRAINED, Encoded
from finetune_trainer.tokenization.packing import EXACT_MODELS, MAX_ROWS
from finetune_trainer.tokenization.sample_table import as_samples
from finetune_trainer.training.methods.columns import to_dataset
from finetune_trainer.training.methods.loop import LoopTrainer, MeasuredBatch
from finetune_trainer.training.methods.packed import (
    ROW_TOKENS,
    PackedCollator,
    balance_tokens,
    mask_rows,
    require_isolated_rows,
    to_packed_dataset,
)
from finetune_trainer.training.methods.parts import TrainerParts


class RowTrainer(LoopTrainer, SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with an evaluation loss weighted by token, and the attention kernel of `kernel`."""

    kernel: str | None = None
    """transformers' name of a flash kernel, for batches that are one line without padding; None: the model's own."""
    is_causal = False
    """Whether no token sees a later one: padding, which is at the end, then needs no mask."""
    _step_tokens = 0

    @override
    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Train one micro-batch; the kernel is the same in the backward pass, which may recompute the forward pass."""
        with use_attention(self.model, self.kernel):
            return super().training_step(*arguments, **options)

    def _measure_batch(self, inputs: dict[str, torch.Tensor]) -> MeasuredBatch:
        with use_attention(self.model, self.kernel):
            return super()._measure_batch(inputs)

    @override
    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss of the trained tokens: of the step's if their number is given, else of the batch's.

        TRL's own method also reads entropy, accuracy and token counts from the device at every micro-batch.
        """
        tokens = inputs.pop(ROW_TOKENS)
        if self.model.training:
            self._step_tokens += sum(tokens)
        if self.is_causal:
            inputs.pop("attention_mask", None)
        routing = {"output_router_logits": True} if self.aux_loss_enabled else {}
        has_padding = "attention_mask" not in inputs and inputs["input_ids"].numel() > sum(tokens)
        balanced = balance_tokens(inputs["input_ids"], tokens) if routing and has_padding else nullcontext()
        with mask_rows(is_packed="position_ids" in inputs), balanced:
            outputs = model(**inputs, **routing, use_cache=False, fused_lm_head=True)
        is_of_step = num_items_in_batch is not None
        trained = torch.as_tensor(num_items_in_batch if is_of_step else outputs.label_mask.sum())
        loss = -outputs.log_probs.sum() / trained.clamp(min=1)
        if is_of_step and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages, and the number is that of all processes
        if self.aux_loss_enabled:
            parts = self.current_gradient_accumulation_steps if is_of_step else 1
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / parts
        return (loss, outputs) if return_outputs else loss

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the tokens that all processes have read so far after each step."""
        if "loss" in logs:
            tokens = torch.tensor(self._step_tokens, device=self.args.device)
            self._total_train_tokens += int(self.accelerator.gather(tokens).sum())
            self._step_tokens = 0
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        super().log(logs, start_time)

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
        remove_unused_columns=False,  # the library does not know the one of packed rows
    )
    packed = as_samples(parts.train) if settings.packing else None
    if packed:
        train_dataset = to_packed_dataset(packed, settings.max_length or 0, max_rows)
    else:
        train_dataset = to_row_dataset(parts.train)
    trainer = RowTrainer(**parts.trainer_arguments(train_dataset, to_row_dataset), args=arguments)
    is_flat = settings.attention == Attention.FLASH
    trainer.kernel = flash_kernel() if is_flat else None
    is_known = trainer.model.config.get_text_config().model_type in EXACT_MODELS
    trainer.is_causal = is_known and not trainer.aux_loss_enabled  # its mean over tokens must leave padding out
    padding = trainer.data_collator.pad_token_id
    trainer.data_collator = PackedCollator(
        padding, padding_free=is_flat, max_length=settings.max_length or 0, samples=packed
    )
    if settings.packing or is_flat:
        largest = LARGEST_LEAK if settings.precision == Precision.FP32 else LARGEST_LEAK_IN_16_BITS
        with use_attention(trainer.model, trainer.kernel), trainer.compute_loss_context_manager():
            is_packed = bool(settings.packing)
            require_isolated_rows(trainer.model, trainer.data_collator, is_packed=is_packed, largest_leak=largest)
    return trainer


def to_row_dataset(samples: Sequence[Encoded]) -> Dataset:
    """Return the samples as the two columns that TRL's collator pads."""
    return to_dataset(as_samples(samples).table.select(["input_ids", "labels"]))
