"""One file per training method; each wraps one TRL trainer."""

# ruff: noqa: PLC0415 - a job imports only its own trainer: each takes seconds

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.status import Resolved
from finetune_trainer.tokenization.packing import max_rows_for

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_trainer.rewards.computed import Judge
    from finetune_trainer.training.methods.loop import LoopContext, LoopTrainer


@dataclass(frozen=True, slots=True)
class Traits:
    """The properties in which objectives differ."""

    writes_text: bool = True
    """Whether the model answers prompts; otherwise it has a single score instead of the language head."""
    has_loss: bool = True
    """Whether held-out rows have a loss, which selects the best weights."""


TRAITS = {"RewardModel": Traits(writes_text=False), "RLHF": Traits(has_loss=False)}


def traits_of(objective: str) -> Traits:
    """Return the objective's properties."""
    return TRAITS.get(objective, Traits())


def build_trainer(
    objective: str,
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    settings: Resolved,
    loop: "LoopContext",
    *,
    train: Sequence[Any],
    validation: Sequence[Any],
    scratch: Path,
    judge: "Judge | None" = None,
) -> "LoopTrainer":
    """Return the objective's trainer, ready for `evaluate()` and `train()`. RLHF needs a judge."""
    samples = {"train": train, "validation": validation}
    match objective:
        case "Instruction" | "Chat" | "DomainAdaptation":
            from finetune_trainer.training.methods import sft

            max_rows = max_rows_for(objective)
            return sft.build_trainer(model, tokenizer, settings, loop, **samples, scratch=scratch, max_rows=max_rows)
        case "DPO":
            from finetune_trainer.training.methods import dpo

            return dpo.build_trainer(model, tokenizer, settings, loop, **samples, scratch=scratch)
        case "KTO":
            from finetune_trainer.training.methods import kto

            return kto.build_trainer(model, tokenizer, settings, loop, **samples, scratch=scratch)
        case "RewardModel":
            from finetune_trainer.training.methods import reward

            return reward.build_trainer(model, tokenizer, settings, loop, **samples, scratch=scratch)
        case "RLHF" if judge:
            from finetune_trainer.training.methods import rlhf

            return rlhf.build_trainer(model, tokenizer, settings, loop, **samples, scratch=scratch, judge=judge)
        case _:
            raise NotImplementedError(f"objective {objective}")
