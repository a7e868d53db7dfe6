"""Supervised fine-tuning (Instruction and Chat) through TRL's loop, on rows that are tokenised and labelled already."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerControl
from trl import SFTConfig, SFTTrainer

from finetune_api.status import Resolved
from finetune_trainer.callbacks import KeepBest, ReportProgress, RequireGradient, diverged
from finetune_trainer.labels import UNTRAINED, Encoded
from finetune_trainer.model import NON_REENTRANT, trained_tensors
from finetune_trainer.progress import Reporter
from finetune_trainer.report.record import History, Measured, Plateau, token_mean
from finetune_trainer.stop import StopFlag


@dataclass(frozen=True)
class Watch:
    """Who is told of the training, and where its best weights lie."""

    reporter: Reporter
    stop: StopFlag
    history: History
    plateau: Plateau
    best_weights: Path


class RowTrainer(SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with an evaluation loss weighted by token, a stop flag and a guard against NaN."""

    def __init__(self, watch: Watch, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._watch = watch

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """One micro-batch; a loss that is no number ends the run before it reaches the weights, and so does a stop."""
        self._watch.stop.raise_if_set()
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self._watch.reporter.beat()
        if not torch.isfinite(loss).all():
            raise diverged(self.state.global_step + 1, "the training loss")
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measures the held-out rows in place of the library's loop, which averages batches whatever their length."""
        step = self.state.global_step
        self._watch.reporter.stage("Evaluating" if step else "Baseline")
        measured = self.measure()
        self._watch.history.add_evaluation(step, measured)
        metrics = {"eval_loss": measured.loss}
        self.log(dict(metrics))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if step:
            self._watch.reporter.stage("Training")
        return metrics

    def measure(self) -> Measured:
        """The held-out loss of the weights as they are."""
        self.model.eval()
        batches = []
        for batch in self.get_eval_dataloader():
            self._watch.stop.raise_if_set()
            self._watch.reporter.beat()
            batches.append(self._measure_batch(self._prepare_inputs(batch)))
        return token_mean(batches)

    def _measure_batch(self, inputs: dict[str, torch.Tensor]) -> tuple[float, int]:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = float(self.compute_loss(self.model, dict(inputs)))
        if not math.isfinite(loss):
            raise diverged(self.state.global_step, "the evaluation loss")
        return loss, int((inputs["labels"][:, 1:] != UNTRAINED).sum())


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
    trainer = RowTrainer(
        watch,
        model=model,
        args=build_arguments(settings, scratch, evaluates=evaluates, on_cpu=model.device.type == "cpu"),
        train_dataset=to_dataset(train),
        eval_dataset=to_dataset(validation) if evaluates else None,
        processing_class=tokenizer,
        callbacks=[
            ReportProgress(watch.reporter, watch.history),
            KeepBest(watch.plateau, watch.best_weights, watch.reporter),
            RequireGradient(),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the reporter
    _adapter_to_fp32(trainer.model)
    return trainer


def build_arguments(settings: Resolved, scratch: Path, *, evaluates: bool, on_cpu: bool) -> SFTConfig:
    """Our settings under the library's names; whatever would tokenise, mask, truncate, pack or save again is off."""
    warmup = settings.warmup_steps or 0.0
    return SFTConfig(
        output_dir=str(scratch),
        max_steps=settings.total_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=warmup if warmup < 1 else int(warmup),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optim,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        gradient_checkpointing=bool(settings.gradient_checkpointing),
        gradient_checkpointing_kwargs=dict(NON_REENTRANT),
        bf16=settings.precision == "BF16",
        fp16=settings.precision == "FP16",
        use_cpu=on_cpu,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.eval_steps,
        prediction_loss_only=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
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


def _adapter_to_fp32(model: torch.nn.Module) -> None:
    """TRL turns the adapter of a quantised model into BF16, whose steps are larger than most updates."""
    for parameter in trained_tensors(model).values():
        parameter.data = parameter.data.float()
