"""The random state of a training process."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """The state of every random generator that a step uses."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    gpu: list[torch.Tensor]

    @classmethod
    def take(cls) -> "RandomState":
        """Return the current state."""
        gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu)

    def put(self) -> None:
        """Restore the state."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpu:
            torch.cuda.set_rng_state_all(self.gpu)


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Restore the random state after an evaluation, so that an interrupted evaluation can be repeated on resume."""
    before = RandomState.take()
    try:
        yield
    finally:
        before.put()
