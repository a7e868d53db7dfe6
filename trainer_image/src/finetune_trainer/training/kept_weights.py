"""The weights of the best steps so far, from which `checkpoint.keep` publishes adapters; a checkpoint has them too."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.kept_steps import rank_steps
from finetune_trainer.training.checkpoint_files import WEIGHTS

FOLDER = "kept"
"""Folder in a checkpoint."""
NAME = "step-{:06d}.safetensors"


class KeptWeights:
    """The files of these weights.

    `count` is the number of adapters that are published in addition to the result; 0 keeps nothing. `every` is the
    distance of the steps that are kept without held-out rows; None if evaluated steps are.
    """

    def __init__(self, folder: Path, count: int, every: int | None = None) -> None:
        self.count, self.every = count, every
        self._folder = folder

    def steps(self) -> list[int]:
        """Return the steps that have a file."""
        found = self._folder.glob("step-*.safetensors") if self.count else ()
        return sorted(int(path.stem.removeprefix("step-")) for path in found)

    def path(self, step: int) -> Path:
        """Return the file of a step."""
        return self._folder / NAME.format(step)

    def add(self, step: int, history: History, write: Callable[[Path], None]) -> None:
        """Write the weights of a step if it is one of the best, and remove those that no longer are.

        There is one more than is published, because one of them may become the result.
        """
        if not self.count:
            return
        best = rank_steps({*self.steps(), step}, history)[: self.count + 1]
        if step in best:
            self._folder.mkdir(parents=True, exist_ok=True)
            write(self.path(step))
        for other in set(self.steps()) - set(best):
            self.path(other).unlink()

    def choose(self, result: int, history: History) -> list[int]:
        """Return the steps to publish in addition to that of the result, the best first."""
        return [step for step in rank_steps(self.steps(), history) if step != result][: self.count]

    def link_into(self, checkpoint: Path, others: Iterable[int | None]) -> None:
        """Link the files into a checkpoint, except those of steps whose weights it has under another name."""
        for step in set(self.steps()) - set(others):
            (checkpoint / FOLDER).mkdir(exist_ok=True)
            os.link(self.path(step), checkpoint / FOLDER / NAME.format(step))

    def restore(self, checkpoint: Path | None, steps: Iterable[int], best: Mapping[int | None, Path]) -> None:
        """Copy the files of these steps from a checkpoint, in place of those of an earlier try.

        `best` has the file of the best step; the step of the checkpoint itself is in its own weights.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        if checkpoint is None or not self.count:
            return
        self._folder.mkdir(parents=True)
        for step in steps:
            linked = checkpoint / FOLDER / NAME.format(step)
            source = linked if linked.exists() else best.get(step, checkpoint / WEIGHTS)
            shutil.copyfile(source, self.path(step))


NOTHING_KEPT = KeptWeights(Path(), 0)
