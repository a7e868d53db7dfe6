"""The random state of a training process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

from finetune_trainer.distributed.world import World

GPU = "cuda"
"""The key of the GPU's state in a file; the others are the names of the fields."""


@dataclass(frozen=True)
class RandomState:
    """The state of every random generator that a step uses."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    gpu: torch.Tensor | None
    """That of the process's own GPU, if it has one."""

    @classmethod
    def take(cls) -> "RandomState":
        """Return the current state."""
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu)

    def put(self) -> None:
        """Restore the state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpu is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.gpu)

    def write(self, path: Path) -> None:
        """Write the state for `read`."""
        own = {"python": self.python, "numpy": self.numpy, "cpu": self.cpu}
        torch.save(own if self.gpu is None else own | {GPU: self.gpu}, path)

    @classmethod
    def read(cls, path: Path, world: World) -> "RandomState":
        """Read a file that `write` or the library wrote."""
        with safe_globals():  # of numpy
            saved = torch.load(path, weights_only=True)
        gpu = saved.get(GPU)
        if isinstance(gpu, list):  # the library's: of each GPU that the process saw, by the number of its process
            gpu = gpu[world.local_rank] if world.local_rank < len(gpu) else None
        return cls(saved["python"], saved["numpy"], saved["cpu"], gpu)


def random_file(world: World) -> str:
    """Return the name of the file with this process's state in a checkpoint."""
    return "rng_state.pth" if world.size == 1 else f"rng_state_{world.rank}.pth"


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Restore the random state after an evaluation, so that an interrupted evaluation can be repeated on resume."""
    before = RandomState.take()
    try:
        yield
    finally:
        before.put()
