"""A thread that follows `metrics.jsonl` and sends it to one tracker."""

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
    """A later run resumes it."""


class TrackerFault(Exception):  # noqa: N818 - named after the event
    """A tracker failed; the message is one line without a secret."""


@dataclass(frozen=True, slots=True)
class Point:
    """The values of one step."""

    step: int
    values: Mapping[str, float]


class TrackerRun(Protocol):
    """A run in a tracker. All but `abandon` are called on the follower's thread, may block, and raise TrackerFault."""

    name: str

    def open(self) -> None:
        """Find or create the run; called again after a fault."""

    def settings(self, resolved: Resolved) -> None:
        """Send the resolved settings, once after each `open`."""

    def send(self, points: Sequence[Point]) -> None:
        """Send values; the tracker may have some of them already."""

    def close(self, ending: RunEnd, known: Mapping[str, str]) -> None:
        """Send the end, and the URI and digest of the manifest."""

    def abandon(self) -> None:
        """Close everything immediately and finally, from another thread."""


class Follower:
    """Read new lines, send them, and retry after a fault at growing intervals."""

    def __init__(self, run: TrackerRun, path: Path, reporter: Reporter) -> None:
        self._run, self._path, self._reporter = run, path, reporter
        self._known: dict[str, str] = {}
        self._ending: RunEnd | None = None
        self._asked = threading.Event()
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._follow, name=f"tracking-{run.name}", daemon=True)
        self._offset = 0
        self._is_open = self._has_settings = False
        self._failures = 0
        self._is_failing = False

    def start(self) -> None:
        """Begin, without waiting for the tracker."""
        self._thread.start()

    def remember(self, known: Mapping[str, str]) -> None:
        """Store values to send with the end."""
        self._known.update(known)

    def ask_to_end(self, ending: RunEnd) -> None:
        """Request the rest and the end; the first call decides the end."""
        self._ending = self._ending or ending
        self._asked.set()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; return whether the thread has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Stop waiting: unsent values are lost, which is logged and noted."""
        if self._thread.is_alive():
            self._is_abandoned = True
            self._run.abandon()
            logger.warning("%s: the last values were not sent in time", self._run.name)
            self._reporter.set_note(f"{self._run.name} is incomplete: the last values were not sent in time")

    def _follow(self) -> None:
        wait = 0.0
        while True:
            is_last = self._asked.wait(wait)
            try:
                self._send_new()
                if is_last and self._ending:
                    self._run.close(self._ending, self._known)
                    return
            except TrackerFault as fault:
                if self._is_abandoned:
                    return
                self._record_fault(fault)
                wait = min(PAUSE * 2 ** min(self._failures, 6), LONGEST_PAUSE)
                if is_last:
                    return  # no retry at the end: trackers do not delay a job
            except Exception as error:  # noqa: BLE001 - no fault of a tracker may fail the job
                if self._is_abandoned:
                    return
                self._record_fault(TrackerFault(f"{type(error).__name__}: {error}"))
                return
            else:
                self._record_success()
                wait = PAUSE

    def _send_new(self) -> None:
        if not self._is_open:
            self._run.open()
            self._is_open, self._has_settings = True, False
            self._offset = 0  # data sent before the fault may be lost
        resolved = self._reporter.snapshot().resolved
        if resolved and not self._has_settings:
            self._run.settings(resolved)
            self._has_settings = True
        while lines := self._read():
            self._run.send([parse_point(line) for line in lines])
            self._offset += sum(map(len, lines))

    def _read(self) -> list[bytes]:
        """Return the new complete lines; a file that was restarted is read from the start."""
        if not self._path.is_file():
            return []
        if self._path.stat().st_size < self._offset:
            self._offset = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            return [line for line in file.read(READ_AT_ONCE).splitlines(keepends=True) if line.endswith(b"\n")]

    def _record_fault(self, fault: TrackerFault) -> None:
        """Count a fault; log and note the first one in a row."""
        self._failures += 1
        self._is_open = False
        self._reporter.count_tracker_failure()
        if not self._is_failing:
            self._is_failing = True
            logger.warning("%s: %s; the training continues, retrying", self._run.name, fault)
            self._reporter.set_note(f"{self._run.name} is not up to date: {fault}")

    def _record_success(self) -> None:
        if self._is_failing:
            self._is_failing, self._failures = False, 0
            logger.info("%s is reachable again", self._run.name)
            self._reporter.set_note(f"{self._run.name} is reachable again")


def parse_point(line: bytes) -> Point:
    """Parse a line of metrics.jsonl; a list (the values of each group of rows) is no figure of a tracker."""
    values = json.loads(line)
    kind, step = values.pop("kind"), values.pop("step")
    figures = {f"{kind}/{name}": float(value) for name, value in values.items() if not isinstance(value, list)}
    return Point(step, figures)
