"""Supervised fine-tuning (Instruction, Chat, DomainAdaptation) on rows that are tokenised and labelled already."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from finetune_api.status import Resolved
from finetune_trainer.labels import UNTRAINED, Encoded
from finetune_trainer.methods.loop import Watch, WatchedTrainer, callbacks, common_arguments


class RowTrainer(WatchedTrainer, SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with a loss weighted by token."""

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        return int((inputs["labels"][:, 1:] != UNTRAINED).sum())


def build_trainer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Resolved,
    watch: Watch,
    *,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    scratch: Path,
) -> RowTrainer:
    """The trainer, ready for `evaluate()`, `train()` and `measure()`."""
    evaluates = bool(validation)
    return RowTrainer(
        watch,
        model=model,
        args=build_arguments(settings, scratch, evaluates=evaluates, on_cpu=model.device.type == "cpu"),
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(validation) if evaluates else None,
        processing_class=tokenizer,
        callbacks=callbacks(watch),
    )


def build_arguments(settings: Resolved, scratch: Path, *, evaluates: bool, on_cpu: bool) -> SFTConfig:
    """The library's settings; whatever would tokenise, mask, truncate or pack again is off."""
    return SFTConfig(
        **common_arguments(settings, scratch, evaluates=evaluates, on_cpu=on_cpu),
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=False,
        max_length=None,
        packing=False,
    )


def to_dataset(samples: Sequence[Encoded]) -> Dataset:
    """The samples as the two columns that TRL's collator pads and nothing else touches."""
    return Dataset.from_dict(
        {
            "input_ids": [np.asarray(sample.input_ids, dtype=np.int32) for sample in samples],
            "labels": [np.asarray(sample.labels, dtype=np.int32) for sample in samples],
        }
    )
