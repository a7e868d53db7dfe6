"""One file per training method; each wraps one TRL trainer."""

# ruff: noqa: PLC0415 - a job imports only its own trainer: each takes seconds

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.tokenization.packing import max_rows_for

if TYPE_CHECKING:
    from finetune_trainer.rewards.computed import Judge
    from finetune_trainer.training.methods.loop import LoopTrainer
    from finetune_trainer.training.methods.parts import TrainerParts


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


def build_trainer(objective: str, parts: "TrainerParts", judge: "Judge | None" = None) -> "LoopTrainer":
    """Return the objective's trainer, ready for `evaluate()` and `train()`. RLHF needs a judge."""
    match objective:
        case "Instruction" | "Chat" | "DomainAdaptation":
            from finetune_trainer.training.methods.sft import build_sft_trainer

            return build_sft_trainer(parts, max_rows_for(objective))
        case "DPO":
            from finetune_trainer.training.methods.dpo import build_dpo_trainer

            return build_dpo_trainer(parts)
        case "KTO":
            from finetune_trainer.training.methods.kto import build_kto_trainer

            return build_kto_trainer(parts)
        case "RewardModel":
            from finetune_trainer.training.methods.reward import build_reward_trainer

            return build_reward_trainer(parts)
        case "RLHF" if judge:
            from finetune_trainer.training.methods.rlhf import build_rlhf_trainer

            return build_rlhf_trainer(parts, judge)
        case _:
            raise NotImplementedError(f"objective {objective}")
