"""Kahneman-Tversky optimisation on single answers, each labelled good or bad, that are tokenised already."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import KTOConfig, KTOTrainer
from typing_extensions import override

from finetune_api.handoff import ExitCode
from finetune_api.spec import Method
from finetune_api.status import Resolved
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.measurements import Measured, token_mean
from finetune_trainer.tokenization.samples import EncodedLabelled
from finetune_trainer.training.methods.loop import LoopContext, MeasuredBatch, callbacks, common_arguments, mean_figures
from finetune_trainer.training.methods.reference import ReferencedTrainer

SMALLEST_BATCH = 2
"""The divergence is a mean over a batch, cut off at zero: over one row it would be noise that only counts upwards."""


class LabelledTrainer(ReferencedTrainer, KTOTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with the loss and margin of the held-out rows, each row weighing the same."""

    REFERENCE_COLUMNS = ("ref_logps", "ref_KL_logps")

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        return len(inputs["label"])

    def _figures(self, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        good = int(inputs["label"].sum())
        found = (("rewards/chosen", good), ("rewards/rejected", self._weight(inputs) - good))
        return {name: (self._last_figure(name), rows) for name, rows in found if rows}

    def _summarize(self, parts: Sequence[MeasuredBatch]) -> Measured:
        measured, means = token_mean([(part.loss, part.weight) for part in parts]), mean_figures(parts)
        if len(means) < 2:
            return measured
        return replace(measured, reward_margin=means["rewards/chosen"] - means["rewards/rejected"])

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Without TRL's divergence, which is per answer: ours is per token, and of RLHF."""
        self._metrics["train"].pop("kl", None)
        super().log(logs, start_time)


def build_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Resolved,
    loop: LoopContext,
    *,
    train: Sequence[EncodedLabelled],
    validation: Sequence[EncodedLabelled],
    scratch: Path,
) -> LabelledTrainer:
    """The trainer, ready for `evaluate()`, `train()` and `measure()`."""
    if (settings.per_device_train_batch_size or 1) < SMALLEST_BATCH:
        raise TrainerError(
            ExitCode.INVALID_CONFIG,
            "KTO measures its divergence over each batch and needs two rows in one: set "
            "hyperparameters.perDeviceTrainBatchSize to 2 or more",
        )
    evaluates = bool(validation)
    return LabelledTrainer(
        loop,
        model=model,
        args=build_arguments(settings, scratch, evaluates=evaluates, on_cpu=model.device.type == "cpu"),
        train_dataset=to_dataset(shuffled(train, settings.seed or 0)),
        eval_dataset=to_dataset(shuffled(validation, settings.seed or 0)) if evaluates else None,
        processing_class=tokenizer,
        callbacks=callbacks(loop),
    )


def build_arguments(settings: Resolved, scratch: Path, *, evaluates: bool, on_cpu: bool) -> KTOConfig:
    """The library's settings; see `dpo.build_arguments` for the reference. Rows stay in order, beside their strangers'
    answers."""
    return KTOConfig(
        **common_arguments(settings, scratch, evaluates=evaluates, on_cpu=on_cpu),
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        precompute_ref_log_probs=settings.method == Method.FULL,
        train_sampling_strategy="sequential",
        disable_dropout=True,
        max_length=None,
    )


def shuffled(samples: Sequence[EncodedLabelled], seed: int) -> list[EncodedLabelled]:
    """The samples in a seeded order: those of one pair, or one source, must not meet in every batch."""
    return random.Random(seed).sample(samples, len(samples))  # noqa: S311 - no secret


def to_dataset(samples: Sequence[EncodedLabelled]) -> Dataset:
    """The columns that TRL's collator joins and pads, among them a stranger's answer to each prompt."""
    columns = {
        "prompt_ids": [sample.prompt_ids for sample in samples],
        "completion_ids": [sample.completion_ids for sample in samples],
        "KL_completion_ids": [samples[at].completion_ids for at in pair_with_other_prompts(samples)],
    }
    arrays = {name: [np.asarray(ids, dtype=np.int32) for ids in rows] for name, rows in columns.items()}
    return Dataset.from_dict(arrays | {"label": [sample.desirable for sample in samples]})


def pair_with_other_prompts(samples: Sequence[EncodedLabelled]) -> list[int]:
    """For each sample the nearest one before it, around the end, with another prompt; any if none has.

    The divergence is estimated on answers that do not belong to their prompts. TRL pairs neighbours within a batch,
    which gives the two answers to one prompt to each other, and a last row alone to itself.
    """
    last = len(samples) - 1
    first = samples[0].prompt_ids
    found = [next((at for at in range(last, 0, -1) if samples[at].prompt_ids != first), last)]
    for at in range(1, len(samples)):
        is_new = samples[at].prompt_ids != samples[at - 1].prompt_ids
        found.append(at - 1 if is_new else found[at - 1])
    return found
