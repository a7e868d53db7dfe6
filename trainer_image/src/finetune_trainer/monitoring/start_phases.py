"""How long a process takes until its work begins, phase by phase, by the clock and by the processor."""

import gc
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)


class Moment(NamedTuple):
    """Seconds by the clock and of this process by the processor."""

    clock: float
    processor: float

    def since(self, earlier: "Moment") -> "Moment":
        """Return the time from the earlier moment to this one."""
        return Moment(self.clock - earlier.clock, self.processor - earlier.processor)


class StartPhases:
    """The phases that have ended since the process began, or since the last summary."""

    def __init__(self) -> None:
        self._began = self._last = Moment(time.monotonic() - _process_age(), 0.0)
        self._phases: dict[str, Moment] = {}

    def end(self, name: str) -> None:
        """End a phase, which began with the end of the one before; one that is repeated is added up."""
        now = Moment(time.monotonic(), time.process_time())
        took, before = now.since(self._last), self._phases.get(name, Moment(0.0, 0.0))
        self._phases[name] = Moment(before.clock + took.clock, before.processor + took.processor)
        self._last = now

    @contextmanager
    def libraries(self) -> Iterator[None]:
        """Import libraries in the block, which is a phase; without garbage collection, because what an import makes
        stays, and each collection would look at all of it."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()
            self.end("libraries")

    def log(self, what: str) -> None:
        """Log the time and its phases, then forget them; without a phase since the last summary, do nothing."""
        if not self._phases:
            return
        total = self._last.since(self._began)
        phases = ", ".join(f"{name} {took.clock:.1f} ({took.processor:.1f})" for name, took in self._phases.items())
        logger.info("%s after %.1f s (%.1f s of processor time): %s", what, *total, phases)
        self._began, self._phases = self._last, {}


def _process_age() -> float:
    """Return the seconds since this process began; where the kernel does not state it, those of its processor time."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.process_time()
