"""Direct preference optimisation on tokenised pairs."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from finetune_api.spec import Method
from finetune_trainer.evaluation.measurements import Measured
from finetune_trainer.tokenization.sample_table import as_samples
from finetune_trainer.tokenization.samples import EncodedPair
from finetune_trainer.training.methods.columns import to_dataset
from finetune_trainer.training.methods.loop import MeasuredBatch
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.reference import ReferencedTrainer

SMALLEST_MARGIN = 0.5
"""Nats per pair: the reference differs from itself by rounding, which is below."""


class PreferenceTrainer(ReferencedTrainer, DPOTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with loss, margin and accuracy of the held-out pairs; all pairs have the same weight."""

    REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        return len(inputs["input_ids"]) // 2

    def _figures(self, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        pairs = self._weight(inputs)
        return {
            "reward_margin": (self._last_figure("rewards/margins"), pairs),
            "reward_accuracy": (self._last_figure("rewards/accuracies"), pairs),
        }

    def _summarize(self, parts: Sequence[MeasuredBatch]) -> Measured:
        """Leave the accuracy out of the model that is the reference: TRL counts rewards of zero as inaccurate."""
        measured = super()._summarize(parts)
        is_reference = abs(measured.reward_margin or 0.0) < SMALLEST_MARGIN * float(self.beta)
        if is_reference and not self.state.global_step:
            return replace(measured, reward_accuracy=None)
        return measured


def build_dpo_trainer(parts: TrainerParts) -> PreferenceTrainer:
    """Return the trainer, ready for `evaluate()`, `train()` and `measure()`."""
    settings = parts.settings
    sft = [settings.sft_weight] if settings.sft_weight else []
    arguments = DPOConfig(
        **parts.library_settings(),
        beta=settings.beta,
        loss_type=[settings.loss_type, *("sft" for _ in sft)],
        loss_weights=[1.0, *sft],
        label_smoothing=settings.label_smoothing or 0.0,
        # Otherwise TRL loads a second model with method Full.
        precompute_ref_log_probs=settings.method == Method.FULL,
        disable_dropout=True,
        max_length=None,
    )
    return PreferenceTrainer(**parts.trainer_arguments(to_pair_dataset(parts.train), to_pair_dataset), args=arguments)


def to_pair_dataset(samples: Sequence[EncodedPair]) -> Dataset:
    """Return the pairs as the three columns that TRL's collator joins and pads."""
    return to_dataset(as_samples(samples).table.select(["prompt_ids", "chosen_ids", "rejected_ids"]))
