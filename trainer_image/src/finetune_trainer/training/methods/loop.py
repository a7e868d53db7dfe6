"""The training loop of every objective: stopping, a check for NaN, and an evaluation of its own."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import PrinterCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from typing_extensions import override

from finetune_api.comparing.groups import Owners
from finetune_trainer.distributed.sharding import full_tensor
from finetune_trainer.distributed.world import World, unshard
from finetune_trainer.errors import Stopped
from finetune_trainer.evaluation.measurements import Measured, RewardPoint, token_mean
from finetune_trainer.models.adapters.whole_modules import is_inside
from finetune_trainer.models.loading import trained_tensors
from finetune_trainer.training.callbacks import (
    RemoveRestored,
    RequireFiniteLoss,
    SaveCheckpoints,
    build_divergence_error,
)
from finetune_trainer.training.methods.parts import LoopContext
from finetune_trainer.training.methods.saving import SavingTrainer
from finetune_trainer.training.methods.workarounds import (
    cast_forward,
    drop_hooks,
    drop_overrides,
    keep_in_fp32,
    keep_input_hook,
    leave_out_router_logits,
    local_metrics,
    switch_off_dropout,
    use_one_gpu,
    without_router_loss,
)
from finetune_trainer.training.random_state import RandomState, keep_random_state


@dataclass(frozen=True, slots=True)
class MeasuredBatch:
    """One batch of an evaluation: its mean loss with its weight, and other figures, each with its weight."""

    loss: float
    weight: int
    figures: Mapping[str, tuple[float, int]]


class LoopTrainer(SavingTrainer):
    """A mixin in front of a TRL trainer: `class RowTrainer(LoopTrainer, SFTTrainer)`; subclasses define `_weight`.

    `@override` marks the methods of the libraries that are replaced. The stop flag is checked before every batch, also
    in the middle of a step; the state after the previous step is saved then. TRL converts the adapter of a quantised
    model to BF16, whose steps are larger than most updates: the constructor restores it in FP32.
    """

    def __init__(
        self, loop: LoopContext, *, owners: Owners = (), lora_plus_lr_ratio: float | None = None, **arguments: Any
    ) -> None:
        self._loop = loop
        self._owners = owners
        self._lora_plus_lr_ratio = lora_plus_lr_ratio
        use_one_gpu(arguments["args"])
        with keep_in_fp32(arguments["model"]):
            super().__init__(**arguments)
        if getattr(self.args, "disable_dropout", False):
            switch_off_dropout(self.model)
        cast_forward(self.model, self.accelerator)
        keep_input_hook(self.model)
        leave_out_router_logits(self.model)
        self.remove_callback(PrinterCallback)  # standard output belongs to the reporter
        self._random_state = RandomState.take()
        self._finite = RequireFiniteLoss()
        self.callback_handler.callbacks.insert(0, self._finite)  # before others judge the gradients of such a loss
        if loop.checkpoints:
            self.add_callback(SaveCheckpoints(loop.checkpoints, loop.world))

    @override
    def train(self, resume_from_checkpoint: str | None = None, **options: Any) -> Any:
        """Train from the first step or from a checkpoint; after SIGTERM, save the run before it ends."""
        try:
            if resume_from_checkpoint:
                if self._is_finished_at(Path(resume_from_checkpoint)):
                    return None
                self.add_callback(RemoveRestored(Path(resume_from_checkpoint)))
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)
        except Stopped:
            if self.state.global_step and self.optimizer is not None:  # otherwise nothing was trained since the start
                self._random_state.put()
                self._save_checkpoint()
            raise
        finally:
            drop_overrides()
            drop_hooks(self.model)

    def _is_finished_at(self, folder: Path) -> bool:
        """Return whether no step is left; run the evaluation that was due after the checkpoint."""
        loop = self._loop
        self._load_from_checkpoint(str(folder))
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        step, is_last = self.state.global_step, self.state.global_step >= self.state.max_steps
        is_due = self.args.eval_strategy != "no" and (is_last or step % self.args.eval_steps == 0)
        if is_due and not loop.history.has_evaluated(step):
            self.evaluate()
        return is_last or loop.plateau.is_exhausted

    @override
    def create_optimizer(self, *arguments: Any) -> Any:
        """Create the optimiser; with LoRA+ the factors B have a learning rate of their own."""
        if self._lora_plus_lr_ratio is None:
            return super().create_optimizer(*arguments)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = create_loraplus_optimizer(
            self.model,
            kind,
            loraplus_lr_ratio=self._lora_plus_lr_ratio,
            loraplus_lr_embedding=self.args.learning_rate,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        self._give_usual_rate(self.optimizer)
        return self.optimizer

    def _give_usual_rate(self, optimizer: Any) -> None:
        """Move the magnitudes of DoRA, and norms and biases that are trained in full, out of the groups of the factors
        B, where PEFT has every vector."""
        vectors = {name: one for name, one in trained_tensors(self.model).items() if one.dim() == 1}
        whole = {id(one) for name, one in vectors.items() if is_inside(name)}
        others = {id(one) for name, one in vectors.items() if ".lora_B." not in name} - whole
        groups = [group for group in optimizer.param_groups if group["lr"] != self.args.learning_rate]
        for ids, decay in ((whole, 0.0), (others, self.args.weight_decay)):
            moved = [one for group in groups for one in group["params"] if id(one) in ids]
            for group in groups:
                group["params"] = [one for one in group["params"] if id(one) not in ids]
            if moved:
                optimizer.add_param_group({"params": moved, "lr": self.args.learning_rate, "weight_decay": decay})

    @override
    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        """Reduce the gradients of every micro-batch: deferred, each process would hold those of the whole model."""
        return nullcontext()

    @override
    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        """Return the norm of all shards of the gradients, in every process."""
        return full_tensor(super()._clip_grad_norm(model))

    @override
    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return full_tensor(norm) if isinstance(norm, torch.Tensor) else norm

    @override
    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        """Keep the random state at the end of the step: an interrupted next step starts from it."""
        self._random_state = RandomState.take()
        super()._maybe_log_save_evaluate(*arguments, **options)

    @override
    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Train one micro-batch; raise after SIGTERM."""
        self._loop.stop.raise_if_set()
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self._loop.reporter.beat()
        self._finite.add(loss)
        return loss

    @override
    def floating_point_ops(self, inputs: dict[str, torch.Tensor]) -> int:
        """Return 0: it is not reported, and the library would visit every module at every micro-batch."""
        return 0

    @override
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the held-out rows, weighted: the library's loop averages batches regardless of their length."""
        step = self.state.global_step
        self._loop.reporter.set_stage("Evaluating" if step else "Baseline")
        with keep_random_state():
            measured = self.measure()
        self._loop.history.add_evaluation(step, measured)
        return self._report_evaluation({"eval_loss": measured.loss}, measured.figures())

    def _report_evaluation(self, metrics: dict[str, float], figures: Mapping[str, float | None]) -> dict[str, float]:
        """Report the figures of an evaluation to the callbacks, which read `metrics`, and to the reporter."""
        self.log(dict(metrics))
        self._loop.reporter.update(metrics=figures)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.global_step:
            self._loop.reporter.set_stage("Training")
        return metrics

    def measure(self) -> Measured:
        """Return the held-out loss of the current weights."""
        self.model.eval()
        if self._loop.world.size > 1:
            return self._summarize(self._measure_shards(self._loop.world))
        parts: list[MeasuredBatch] = []
        batches = self.get_eval_dataloader()
        for batch in batches:
            self._loop.stop.raise_if_set()
            self._loop.reporter.set_share(len(parts), len(batches))
            parts.append(self._measure_batch(self._prepare_inputs(batch)))
        return self._summarize(parts)

    def measure_again(self, sampled: RewardPoint | None) -> Measured | RewardPoint | None:
        """Return the held-out figures of the current weights; an objective with rewards repeats that measurement."""
        return self.measure()

    def _measure_shards(self, world: World) -> list[MeasuredBatch]:
        """Measure the batches that one process alone would measure, in shards; every process gets all results."""
        rows, size = self.eval_dataset, self.args.per_device_eval_batch_size
        batches = [range(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]
        shares, names = [], []
        rows = self._remove_unused_columns(rows, "evaluation")
        with local_metrics(self.accelerator):
            for batch, _ in world.shard(batches):
                self._loop.stop.raise_if_set()
                self._loop.reporter.beat()
                inputs = self._prepare_inputs(self.data_collator([rows[at] for at in batch]))
                part = self._measure_batch(inputs)
                names = sorted(part.figures)
                numbers = [part.loss, part.weight, *(number for name in names for number in part.figures[name])]
                shares.append(torch.tensor(numbers, dtype=torch.float64))
        found = unshard(world.gather(torch.stack(shares)), len(batches)).tolist()
        return [
            MeasuredBatch(
                loss, int(weight), {name: (rest[2 * at], int(rest[2 * at + 1])) for at, name in enumerate(names)}
            )
            for loss, weight, *rest in found
        ]

    def show(self, samples: Sequence[Any]) -> list[Any]:
        """Return the current model's output for these samples, for the report; some objectives have none."""
        return []

    def _measure_batch(self, inputs: dict[str, torch.Tensor]) -> MeasuredBatch:
        with torch.no_grad(), self.compute_loss_context_manager(), without_router_loss(self):
            loss = float(self.compute_loss(self.model, dict(inputs)))
        if not math.isfinite(loss):
            raise build_divergence_error(self.state.global_step, "the evaluation loss")
        return MeasuredBatch(loss, self._weight(inputs), self._figures(inputs))

    def _summarize(self, parts: Sequence[MeasuredBatch]) -> Measured:
        figures: dict[str, Any] = mean_figures(parts)
        return replace(token_mean([(part.loss, part.weight) for part in parts], self._owners), **figures)

    def _weight(self, inputs: dict[str, torch.Tensor]) -> int:
        """Return the number of trained tokens, pairs or rows that the batch's loss averages."""
        raise NotImplementedError

    def _figures(self, inputs: dict[str, torch.Tensor]) -> dict[str, tuple[float, int]]:
        """Return figures of the batch just measured, by the names of `Measured`, each with its weight.

        All batches of a measurement have the same names; one without the figure gives it a weight of zero.
        """
        return {}

    def _last_figure(self, name: str) -> float:
        """Return TRL's metric of this name for the batch just measured."""
        return float(self._metrics["eval"][name][-1])


def mean_figures(parts: Sequence[MeasuredBatch]) -> dict[str, float]:
    """Return each figure's weighted mean over the batches that have it; none of a figure that no batch has."""
    means = {}
    for name in sorted({name for part in parts for name in part.figures}):
        found = [part.figures[name] for part in parts if name in part.figures]
        if weights := sum(weight for _, weight in found):
            means[name] = sum(value * weight for value, weight in found) / weights
    return means
