"""Work in a thread that is left when it stalls or at SIGTERM: of requests that cannot be interrupted."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from finetune_trainer.errors import StorageUnavailable, TrainerError
from finetune_trainer.sigterm import StopFlag

T = TypeVar("T")


class Left(StorageUnavailable):
    """Raised in the thread: its work is not waited for."""


@dataclass(frozen=True)
class Watch:
    """The limits of the work."""

    name: str
    stop: StopFlag
    on_work: Callable[[], None]
    """Called while the work is under way; may raise to leave it."""
    idle_seconds: float
    poll_seconds: float

    def run(self, work: Callable[[Callable[[], None]], T], stalled: TrainerError, broken: TrainerError) -> T:
        """Return the result of `work`, which gets a function to call whenever a byte moves.

        Raise `stalled` if none does for `idle_seconds`, and `broken` after an error that is not ours, which the thread
        prints.
        """
        moves = _Moves(time.monotonic())
        found: list[T] = []
        failures: list[TrainerError] = []

        def run() -> None:
            try:
                found.append(work(moves.move))
            except TrainerError as error:
                failures.append(error)

        thread = threading.Thread(target=run, name=self.name, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(self.poll_seconds)
                self.on_work()
                self.stop.raise_if_set()
                if thread.is_alive() and time.monotonic() - moves.last > self.idle_seconds:
                    raise stalled
        finally:
            moves.is_left = True
        if failures:
            raise failures[0]
        if not found:
            raise broken
        return found[0]


@dataclass
class _Moves:
    """When the work last moved a byte, and whether it is left."""

    last: float
    is_left: bool = False

    def move(self) -> None:
        """Record that it moves; raise in its thread if it is left."""
        if self.is_left:
            raise Left("the push was left")
        self.last = time.monotonic()
