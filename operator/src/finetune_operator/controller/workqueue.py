"""A level-triggered work queue with the method names of client-go, shared fairly between namespaces."""

import asyncio
import heapq
import itertools
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

from finetune_operator.kube.objects import Key

FIRST_DELAY = 0.5
MAX_DELAY = 60.0
CONFLICT_DELAY = 0.1
CONFLICTS = 3
"""From this conflict on, a second writer is likely, and each retry would only cause the next one."""
MAX_STALE = 1000
"""Superseded entries of the heap that are kept; more are removed when they outnumber the others."""


class WorkQueue:
    """Keys to reconcile, now or later: one worker per key, repeated adds are merged. Not thread-safe.

    Namespaces with due keys take turns, one key each. A namespace gets a further worker only while it holds fewer than
    are free: one whose reconciles are slow gets at most half of them, and the next one half of the rest.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._due: dict[Key, float] = {}
        self._later: list[tuple[float, int, Key]] = []
        """A heap. An entry counts only while it has the key's time in `_due`."""
        self._order = itertools.count()
        self._first: set[Key] = set()
        self._ready: OrderedDict[str, OrderedDict[Key, None]] = OrderedDict()
        """Due keys by namespace, in the order of their time; the namespace whose turn is next comes first."""
        self._active: set[Key] = set()
        self._held: Counter[str] = Counter()
        """Workers by namespace."""
        self._failures: dict[Key, int] = {}
        self._conflicts: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self._taken_at = clock()

    def __len__(self) -> int:
        return len(self._due)

    def stalled_for(self) -> float:
        """Return for how many seconds a key has been due while workers took none; a long queue that moves returns 0."""
        waiting = [due for key, due in self._due.items() if key not in self._active]
        return max(0.0, self._clock() - max(min(waiting), self._taken_at)) if waiting else 0.0

    def is_idle(self) -> bool:
        """Return whether no key is due or held by a worker."""
        self._collect_due()
        return not (self._ready or self._active)

    def add(self, key: Key, *, is_first: bool = False) -> None:
        """Schedule the key for now, unless a second writer is likely: its writes would end the backoff.

        Of the due keys of a namespace, those that come first are returned before the others.
        """
        if is_first:
            self._first.add(key)
            if key in self._ready.get(key.namespace, {}):
                self._ready[key.namespace].move_to_end(key, last=False)
        if key not in self._due or self._conflicts.get(key, 0) < CONFLICTS:
            self.add_after(key, 0.0)

    def add_after(self, key: Key, seconds: float) -> None:
        """Schedule the key; the earliest due time wins."""
        due = self._clock() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._push(key)

    def add_rate_limited(self, key: Key, at_least: float = 0.0) -> float:
        """Schedule the key after a failure and return the delay: exponential, with jitter and a cap."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay: float = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(count, 16))
        delay = max(at_least, delay * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
        self.add_after(key, delay)
        return delay

    def add_conflicted(self, key: Key) -> float:
        """Schedule the key after a conflicting write and return the delay: soon, but with backoff from the third on."""
        count = self._conflicts[key] = self._conflicts.get(key, 0) + 1
        delay = CONFLICT_DELAY
        if count >= CONFLICTS:
            delay = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(count - CONFLICTS, 16))
            self._due.pop(key, None)  # the event of the other client's write
        self.add_after(key, delay)
        return delay

    def has_failed(self, key: Key) -> bool:
        """Return whether the last reconcile of the key failed."""
        return key in self._failures

    def forget(self, key: Key) -> None:
        """Reset the key's backoff."""
        self._failures.pop(key, None)
        self._conflicts.pop(key, None)

    async def get(self) -> Key:
        """Wait for the next due key that no worker holds; release it with `done`."""
        while True:
            key = self._pop_due()
            if key is not None:
                return key
            self._changed.clear()
            try:
                # Not wait_for: on Python 3.11 it makes a task, which kopf cancels when it stops.
                async with asyncio.timeout(self._seconds_to_next()):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """Release the key; if it was added in the meantime, `get` returns it again."""
        self._active.discard(key)
        self._held[key.namespace] -= 1
        if not self._held[key.namespace]:
            del self._held[key.namespace]
        if key in self._due:
            self._push(key)
        self._changed.set()

    def _push(self, key: Key) -> None:
        heapq.heappush(self._later, (self._due[key], next(self._order), key))
        if len(self._later) > 2 * len(self._due) + MAX_STALE:
            self._later = [entry for entry in self._later if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._later)
        self._changed.set()

    def _pop_due(self) -> Key | None:
        self._collect_due()
        free = self._workers - len(self._active)
        for namespace, keys in self._ready.items():
            if self._held[namespace] < free:
                key = next(iter(keys))
                del keys[key], self._due[key]
                self._first.discard(key)
                if keys:
                    self._ready.move_to_end(namespace)
                else:
                    del self._ready[namespace]
                self._active.add(key)
                self._held[namespace] += 1
                self._taken_at = self._clock()
                return key
        return None

    def _collect_due(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            # An earlier add replaced this entry, or a worker holds the key: `done` pushes it again.
            if self._due.get(key) == due and key not in self._active:
                keys = self._ready.setdefault(key.namespace, OrderedDict())
                keys[key] = None
                if key in self._first:
                    keys.move_to_end(key, last=False)

    def _seconds_to_next(self) -> float | None:
        return max(0.0, self._later[0][0] - self._clock()) if self._later else None


async def work(queue: WorkQueue, handle: Callable[[Key], Awaitable[None]]) -> None:
    """Handle keys forever, as one worker."""
    while True:
        key = await queue.get()
        try:
            await handle(key)
        finally:
            queue.done(key)
