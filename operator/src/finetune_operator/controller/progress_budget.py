"""When the progress of running jobs is written: at a difference that matters, and about once a second for all jobs."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.objects import Key
from finetune_operator.policy.history import bookkeeping

REPORTED = ("progress", "metrics", "checkpoint", "early_stopping", "resolved", "current_run", "internal")
"""Fields of the status that change with each report of a running trainer."""
WRITES_PER_SECOND = 1.0
STALE_SECONDS = 30.0
"""After this time a smaller difference is written too."""
PERCENT = 0.01


def is_only_progress(old: FineTuneJobStatus, new: FineTuneJobStatus) -> bool:
    """Return whether a change is nothing but the next report of a running trainer."""
    differing = {name for name in type(new).model_fields if getattr(old, name) != getattr(new, name)}
    if not differing <= set(REPORTED) or old.current_run is None or new.current_run is None:
        return False
    moved = {"last_moved_time": None}
    is_same_run = old.current_run.model_copy(update=moved) == new.current_run.model_copy(update=moved)
    beat = {"heartbeat": None}
    is_same_record = bookkeeping.read(old).model_copy(update=beat) == bookkeeping.read(new).model_copy(update=beat)
    return is_same_run and is_same_record and new.current_run.last_moved_time is not None


def seconds_to_news(old: FineTuneJobStatus, new: FineTuneJobStatus, now: datetime) -> float:
    """Return the seconds after which a difference in progress is worth a write; 0 for a large one."""
    before, after = old.progress, new.progress
    if before is None or after is None or before.last_updated_time is None:
        return 0.0
    steps = (after.step or 0) - (before.step or 0)
    is_large = steps < 0 or (steps > 0 and steps >= PERCENT * (after.total_steps or 0))
    if is_large or after.stage != before.stage or new.checkpoint != old.checkpoint:
        return 0.0
    age = (now - before.last_updated_time).total_seconds()
    return max(0.0, STALE_SECONDS - age) if age >= 0 else 0.0  # else the clock was set back


class ProgressBudget:
    """Slots for writes of progress, one after another: a job that must wait gets the next one of its namespace, and
    namespaces take turns, whatever their numbers of jobs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free_at = 0.0
        self._slots: dict[Key, float] = {}

    def wait(self, key: Key) -> float:
        """Return the seconds until the job's slot, which it keeps; 0 if it writes now."""
        now = self._clock()
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = max(now, self._free_at) + self._count_before(key, now) / WRITES_PER_SECOND
        if slot > now:
            return slot - now
        del self._slots[key]
        self._free_at = now + 1 / WRITES_PER_SECOND
        return 0.0

    def _count_before(self, key: Key, now: float) -> int:
        """Return how many slots come before the next one of the job's namespace, which gets one in each turn."""
        waiting = Counter(other.namespace for other, at in self._slots.items() if at >= now)
        turn = waiting.pop(key.namespace, 0)
        return turn + sum(min(count, turn + 1) for count in waiting.values())

    def forget(self, key: Key) -> None:
        """Give back the slot of a job that has ended or is deleted."""
        self._slots.pop(key, None)
