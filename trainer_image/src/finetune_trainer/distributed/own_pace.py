"""Work that each training process does at its own pace, such as sampling answers; without collectives."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from typing_extensions import override

from finetune_trainer.distributed.world import World
from finetune_trainer.errors import Stopped
from finetune_trainer.sigterm import StopFlag

LOOK_SECONDS = 1.0
"""How often a process that works reads the store of the processes."""
MOVES = "pace/moves"
"""Number of looks of all processes: it stays the same if none of them works."""
FINISHED, STOPPED = "finished", "stopped"


class OwnPace(StopFlag):
    """Blocks of work that end in all processes together: all finish a block, or all are stopped in it.

    The last process to finish, or an earlier SIGTERM in any, decides which, by a key that is set once. The others wait
    as long as any process works, which may be longer than the time-out of a collective; for that time they wait for one
    that does nothing. Two in the same processes have different names.
    """

    def __init__(self, stop: StopFlag, world: World, name: str = "") -> None:
        super().__init__()
        self._stop, self._world, self._name = stop, world, name
        self._blocks = 0
        self._is_working = False
        self._looked = 0.0

    @override
    def is_set(self) -> bool:
        """Return whether a block is stopped; a process that trains alone can be stopped anywhere."""
        if self._world.size == 1:
            return self._stop.is_set()
        if self._is_working and not self._is_set:
            self._is_set = self._stop.is_set()
            if self._is_set:
                self._world.choose(self._key, STOPPED)
            if not self._is_set and time.monotonic() - self._looked > LOOK_SECONDS:
                self._looked = time.monotonic()
                self._world.add(MOVES, 1)
                self._is_set = self._world.find_key(self._key) == STOPPED
        return self._is_set

    @override
    def raise_if_set(self) -> None:
        """Raise `Stopped` if a block is stopped."""
        if self.is_set():
            raise Stopped if self._stop.is_set() else Stopped("stopped together with a pod that received SIGTERM")

    @contextmanager
    def block(self, on_move: Callable[[], None]) -> Iterator[None]:
        """Run the block, and wait until all processes have; one inside another is a part of it.

        `on_move` is called while another process works.
        """
        if self._world.size == 1 or self._is_working:
            yield
            return
        self._blocks += 1
        self._is_working = True
        try:
            yield
        except Stopped:
            self._world.choose(self._key, STOPPED)
            raise
        finally:
            self._is_working = False
        self._wait(on_move)

    @property
    def _key(self) -> str:
        return f"pace/{self._name}/{self._blocks}"

    def _wait(self, on_move: Callable[[], None]) -> None:
        world, moves, since = self._world, -1, time.monotonic()
        if world.add(f"{self._key}/finished", 1) == world.size:
            world.choose(self._key, FINISHED)

        def poll() -> None:
            nonlocal moves, since
            if self._stop.is_set():
                world.choose(self._key, STOPPED)
            found = world.add(MOVES, 0)
            if found != moves:
                moves, since = found, time.monotonic()
                on_move()
            elif time.monotonic() - since > world.timeout_seconds:
                raise RuntimeError("timed out: another process neither works nor ends")

        self._is_set = world.wait_key(self._key, poll) == STOPPED
        self.raise_if_set()
