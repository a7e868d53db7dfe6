"""How a training writes its checkpoints, alone or from several processes, and resumes from them."""

import functools
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from typing_extensions import override

from finetune_api.handoff import Artifact, ExitCode
from finetune_trainer.distributed.sharding import load_shards, load_state, save_shards, trains_shards
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.training.callbacks import restore_trained, save_trained
from finetune_trainer.training.checkpoint_files import SAVED_RUN, WEIGHTS, SavedRun, add_best_weights, add_reference
from finetune_trainer.training.checkpoints import OPTIMISER_SHARDS, Checkpoints
from finetune_trainer.training.methods.parts import LoopContext
from finetune_trainer.training.methods.workarounds import load_pages
from finetune_trainer.training.random_state import RandomState, random_file

STOPPED = "stopped"
"""What a process sets in place of its shards, or next to the saved step, if SIGTERM arrived between two tries."""
FAILED = "failed"
"""What the first process sets next to the saved step if it ends."""


class SavingTrainer(Trainer):  # type: ignore[misc]  # the library has no types
    """The part of `LoopTrainer` that saves and restores our own files."""

    _loop: LoopContext
    _saves = 0

    @override
    def _save_checkpoint(self, *_: Any) -> None:
        """Save our own files: the library pickles its arguments and writes weights and a card as for publishing."""
        loop = self._loop
        if not loop.checkpoints:
            return
        if loop.world.size == 1:
            loop.checkpoints.save(self.state.global_step, self._write_checkpoint)
        else:
            self._save_from_all_ranks(loop.checkpoints)
        loop.reporter.set_stage("Training")

    def _save_from_all_ranks(self, checkpoints: Checkpoints) -> None:
        """Save from all processes: each uploads its shards of the optimiser's state, then the first one all the rest.

        The others wait without limit, because an upload may take longer than a collective. The first one always sets
        their key, so that all of them stop together and save again, or none waits for a process that ends.
        """
        world = self._loop.world
        if not checkpoints.is_needed(self.state.global_step):
            return
        scratch = Path(self.args.output_dir) / "shards"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        save_trained(self.model, scratch / WEIGHTS)
        self._save_rng_state(str(scratch))
        states = world.gather_bytes((scratch / random_file(world)).read_bytes())
        if trains_shards(self.model):
            save_shards(self.model, self.optimizer.optimizer, scratch / OPTIMISER_SHARDS)
        self._saves += 1
        name = f"saved/{self._saves}"
        if world.is_first:
            self._save_as_first(checkpoints, name, scratch, states)
        else:
            self._save_as_other(checkpoints, name, scratch)

    def _save_as_first(self, checkpoints: Checkpoints, name: str, scratch: Path, states: Sequence[bytes]) -> None:
        world, on_poll = self._loop.world, self._loop.reporter.beat

        def write(folder: Path) -> None:
            for rank, state in enumerate(states):
                (folder / f"rng_state_{rank}.pth").write_bytes(state)
            os.link(scratch / WEIGHTS, folder / WEIGHTS)
            if trains_shards(self.model):
                (scratch / OPTIMISER_SHARDS).rename(folder / OPTIMISER_SHARDS)
            self._write_state(folder)

        uploaded = [world.wait_key(f"{name}/{rank}", on_poll) for rank in range(1, world.size)]
        ending = FAILED
        try:
            if STOPPED in uploaded:
                require_saved(STOPPED)
            checkpoints.save(self.state.global_step, write, uploaded)
            ending = ""
        except Stopped:
            ending = STOPPED
            raise
        finally:
            world.set_key(name, f"{checkpoints.last_step} {ending}")

    def _save_as_other(self, checkpoints: Checkpoints, name: str, scratch: Path) -> None:
        world = self._loop.world
        try:
            shards = checkpoints.upload_shards(self.state.global_step, scratch)
        except Stopped:
            shards = STOPPED
        world.set_key(f"{name}/{world.rank}", shards)
        saved, _, ending = world.wait_key(name, self._loop.reporter.beat).partition(" ")
        checkpoints.note_saved(int(saved))
        require_saved(ending)

    def _write_checkpoint(self, folder: Path) -> None:
        save_trained(self.model, folder / WEIGHTS)
        self._save_rng_state(str(folder))
        self._write_state(folder)

    def _write_state(self, folder: Path) -> None:
        loop = self._loop
        if trains_shards(self.model):
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)
        else:
            self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        shutil.copyfile(loop.history.path, folder / Artifact.METRICS)
        add_best_weights(folder, loop.best_weights, loop.plateau, self.state.global_step)
        add_reference(folder, loop.reference)
        loop.kept.link_into(folder, (loop.plateau.best_step, self.state.global_step))
        known, seconds = loop.reporter.snapshot().metrics, time.monotonic() - loop.began
        SavedRun(loop.before, known, seconds, loop.kept.steps()).write(folder / SAVED_RUN)

    @override
    def _save_rng_state(self, output_dir: str) -> None:
        """Save the state of this process's own GPU. The library saves those of all that the process sees and restores
        them by their numbers: after an edit of `resources` the process may have a GPU of another number."""
        RandomState.take().write(Path(output_dir) / random_file(self._loop.world))

    @override
    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore what this process saved; another number of processes has no file of this process's name."""
        path = Path(checkpoint or "") / random_file(self._loop.world)
        if checkpoint and path.exists():
            RandomState.read(path, self._loop.world).put()

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, *_: Any) -> None:
        """Restore our own weights: the library reloads an adapter, in another precision."""
        restore_trained(self.model, Path(resume_from_checkpoint) / WEIGHTS)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load this process's part of the saved state, whatever number of processes saved it."""
        shards = Path(checkpoint or "") / OPTIMISER_SHARDS
        is_paged = getattr(self.optimizer.optimizer, "is_paged", False) if checkpoint else False
        if not checkpoint or not (trains_shards(self.model) or shards.is_dir() or is_paged):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load = functools.partial(torch.load, map_location="cpu", weights_only=True, mmap=True)
        if is_paged:
            load_pages(self.optimizer.optimizer, load(Path(checkpoint) / OPTIMIZER_NAME))
        elif shards.is_dir():
            load_shards(self.model, self.optimizer.optimizer, shards)
        else:
            load_state(self.optimizer.optimizer, load(Path(checkpoint) / OPTIMIZER_NAME))
        self.lr_scheduler.load_state_dict(load(Path(checkpoint) / SCHEDULER_NAME))
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate


def require_saved(ending: str) -> None:
    """Stop with another process that could not save; if it is the first one and ends, do not save again."""
    if ending == STOPPED:
        raise Stopped("stopped together with a process that received SIGTERM")
    if ending == FAILED:
        raise TrainerError(ExitCode.PREEMPTED, "the first process could not save the checkpoint, and ended")
