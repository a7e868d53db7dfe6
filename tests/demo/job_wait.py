"""Wait for a job for as long as its status changes, not for a fixed time: a slow machine is not a fault."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Status = dict[str, Any]
ENDED = {"Succeeded", "Failed"}
POLL_SECONDS = 2.0
EXPECTED = {
    "Pending": "the operator to accept the job",
    "Preflight": "the checks of storage, model and rows",
    "Queued": "quota of its queue",
    "Starting": "a running pod of the trainer",
    "Training": "the next report of the trainer",
    "Evaluating": "the next report of the trainer",
    "Merging": "the merged model",
    "Publishing": "the published result",
    "Suspended": "its resumption",
}
"""What the job has to reach next, by phase."""


class JobIsStill(Exception):  # noqa: N818 - a state of the job
    """The job's status has not changed for too long."""

    def __init__(self, status: Status, seconds: float, trouble: str) -> None:
        self.status = status
        text = f"no change of the job's status for {seconds / 60:.0f} minutes, while waiting for {expectation(status)}"
        text += f"; last: {summary(status)}"
        super().__init__(f"{text}; its status cannot be read: {trouble}" if trouble else text)


@dataclass
class Stillness:
    """How long a status has been the same."""

    _last: str = ""
    _since: float | None = None

    def seconds(self, status: Status, now: float) -> float:
        """Return for how long the status has not changed."""
        text = json.dumps(status, sort_keys=True)
        if text != self._last or self._since is None:
            self._last, self._since = text, now
        return now - self._since


def wait_for_end(
    read: Callable[[], Status],
    show: Callable[[Status], None],
    still_seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Status:
    """Return the status of a job that has ended; raise JobIsStill if it does not change for `still_seconds`.

    `read` may raise OSError while the API server is away: the last status then counts as unchanged.
    """
    stillness, status, trouble = Stillness(), Status(), ""
    while True:
        try:
            status, trouble = read(), ""
        except OSError as error:
            trouble = str(error)
        show(status)
        if status.get("phase") in ENDED:
            return status
        seconds = stillness.seconds(status, clock())
        if seconds >= still_seconds:
            raise JobIsStill(status, seconds, trouble)
        pause(POLL_SECONDS)


def expectation(status: Status) -> str:
    """Return what the job has to reach next."""
    progress = status.get("progress", {})
    if status.get("phase") == "Training" and progress.get("totalSteps"):
        return f"a step after {progress.get('step', 0)} of {progress['totalSteps']}"
    return EXPECTED.get(status.get("phase", "Pending"), "the end of the job")


def summary(status: Status) -> str:
    """Return phase, reason, message and stage in one line."""
    text = f"phase {status.get('phase', 'Pending')}"
    if status.get("reason"):
        text += f" ({status['reason']})"
    stage = status.get("progress", {}).get("stage")
    text += f", stage {stage}" if stage else ""
    return f"{text}: {status.get('message', 'not seen by the operator yet')}"


def conditions(status: Status) -> list[str]:
    """Return each condition as a line."""
    return [
        f"{one['type']}={one['status']} {one['reason']}: {one.get('message', '')}"
        for one in status.get("conditions", [])
    ]
