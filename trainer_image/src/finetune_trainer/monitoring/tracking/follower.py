"""One thread that follows `metrics.jsonl` and tells one tracker, whatever that takes and however it fails."""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from finetune_api.status import Resolved
from finetune_trainer.monitoring.reporter import Reporter

logger = logging.getLogger(__name__)

PAUSE = 1.0
LONGEST_PAUSE = 60.0
READ_AT_ONCE = 1024 * 1024


class RunEnd(Enum):
    """How a run ends."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """It is to go on in a later run."""


class TrackerFault(Exception):  # noqa: N818 - it says what happened
    """A tracker did not take what it was told; the message is one line without a secret."""


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one step."""

    step: int
    values: Mapping[str, float]


class TrackerRun(Protocol):
    """A run in a tracker. All but `abandon` are called on the follower's thread, may block, and raise TrackerFault."""

    name: str

    def open(self) -> None:
        """Find or make the run; again after a fault."""

    def settings(self, resolved: Resolved) -> None:
        """Tell the settings in use, once after each `open`."""

    def send(self, points: Sequence[Point]) -> None:
        """Tell figures; what the tracker has already may come again."""

    def close(self, ending: RunEnd, known: Mapping[str, str]) -> None:
        """Tell the end, and what to remember of the result."""

    def abandon(self) -> None:
        """Let go of everything at once and for good, from another thread."""


class Follower:
    """Reads what is new, tells it, and tries again after a fault, at growing intervals."""

    def __init__(self, run: TrackerRun, path: Path, reporter: Reporter) -> None:
        self._run, self._path, self._reporter = run, path, reporter
        self._known: dict[str, str] = {}
        self._ending: RunEnd | None = None
        self._asked = threading.Event()
        self._is_left = False
        self._thread = threading.Thread(target=self._follow, name=f"tracking-{run.name}", daemon=True)
        self._offset = 0
        self._is_open = self._has_settings = False
        self._failures = 0
        self._is_away = False

    def start(self) -> None:
        """Begin, without waiting for the tracker."""
        self._thread.start()

    def remember(self, known: Mapping[str, str]) -> None:
        """Words to tell with the end."""
        self._known.update(known)

    def ask_to_end(self, ending: RunEnd) -> None:
        """Tell the rest and end; the first ending stands."""
        self._ending = self._ending or ending
        self._asked.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most that long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def leave(self) -> None:
        """No more waiting: what is still to be told is lost, and said to be."""
        if self._thread.is_alive():
            self._is_left = True
            self._run.abandon()
            logger.warning("%s has not taken everything in time: the rest is left untold", self._run.name)
            self._note(f"{self._run.name} was not told of everything")

    def _follow(self) -> None:
        wait = 0.0
        while True:
            is_last = self._asked.wait(wait)
            try:
                self._tell()
                if is_last and self._ending:
                    self._run.close(self._ending, self._known)
                    return
            except TrackerFault as fault:
                if self._is_left:
                    return
                self._missed(fault)
                wait = min(PAUSE * 2 ** min(self._failures, 6), LONGEST_PAUSE)
                if is_last:
                    return  # there is no second try at the end: a job is not held up
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the tracker's alone
                if self._is_left:
                    return
                self._missed(TrackerFault(f"{type(error).__name__}: {error}"))
                return
            else:
                self._answered()
                wait = PAUSE

    def _tell(self) -> None:
        if not self._is_open:
            self._run.open()
            self._is_open, self._has_settings = True, False
            self._offset = 0  # what was on its way when it broke may not have arrived
        resolved = self._reporter.snapshot().resolved
        if resolved and not self._has_settings:
            self._run.settings(resolved)
            self._has_settings = True
        while lines := self._read():
            self._run.send([parse_point(line) for line in lines])
            self._offset += sum(map(len, lines))

    def _read(self) -> list[bytes]:
        """The whole lines that are new; a file that was begun again is read again."""
        if not self._path.is_file():
            return []
        if self._path.stat().st_size < self._offset:
            self._offset = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            return [line for line in file.read(READ_AT_ONCE).splitlines(keepends=True) if line.endswith(b"\n")]

    def _missed(self, fault: TrackerFault) -> None:
        """The first fault in a row is told, all are counted."""
        self._failures += 1
        self._is_open = False
        self._reporter.count_tracker_failure()
        if not self._is_away:
            self._is_away = True
            logger.warning("%s: %s; the training goes on, and it is tried again", self._run.name, fault)
            self._note(f"{self._run.name} cannot be told: {fault}")

    def _answered(self) -> None:
        if self._is_away:
            self._is_away, self._failures = False, 0
            logger.info("%s is told again", self._run.name)
            self._note(f"{self._run.name} is told again")

    def _note(self, text: str) -> None:
        self._reporter.set_note(text)


def parse_point(line: bytes) -> Point:
    """A line of metrics.jsonl as named figures."""
    values = json.loads(line)
    kind, step = values.pop("kind"), values.pop("step")
    return Point(step, {f"{kind}/{name}": float(value) for name, value in values.items()})
