"""What the trainer of every objective is built from."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.comparing.groups import count_groups
from finetune_api.hyperparameters import Schedule
from finetune_api.objectives import SMALLEST_KTO_BATCH
from finetune_api.status import Resolved
from finetune_trainer.distributed.own_pace import OwnPace
from finetune_trainer.distributed.world import ALONE, AgreedStop, World
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.models.loading import NON_REENTRANT
from finetune_trainer.monitoring.reporter import Reporter, work_beat
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.tokenization.sample_table import find_owners, prompts_of
from finetune_trainer.training.callbacks import (
    KeepBest,
    KeepWeights,
    ReportProgress,
    RequireGradient,
)
from finetune_trainer.training.checkpoint_files import (
    BaselineOutputs,
)
from finetune_trainer.training.checkpoints import Checkpoints
from finetune_trainer.training.kept_weights import NOTHING_KEPT, KeptWeights

COMPARED_GROUPS = 30
POLYNOMIAL_END = 1e-7
"""The library's lowest rate of schedule `polynomial`; it refuses a peak that is not above it."""
HIGHEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class LoopContext:
    """The objects that a training loop works with."""

    reporter: Reporter
    stop: StopFlag
    history: History
    plateau: Plateau
    best_weights: Path
    checkpoints: Checkpoints | None = None
    """None if the run is not saved."""
    reference: Path | None = None
    """File of the reference's log-probabilities, which DPO and KTO read if it exists, and write."""
    before: BaselineOutputs = field(default_factory=BaselineOutputs)
    world: World = ALONE
    """The processes that train together."""
    kept: KeptWeights = NOTHING_KEPT
    """The weights of other steps to publish."""
    began: float = field(default_factory=time.monotonic)
    """Start of the run on the clock of `time.monotonic`, minus the duration of the runs that it resumes."""
    name: str = "training"
    """Prefix of this loop's keys in the store of the processes, which may have several loops one after the other."""

    @property
    def on_work(self) -> Callable[[], None]:
        """A callback for each piece of work; it counts a heartbeat and raises `Stopped` in all processes together."""
        return work_beat(self.reporter, self.stop)

    @cached_property
    def pace(self) -> OwnPace:
        """Work that each process does at its own pace."""
        return OwnPace(self.stop.own if isinstance(self.stop, AgreedStop) else self.stop, self.world, self.name)

    @property
    def on_own_work(self) -> Callable[[], None]:
        """A callback for each piece of work that a process does at its own pace; it stops nothing between blocks."""
        return work_beat(self.reporter, self.pace)


@dataclass(frozen=True)
class Teacher:
    """The model that a student learns from."""

    model: PreTrainedModel
    stop_id: int
    """The token that ends an answer in the chat template."""
    answers: Path
    """File of its answers to the held-out prompts, which is read if it exists, and written."""


@dataclass(frozen=True)
class TrainerParts:
    """What the trainer of every objective is built from."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    settings: Resolved
    loop: LoopContext
    train: Sequence[Any]
    validation: Sequence[Any]
    scratch: Path

    def trainer_arguments(self, train_dataset: Dataset, to_dataset: Callable[[Any], Dataset]) -> dict[str, Any]:
        """Return the arguments of a trainer except its `args`; `to_dataset` converts the held-out rows, if any."""
        return {
            "loop": self.loop,
            "lora_plus_lr_ratio": self.settings.lora_plus_lr_ratio,
            "owners": find_owners(self.validation),
            "model": self.model,
            "train_dataset": train_dataset,
            "eval_dataset": to_dataset(self.validation) if self.validation else None,
            "processing_class": self.tokenizer,
            "callbacks": [
                ReportProgress(self.loop.reporter, self.loop.history, self.loop.world, rows=len(train_dataset)),
                KeepBest(self.loop.plateau, self.loop.best_weights, self.loop.reporter, self.loop.history),
                RequireGradient(self.loop.world),
                KeepWeights(self.loop.kept, self.loop.history),
            ],
        }

    def library_settings(self) -> dict[str, Any]:
        """Return our settings under the library's names, with its own saving and reporting off."""
        settings = self.settings
        warmup = settings.warmup_steps or 0.0
        known = {
            "output_dir": str(self.scratch),
            "max_steps": settings.total_steps,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": settings.lr_scheduler_type,
            "warmup_steps": warmup if warmup < 1 else int(warmup),
            "lr_scheduler_kwargs": schedule_arguments(settings),
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "optim": settings.optim,
            "adam_beta1": settings.adam_beta1,
            "adam_beta2": settings.adam_beta2,
            "adam_epsilon": settings.adam_epsilon,
            "neftune_noise_alpha": settings.neftune_noise_alpha,
            "per_device_train_batch_size": settings.per_device_train_batch_size,
            "per_device_eval_batch_size": eval_batch_size(prompts_of(self.validation), settings),
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "activation_checkpointing": bool(settings.gradient_checkpointing),
            "activation_checkpointing_kwargs": dict(NON_REENTRANT),
            "bf16": settings.precision == "BF16",
            "fp16": settings.precision == "FP16",
            "use_cpu": self.model.device.type == "cpu",
            # TRL adds the process's number to it before it samples.
            "seed": None if settings.seed is None else min(settings.seed, HIGHEST_SEED - self.loop.world.size + 1),
            "data_seed": settings.seed,
            "eval_strategy": "steps" if self.validation else "no",
            "eval_steps": settings.eval_steps,
            "prediction_loss_only": True,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": "none",
            "ddp_find_unused_parameters": False,
            "disable_tqdm": True,
        }
        return {name: value for name, value in known.items() if value is not None}  # without steps most are open


def schedule_arguments(settings: Resolved) -> dict[str, Any] | None:
    """Return the schedule's own arguments under the library's names, which differ between its schedules."""
    match settings.lr_scheduler_type:
        case Schedule.COSINE_WITH_MIN_LR:
            return {"min_lr_rate": settings.min_lr_ratio}
        case Schedule.WARMUP_STABLE_DECAY:
            return {"num_decay_steps": settings.decay_steps, "min_lr_ratio": settings.min_lr_ratio}
        case Schedule.POLYNOMIAL if (settings.learning_rate or 1.0) <= POLYNOMIAL_END:
            return {"lr_end": 0.0}
        case _:
            return None


def eval_batch_size(prompts: Sequence[int], settings: Resolved) -> int:
    """Return the number of held-out samples, with these prompts, that are measured together: the largest with which
    `COMPARED_GROUPS` groups or more share no prompt, where there are prompts enough. From their differences the verdict
    takes its interval.

    KTO's loss has a divergence over each batch: it must not depend on how many rows fit a GPU or on the number of GPUs.
    """
    if settings.desirable_weight is not None:
        return SMALLEST_KTO_BATCH
    most = min(settings.per_device_train_batch_size or 1, len(prompts) // COMPARED_GROUPS)
    wanted = min(COMPARED_GROUPS, len(set(prompts)))
    return next((size for size in range(most, 1, -1) if count_groups(size, prompts) >= wanted), 1)
