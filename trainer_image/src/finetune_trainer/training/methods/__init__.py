"""One file per training method; each wraps one TRL trainer."""

# ruff: noqa: PLC0415 - a job imports only its own trainer: each takes seconds

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from finetune_trainer.rewards.rollouts import set_engine_variables
from finetune_trainer.tokenization.packing import max_rows_for

if TYPE_CHECKING:
    from finetune_trainer.rewards.computed import Judge
    from finetune_trainer.training.methods.loop import LoopTrainer
    from finetune_trainer.training.methods.parts import Teacher, TrainerParts


@dataclass(frozen=True, slots=True)
class Traits:
    """The properties in which objectives differ."""

    writes_text: bool = True
    """Whether the model answers prompts; otherwise it has a single score instead of the language head."""
    has_loss: bool = True
    """Whether held-out rows have a loss, which selects the best weights."""
    is_flattened: bool = False
    """Whether the rows of a batch can be joined without padding, for flash kernels."""


_SUPERVISED = Traits(is_flattened=True)
TRAITS = {
    "Instruction": _SUPERVISED,
    "Chat": _SUPERVISED,
    "DomainAdaptation": _SUPERVISED,
    "RewardModel": Traits(writes_text=False),
    "RLHF": Traits(has_loss=False),
}


def traits_of(objective: str) -> Traits:
    """Return the objective's properties."""
    return TRAITS.get(objective, Traits())


def build_trainer(
    objective: str, parts: "TrainerParts", judge: "Judge | None" = None, teacher: "Teacher | None" = None
) -> "LoopTrainer":
    """Return the objective's trainer, ready for `evaluate()` and `train()`. RLHF needs a judge, Distillation a
    teacher."""
    # TRL imports wandb if it is installed, which takes longer than PyTorch: for this process it is not. Another one
    # sends to Weights & Biases. None is Python's own mark of a module that cannot be imported.
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]
    if parts.settings.rollouts_gpu_memory_fraction is None:
        sys.modules.setdefault("vllm", None)  # type: ignore[arg-type]  # the same
    else:
        set_engine_variables(parts.scratch)
    build: Callable[[TrainerParts], LoopTrainer]
    with parts.loop.reporter.start.libraries():
        match objective:
            case "Instruction" | "Chat" | "DomainAdaptation":
                from finetune_trainer.training.methods.sft import build_sft_trainer

                build = partial(build_sft_trainer, max_rows=max_rows_for(objective))
            case "DPO":
                from finetune_trainer.training.methods.dpo import build_dpo_trainer

                build = build_dpo_trainer
            case "KTO":
                from finetune_trainer.training.methods.kto import build_kto_trainer

                build = build_kto_trainer
            case "RewardModel":
                from finetune_trainer.training.methods.reward import build_reward_trainer

                build = build_reward_trainer
            case "RLHF" if judge:
                from finetune_trainer.training.methods.rlhf import build_rlhf_trainer

                build = partial(build_rlhf_trainer, judge=judge)
            case "Distillation" if teacher:
                from finetune_trainer.training.methods.distillation import build_distillation_trainer

                build = partial(build_distillation_trainer, teacher=teacher)
            case _:
                raise NotImplementedError(f"objective {objective}")
    return build(parts)
