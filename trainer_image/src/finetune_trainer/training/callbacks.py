"""Callbacks of the training loop: reporting, best weights, checkpoints, the gradient check."""

import functools
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_api.defaults import count_epochs
from finetune_api.handoff import ExitCode
from finetune_trainer.distributed.sharding import (
    full_tensor,
    load_parameter,
    local_shard,
    require_same_gradients,
    reshard,
    trains_shards,
)
from finetune_trainer.distributed.world import ALONE, World
from finetune_trainer.errors import InvalidConfig, TrainerError
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import TrainPoint
from finetune_trainer.models.adapters.factors import is_of_experts
from finetune_trainer.models.loading import trained_tensors
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.training.checkpoints import Checkpoints
from finetune_trainer.training.kept_weights import KeptWeights

LOGGED_FIGURES = {
    "rewards/margins": "reward_margin",
    "margin": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
    "accuracy": "reward_accuracy",
    "reward": "reward",
    "kl": "kl",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "clipped_share",
    "frac_reward_zero_std": "flat_share",
}
"""TRL's names for the metrics of an objective, and ours; the loss has the same name."""
SKIPPED_IN_A_ROW = 25
"""Steps that FP16's loss scaling may skip one after the other. torch.amp.GradScaler starts at 65536 and halves its
scale at each: after 25 it is 2⁻⁹, and the gradients themselves are not finite."""


class ReportProgress(TrainerCallback):  # type: ignore[misc]
    """Report every step to the reporter and metrics.jsonl; the first process counts the tokens of all.

    `rows` is the number of rows of an epoch. `has_full_steps`: no step takes fewer rows, as with sampled
    answers.
    """

    def __init__(
        self, reporter: Reporter, history: History, world: World = ALONE, *, rows: int, has_full_steps: bool = False
    ) -> None:
        self._reporter, self._world = reporter, world
        self._history = history
        self._rows, self._has_full_steps = rows, has_full_steps
        self._step_began = 0.0
        self._step_seconds = 0.0
        self._tokens_before = 0.0
        self._is_started = False
        self._skipped = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the progress at zero, or at the step of the checkpoint."""
        self._tokens_before = float(state.num_input_tokens_seen)
        progress = {"stage": "Training", "step": state.global_step, "total_steps": state.max_steps}
        self._reporter.update(progress=progress | {"epoch": self._count_epochs(args, state)})

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the step's clock, which excludes evaluations."""
        self._step_began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the step before its losses are known; evaluate the last step; log how long the start took."""
        self._step_seconds = time.monotonic() - self._step_began
        progress = {"stage": "Training", "step": state.global_step, "total_steps": state.max_steps}
        self._reporter.update(progress=progress | {"epoch": self._count_epochs(args, state)})
        if not self._is_started:
            self._is_started = True
            self._reporter.start.end("first step")
            if self._world.is_first:
                self._reporter.start.log("the first step ended")
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record the step; raise if its gradient is not finite, in FP16 if that of many steps in a row is not: loss
        scaling skips such a step."""
        if not logs or "loss" not in logs:
            return
        grad_norm = logs.get("grad_norm")
        tokens = logs["num_tokens"] - self._tokens_before
        self._tokens_before = logs["num_tokens"]
        if grad_norm is not None and not math.isfinite(grad_norm):
            if not args.fp16:
                raise build_divergence_error(state.global_step, "gradient norm")
            grad_norm = None
            self._skipped += 1
            if self._skipped >= SKIPPED_IN_A_ROW:
                raise _build_skipped_error(state.global_step, f"{self._skipped} steps in a row")
        else:
            self._skipped = 0
        point = TrainPoint(
            step=state.global_step,
            epoch=round(self._count_epochs(args, state), 6),
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=grad_norm,
            tokens_per_second=tokens / max(self._step_seconds, 1e-9),
            seconds=self._step_seconds,
            **_logged_figures(logs),
        )
        self._history.add_step(point)
        self._reporter.count_tokens(int(tokens) if self._world.is_first else 0)
        self._reporter.update(metrics=_step_metrics(point))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise if loss scaling has skipped every step, also those of the runs before this one: nothing was learnt."""
        if self._skipped and all(point.grad_norm is None for point in self._history.train):
            raise _build_skipped_error(state.global_step, "every step so far")

    def _count_epochs(self, args: TrainingArguments, state: TrainerState) -> float:
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * self._world.size
        return count_epochs(state.global_step, batch, self._rows, has_full_steps=self._has_full_steps)


def _logged_figures(logs: Mapping[str, float]) -> dict[str, float]:
    found = {ours: logs[theirs] for theirs, ours in LOGGED_FIGURES.items() if theirs in logs}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _step_metrics(point: TrainPoint) -> dict[str, object]:
    metrics: dict[str, object] = {
        "train_loss": point.loss,
        "learning_rate": point.learning_rate,
        "tokens_per_second": point.tokens_per_second,
    }
    if point.grad_norm is not None:
        metrics["grad_norm"] = point.grad_norm
    metrics |= point.figures()
    if torch.cuda.is_available():
        metrics["gpu_memory_peak_bytes"] = torch.cuda.max_memory_allocated()
    return metrics


class RequireFiniteLoss(TrainerCallback):  # type: ignore[misc]
    """Raise before the weights change if a loss of the step is not finite; the device is read once per step."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro-batch."""
        self._sum = loss if self._sum is None else self._sum + loss

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check the sum, which is finite only if every loss is."""
        total, self._sum = self._sum, None
        if total is not None and not torch.isfinite(total).all():
            raise build_divergence_error(state.global_step + 1, "the training loss")


class RequireGradient(TrainerCallback):  # type: ignore[misc]
    """Raise if no gradient reaches the trained weights, or if the processes have not averaged their gradients.

    Without this check such a run looks as if its data were bad.
    """

    def __init__(self, world: World = ALONE, cause: str = "") -> None:
        self._world = world
        self.cause = cause
        """What is wrong with the job if there is none; empty if that is a fault of the trainer."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the first step's gradients."""
        if state.global_step == 0:
            require_gradient(kwargs["model"], self._world, self.cause)
            require_same_gradients(kwargs["model"], self._world)


