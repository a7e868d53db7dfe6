"""Kahneman-Tversky optimisation on tokenised answers, each labelled good or bad."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer
from typing_extensions import override

from finetune_api.objectives import SMALLEST_KTO_BATCH
from finetune_api.spec import Method
from finetune_trainer.errors import InvalidConfig
from finetune_trainer.evaluation.measurements import Measured, token_mean
from finetune_trainer.tokenization.sample_table import Samples, as_samples, prompts_of, take_rows
from finetune_trainer.tokenization.samples import EncodedLabelled
from finetune_trainer.training.methods.columns import to_dataset
from finetune_trainer.training.methods.loop import MeasuredBatch, mean_figures
from finetune_trainer.training.methods.parts import TrainerParts
from finetune_trainer.training.methods.reference import HELD_OUT, HELD_OUT_BY_PROMPT, ReferencedTrainer, has_usual_order

OTHER_ANSWERS = "KL_completion_ids"
"""TRL's name of the answers on which the divergence is measured."""


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
        means = mean_figures(parts)
        measured = token_mean([(part.loss, part.weight) for part in parts], self._owners)
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
        raise InvalidConfig(
            "KTO measures its divergence over each batch, which needs at least two rows: set "
            "hyperparameters.perDeviceTrainBatchSize to 2 or more"
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

    seed, held_out = settings.seed or 0, HELD_OUT
    train = to_answer_dataset(with_other_answers(shuffled(parts.train, seed)))
    if parts.validation:
        rows = with_other_answers(shuffled(parts.validation, seed))
        order = order_by_prompt(prompts_of(rows))
        # The loss and the reference of an older checkpoint are of the batches in the other order.
        if order != list(range(len(rows))) and not has_usual_order(parts.loop.reference):
            rows, held_out = rows.take(order), HELD_OUT_BY_PROMPT
        parts = replace(parts, validation=rows)
    return LabelledTrainer(**parts.trainer_arguments(train, to_answer_dataset), held_out=held_out, args=arguments)


def shuffled(samples: Sequence[EncodedLabelled], seed: int) -> Samples[EncodedLabelled]:
    """Return the samples in a seeded order, so that those of one pair or source do not share every batch."""
    return as_samples(samples).take(random.Random(seed).sample(range(len(samples)), len(samples)))  # noqa: S311


def order_by_prompt(prompts: Sequence[int]) -> list[int]:
    """Return the places of the rows such that those of a prompt are neighbours; first the prompts with an even number.

    Rows are measured two at a time: at most two prompts share such a batch then.
    """
    places: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    return [place for found in sorted(places.values(), key=lambda found: len(found) % 2) for place in found]


def with_other_answers(samples: Samples[EncodedLabelled]) -> Samples[EncodedLabelled]:
    """Return the samples with an answer to another prompt for each prompt, as a column."""
    answers = take_rows(samples.table.select(["completion_ids"]), pair_with_other_prompts(samples))
    return Samples(samples.table.append_column(OTHER_ANSWERS, answers["completion_ids"]))


def to_answer_dataset(samples: Samples[EncodedLabelled]) -> Dataset:
    """Return the columns that TRL's collator joins and pads."""
    columns = samples.table.select(["prompt_ids", "completion_ids", OTHER_ANSWERS, "desirable"])
    return to_dataset(columns.rename_columns({"desirable": "label"}))


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
