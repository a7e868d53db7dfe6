"""The adapters of a training: that of the result, and those of the steps that are kept in addition to it."""

from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel

from finetune_api.handoff import Artifact
from finetune_trainer.evaluation.kept_steps import kept_folder
from finetune_trainer.models.adapters.saved import save_adapter, save_generation_config, save_tokenizer
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.storage.hub.uris import pinned_commit, repo_name
from finetune_trainer.training.callbacks import restore_trained
from finetune_trainer.training.methods.parts import LoopContext

CARD = "README.md"


def save_adapters(inputs: Inputs, model: PeftModel, loop: LoopContext, stop_ids: Sequence[int]) -> None:
    """Write the adapter of the model as it is, then those of the kept steps, whose weights the model has afterwards.

    `stop_ids` are the tokens that end an answer; a reward model has none.
    """
    _save(inputs, model, inputs.result / Artifact.ADAPTER, stop_ids)
    last = loop.history.train[-1].step if loop.history.train else 0
    for step in loop.kept.choose(loop.plateau.best_step or last, loop.history):
        inputs.run.on_work()
        restore_trained(model, loop.kept.path(step))
        folder = inputs.result / kept_folder(step)
        _save(inputs, model, folder, stop_ids, must_change=False)
        (folder / CARD).unlink(missing_ok=True)  # PEFT's, which is an empty form


def _save(inputs: Inputs, model: PeftModel, folder: Path, stop_ids: Sequence[int], *, must_change: bool = True) -> None:
    base = inputs.run.config.spec.model
    save_adapter(model, folder, repo_name(base.uri), pinned_commit(base), must_change=must_change)
    save_tokenizer(inputs.model, folder, inputs.labeler)
    if stop_ids:
        save_generation_config(inputs.model, folder, stop_ids)
