"""SIGTERM as a flag. Imports nothing heavy: the handler is installed before slow imports."""

import signal
from types import FrameType


class StopFlag:
    """Set once, by the signal; the training loop and every long transfer check it."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Ask the process to stop. A plain attribute: taking a lock in a signal handler could deadlock."""
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether the process was asked to stop."""
        return self._is_set

    def raise_if_set(self) -> None:
        """Raise `Stopped` if the process was asked to stop."""
        if self._is_set:
            from finetune_trainer.errors import Stopped  # noqa: PLC0415 - pydantic must not load before the handler

            raise Stopped


def install() -> StopFlag:
    """Make SIGTERM set the returned flag; without a handler, PID 1 would ignore the signal."""
    flag = StopFlag()

    def on_sigterm(_signal: int, _frame: FrameType | None) -> None:
        flag.set()

    signal.signal(signal.SIGTERM, on_sigterm)
    return flag
