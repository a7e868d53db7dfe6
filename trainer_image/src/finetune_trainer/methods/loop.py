"""What every objective's training loop has: a stop flag, a guard against NaN, and an evaluation of its own."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl

from finetune_api.status import Resolved
from finetune_trainer.callbacks import KeepBest, ReportProgress, RequireGradient, diverged
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


@dataclass(frozen=True, slots=True)
class Part:
    """One batch of an evaluation: its mean loss, what that is a mean over, and other figures, each with its weight."""

    loss: float
    weight: int
    figures: Mapping[str, tuple[float, int]]


class WatchedTrainer(Trainer):  # type: ignore[misc]  # the library has no types
    """Stands before a TRL trainer: `class RowTrainer(WatchedTrainer, SFTTrainer)`; a subclass says what a batch weighs.

    TRL turns the adapter of a quantised model into BF16, whose steps are larger than most updates: it comes out of
    the constructor in FP32 with the values it went in with.
    """

    def __init__(self, watch: Watch, **arguments: Any) -> None:
        self._watch = watch
        with kept_in_fp32(arguments["model"]):
            super().__init__(**arguments)
        self.remove_callback(PrinterCallback)  # standard output belongs to the reporter

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """One micro-batch; a loss that is no number ends the run before it reaches the weights, and so does a stop."""
        self._watch.stop.raise_if_set()
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self._watch.reporter.beat()
        if not torch.isfinite(loss).all():
            raise diverged(self.state.global_step + 1, "the training loss")
        return loss

    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Not counted: nobody is told, and the library walks through every module at every micro-batch for it."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measures the held-out rows in place of the library's loop, which averages batches whatever their length."""
        step = self.state.global_step
        self._watch.reporter.stage("Evaluating" if step else "Baseline")
        measured = self.measure()
        self._watch.history.add_evaluation(step, measured)
        metrics = {"eval_loss": measured.loss}
        self.log(dict(metrics))
        self._watch.reporter.update(metrics=measured.figures())
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if step:
            self._watch.reporter.stage("Training")
        return metrics

    def measure(self) -> Measured:
        """The held-out loss of the weights as they are."""
        self.model.eval()
        parts = []
        for batch in self.get_eval_dataloader():
            self._watch.stop.raise_if_set()
            self._watch.reporter.beat()
            parts.append(self._measure_batch(self._prepare_inputs(batch)))
        return self._measured(parts)

    def show(self, samples: Sequence[Any]) -> list[Any]:
        """What the weights as they are make of these samples, for the report; nothing unless the objective says."""
        return []

    def _measure_batch(self, inputs: dict[str, torch.Tensor]) -> Part:
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = float(self.compute_loss(self.model, dict(inputs)))
        if not math.isfinite(loss):
            raise diverged(self.state.global_step, "the evaluation loss")
        return Part(loss, self._weight(inputs), self._figures(inputs))

    def _measured(self, parts: Sequence[Part]) -> Measured:
        figures: dict[str, Any] = mean_figures(parts)
        return replace(token_mean([(part.loss, part.weight) for part in parts]), **figures)

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        """What the batch's loss is a mean over: trained tokens, pairs or rows."""
        raise NotImplementedError

    def _figures(self, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Figures of the batch just measured, by the names of `Measured`, each with its weight."""
        return {}

    def _last_figure(self, name: str) -> float:
        """What TRL noted under this name for the batch just measured."""
        return float(self._metrics["eval"][name][-1])


def mean_figures(parts: Sequence[Part]) -> dict[str, float]:
    """Each figure's mean over all parts that have it, by weight."""
    names = {name for part in parts for name in part.figures}
    means = {}
    for name in sorted(names):
        found = [part.figures[name] for part in parts if name in part.figures]
        means[name] = sum(value * weight for value, weight in found) / max(sum(weight for _, weight in found), 1)
    return means


@contextmanager
def kept_in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Puts a quantised model's trained weights back as they were, in FP32."""
    if not getattr(model, "is_loaded_in_4bit", False):
        yield
        return
    before = {name: parameter.detach().clone() for name, parameter in trained_tensors(model).items()}
    yield
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = before[name].float()


def callbacks(watch: Watch, *, keeps_best: bool = True) -> list[TrainerCallback]:
    """Reporting, the best weights where the objective has a loss to choose them by, and the gradient check."""
    best = [KeepBest(watch.plateau, watch.best_weights, watch.reporter)] if keeps_best else []
    return [ReportProgress(watch.reporter, watch.history), *best, RequireGradient()]


def common_arguments(settings: Resolved, scratch: Path, *, evaluates: bool, on_cpu: bool) -> dict[str, Any]:
    """Our settings under the library's names, for every objective; whatever would save or report again is off."""
    warmup = settings.warmup_steps or 0.0
    return {
        "output_dir": str(scratch),
        "max_steps": settings.total_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": warmup if warmup < 1 else int(warmup),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": settings.optim,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "activation_checkpointing": bool(settings.gradient_checkpointing),
        "activation_checkpointing_kwargs": dict(NON_REENTRANT),
        "bf16": settings.precision == "BF16",
        "fp16": settings.precision == "FP16",
        "use_cpu": on_cpu,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": settings.eval_steps,
        "prediction_loss_only": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
