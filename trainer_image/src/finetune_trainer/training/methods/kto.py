"""Kahneman-Tversky optimisation on tokenised answers, each labelled good or bad."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_api.objectives import SMALLEST_KTO_BATCH
from finetune_api.spec import Method
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.measurements import Measured, token_mean
from finetune_trainer.tokenization.sample_table import Samples, as_samples
from finetune_trainer.tokenization.samples import EncodedLabelled
from finetune_trainer.training.methods.columns import to_dataset
from finetune_trainer.training.methods.loop import MeasuredBatch, mean_figures
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.reference import ReferencedTrainer


class LabelledTrainer(ReferencedTrainer, KTOTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with loss and margin of the held-out rows; all rows have the same weight."""

    REFERENCE_COLUMNS = ("ref_logps", "ref_KL_logps")

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        return len(inputs["label"])

    def _figures(self, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        good = int(inputs["label"].sum())
        found = (("rewards/chosen", good), ("rewards/rejected", self._weight(inputs) - good))
        return {name: (self._last_figure(name) if rows else 0.0, rows) for name, rows in found}

    def _summarize(self, parts: Sequence[MeasuredBatch]) -> Measured:
        measured, means = token_mean([(part.loss, part.weight) for part in parts]), mean_figures(parts)
        if len(means) < 2:
            return measured
        return replace(measured, reward_margin=means["rewards/chosen"] - means["rewards/rejected"])

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log without TRL's divergence, which is per answer; our metric `kl` is per token, and only of RLHF."""
        self._metrics["train"].pop("kl", None)
        super().log(logs, start_time)


def build_kto_trainer(parts: TrainerParts) -> LabelledTrainer:
    """Return the trainer, ready for `evaluate()`, `train()` and `measure()`."""
    settings = parts.settings
    if (settings.per_device_train_batch_size or 1) < SMALLEST_KTO_BATCH:
        raise TrainerError(
            ExitCode.INVALID_CONFIG,
            "KTO measures its divergence over each batch, which needs at least two rows: set "
            "hyperparameters.perDeviceTrainBatchSize to 2 or more",
        )
    arguments = KTOConfig(
        **parts.library_settings(),
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        precompute_ref_log_probs=settings.method == Method.FULL,  # as in `build_dpo_trainer`
        train_sampling_strategy="sequential",  # so that each row keeps its answer to another prompt
        disable_dropout=True,
        max_length=None,
    )

    def prepare(samples: Sequence[EncodedLabelled]) -> Dataset:
        return to_answer_dataset(shuffled(samples, settings.seed or 0))

    return LabelledTrainer(**parts.trainer_arguments(prepare(parts.train), prepare), args=arguments)


def shuffled(samples: Sequence[EncodedLabelled], seed: int) -> Samples[EncodedLabelled]:
    """Return the samples in a seeded order, so that those of one pair or source do not share every batch."""
    return as_samples(samples).take(random.Random(seed).sample(range(len(samples)), len(samples)))  # noqa: S311


def to_answer_dataset(samples: Samples[EncodedLabelled]) -> Dataset:
    """Return the columns that TRL's collator joins and pads, with an answer to another prompt for each prompt."""
    others = samples.take(pair_with_other_prompts(samples))
    columns = {
        "prompt_ids": samples.table["prompt_ids"],
        "completion_ids": samples.table["completion_ids"],
        "KL_completion_ids": others.table["completion_ids"],
        "label": samples.table["desirable"],
    }
    return to_dataset(pa.table(columns))


def pair_with_other_prompts(samples: Samples[EncodedLabelled]) -> list[int]:
    """Return for each sample the nearest earlier one (cyclic) with another prompt; any sample if there is none.

    The divergence is estimated on answers to other prompts. TRL pairs neighbours within a batch, which pairs two
    answers to one prompt with each other, and a single last row with itself.
    """
    prompts = samples.ids("prompt_ids")
    last = len(prompts) - 1
    found = [next((at for at in range(last, 0, -1) if not np.array_equal(prompts[at], prompts[0])), last)]
    for at in range(1, len(prompts)):
        is_new = not np.array_equal(prompts[at], prompts[at - 1])
        found.append(at - 1 if is_new else found[at - 1])
    return found
