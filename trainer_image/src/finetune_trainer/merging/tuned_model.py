"""A tuned model and its base, loaded to answer: two models, or one whose adapter is switched off for the base."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel

from finetune_api.handoff import ADAPTER_WEIGHTS, ExitCode
from finetune_trainer.errors import TrainerError, one_line
from finetune_trainer.merging.tuned_folder import TunedFolder
from finetune_trainer.models.adapters.factors import WRAPPED
from finetune_trainer.models.files.tensor_files import TensorFiles
from finetune_trainer.models.loading import load_plain


@dataclass(frozen=True)
class Answerer:
    """A model under the name that is shown; `in_use` is entered while it answers."""

    name: str
    model: PreTrainedModel | PeftModel
    in_use: Callable[[], AbstractContextManager[None]] = nullcontext


def load_answerers(tuned: TunedFolder, base: Path | None, dtype: torch.dtype, device: torch.device) -> list[Answerer]:
    """Return the base, which only an adapter needs, and the tuned model."""
    before = load_plain(base, dtype, device) if base else None
    if before is not None and tuned.is_adapter:
        model = load_adapter(before, tuned.weights)
        return [Answerer("base", model, model.disable_adapter), Answerer("tuned", model)]
    after = Answerer("tuned", load_plain(tuned.weights, dtype, device))
    return [after] if before is None else [Answerer("base", before), after]


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Put an adapter on its base; one that leaves out weights or has others is refused, as PEFT only warns of it.

    PEFT saves the base's own weights of embeddings and head, and loads them, with an adapter that targets these.
    """
    try:
        # Without a device PEFT reads the weights onto the GPU, although the base may be on the CPU for lack of room.
        model = PeftModel.from_pretrained(base, str(folder), torch_device=str(base.device))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, KeyError) as error:
        raise _unfit(one_line(str(error).replace(str(folder), "the adapter"), 300)) from error
    with TensorFiles(folder / ADAPTER_WEIGHTS) as files:
        saved = {name: header.shape for name, header in files.headers.items()}
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    own = {name for name, _ in model.named_parameters() if name.endswith(f"{WRAPPED}.weight")}
    other = (saved.keys() - own) ^ state.keys()
    if other:
        raise _unfit(f"{len(other)} weights have no counterpart, for example {min(other)}")
    return model.eval()


def _unfit(why: str) -> TrainerError:
    return TrainerError(
        ExitCode.MODEL_UNAVAILABLE, f"the adapter does not fit the base: {why}: name the base that it was trained on"
    )