def require_gradient(model: torch.nn.Module, world: World = ALONE, cause: str = "") -> None:
    """Raise if every trained weight has no gradient or a zero gradient, or if an adapter on experts has none. For the
    first, `cause` is what is wrong with the job, if anything is.

    These adapters are put on by another mechanism than the others, module by module.
    """
    trained = trained_tensors(model)
    found = any(_has_gradient(parameter) for parameter in trained.values())
    if not world.any_rank(found):
        if cause:
            raise InvalidConfig(cause)
        raise TrainerError(ExitCode.INTERNAL_ERROR, "no gradient reaches the trained weights at the first step")
    # The first factor's gradient is zero while the second one is: only the second one's is always there.
    seconds = [name for name in trained if ".lora_B." in name and is_of_experts(name.partition(".lora_B.")[0])]
    missing = [name for name in seconds if not _has_gradient(trained[name])]
    if world.any_rank(bool(missing)):
        example = missing[0] if missing else "one of another process"
        problem = "no gradient reaches an adapter on experts at the first step"
        raise TrainerError(ExitCode.INTERNAL_ERROR, f"{problem}: {example}")


def _has_gradient(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(local_shard(parameter.grad).count_nonzero())


class KeepBest(TrainerCallback):  # type: ignore[misc]
    """Keep the weights of the lowest evaluation loss on disk; end the loop when early stopping's patience runs out."""

    def __init__(self, plateau: Plateau, path: Path, reporter: Reporter, history: History) -> None:
        self._plateau = plateau
        self._history = history
        self._path = path
        self._reporter = reporter

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record an evaluation; the weights from before the training are no candidate, at whichever step."""
        loss = (metrics or {})["eval_loss"]
        if state.global_step == 0:
            self._reporter.update(metrics={"eval_loss": loss, "baseline_eval_loss": loss})
            return
        if self._history.first_change() is None:
            self._reporter.update(metrics={"eval_loss": loss})
            return
        if self._plateau.update(state.global_step, loss):
            save_trained(kwargs["model"], self._path)
        stopped = self._plateau.is_exhausted
        control.should_training_stop = control.should_training_stop or stopped
        self._reporter.update(
            metrics={
                "eval_loss": loss,
                "best_eval_loss": self._plateau.best_loss,
                "best_step": self._plateau.best_step,
            },
            early_stopping=early_stopping_status(self._plateau, state.global_step if stopped else None),
        )


class KeepWeights(TrainerCallback):  # type: ignore[misc]
    """Keep the weights of evaluated steps, or without held-out rows those of every n-th step; weights that nothing has
    changed yet are no candidate."""

    def __init__(self, kept: KeptWeights, history: History) -> None:
        self._kept, self._history = kept, history

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the step if its number is due; the history has it by then."""
        if "loss" in (logs or {}) and self._kept.every and state.global_step % self._kept.every == 0:
            self._add(state.global_step, kwargs["model"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the step if it is one of the best."""
        if state.global_step:
            self._add(state.global_step, kwargs["model"])

    def _add(self, step: int, model: torch.nn.Module) -> None:
        if self._history.first_change() is not None:
            self._kept.add(step, self._history, functools.partial(save_trained, model))


class RemoveRestored(TrainerCallback):  # type: ignore[misc]
    """Remove the files of the checkpoint from which the training resumed, once a step shows that all are read.

    Otherwise a run that resumes needs more scratch space than the one before it, by the size of a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the folder; later steps find none."""
        shutil.rmtree(self._folder, ignore_errors=True)


class SaveCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Request a checkpoint when one is due, and when the training ends because later stages can be interrupted."""

    def __init__(self, checkpoints: Checkpoints, world: World) -> None:
        self._checkpoints, self._world = checkpoints, world

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint if one is due by the first process's clock. It follows logging and evaluation."""
        is_due = self._world.is_first and self._checkpoints.is_due(state.global_step)
        if state.global_step >= state.max_steps or self._world.any_rank(is_due):
            control.should_save = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the library's list of all steps so far: metrics.jsonl has them, and a checkpoint would save it too."""
        state.log_history.clear()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint if early stopping, whose callback runs first, ends the training."""
        if control.should_training_stop:
            control.should_save = True


def early_stopping_status(plateau: Plateau, stopped_at: int | None) -> dict[str, object] | None:
    """Return the state of early stopping, by the status's field names; None if it is off."""
    if plateau.patience is None:
        return None
    status: dict[str, object] = {
        "stopped": stopped_at is not None,
        "best_step": plateau.best_step,
        "evaluations_without_improvement": plateau.without_improvement,
        "patience": plateau.patience,
    }
    return status | ({"stopped_at_step": stopped_at} if stopped_at is not None else {})


def save_trained(model: torch.nn.Module, path: Path) -> None:
    """Write the trained weights to one file; an older one is replaced only when the new one is complete.

    Of a sharded model, all processes gather each weight and the first one writes. An adapter is written by any process
    alone: its sharded base stays as it is, because the next gathering needs the same state in all of them.
    """
    if trains_shards(model):
        reshard(model)
    is_writer = not trains_shards(model) or dist.get_rank() == 0
    tensors = {}
    for name, tensor in trained_tensors(model).items():
        whole = full_tensor(tensor.detach()).contiguous()
        if is_writer:
            tensors[name] = whole
    if not is_writer:
        return
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def restore_trained(model: torch.nn.Module, path: Path) -> None:
    """Load the weights that `save_trained` wrote into the model; those of other modules are an OutputConflict."""
    if trains_shards(model):
        reshard(model)
    saved = load_file(path) if not trains_shards(model) or dist.get_rank() == 0 else None
    trained = trained_tensors(model)
    if saved is not None and (other := saved.keys() ^ trained.keys()):
        raise TrainerError(
            ExitCode.OUTPUT_CONFLICT,
            f"the checkpoint was saved by a trainer that trains other weights of this model, for example {min(other)}: "
            "use the trainer image that saved it, or set checkpoint.resumePolicy Never",
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            load_parameter(parameter, None if saved is None else saved[name])


def build_divergence_error(step: int, what: str, fix: str = "lower hyperparameters.learningRate") -> TrainerError:
    """Return the error for a loss or gradient that is not finite."""
    message = f"{what} is not finite at step {step}: {fix}, or check the data and model"
    return TrainerError(ExitCode.DIVERGED, message)


def _build_skipped_error(step: int, which: str) -> TrainerError:
    fix = "set hyperparameters.precision FP32, or BF16 on a GPU that has it, lower hyperparameters.learningRate"
    return build_divergence_error(step, f"the gradient norm of {which} in FP16", fix)
