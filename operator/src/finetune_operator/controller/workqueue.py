"""A level-triggered work queue with the method names of client-go: one worker per key, repeated adds are merged."""

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
FIRST_DELAY = 0.5
MAX_DELAY = 60.0


class WorkQueue(Generic[K]):
    """Keys to reconcile, now or later. Not thread-safe: for one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._active: set[K] = set()
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()
        self._taken_at = clock()

    def __len__(self) -> int:
        return len(self._due)

    def stalled_for(self) -> float:
        """Return for how many seconds a key has been due while workers took none; a long queue that moves returns 0."""
        waiting = [due for key, due in self._due.items() if key not in self._active]
        return max(0.0, self._clock() - max(min(waiting), self._taken_at)) if waiting else 0.0

    def add(self, key: K) -> None:
        """Schedule the key for now."""
        self.add_after(key, 0.0)

    def add_after(self, key: K, seconds: float) -> None:
        """Schedule the key; the earliest due time wins."""
        due = self._clock() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        self._changed.set()

    def add_rate_limited(self, key: K, at_least: float = 0.0) -> float:
        """Schedule the key after a failure and return the delay: exponential, with jitter and a cap."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        delay: float = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(count, 16))
        delay = max(at_least, delay * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Reset the key's backoff."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Wait for the next due key that no worker holds; release it with `done`."""
        while True:
            key = self._pop_due()
            if key is not None:
                self._active.add(key)
                self._taken_at = self._clock()
                return key
            self._changed.clear()
            try:
                # Not wait_for: on Python 3.11 it makes a task, which kopf cancels when it stops.
                async with asyncio.timeout(self._seconds_to_next()):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """Release the key; if it was added in the meantime, `get` returns it again."""
        self._active.discard(key)
        if key in self._due:
            heapq.heappush(self._heap, (self._due[key], next(self._order), key))
        self._changed.set()

    def _pop_due(self) -> K | None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            # An earlier add replaced this entry, or a worker holds the key: `done` pushes it again.
            if self._due.get(key) == due and key not in self._active:
                del self._due[key]
                return key
        return None

    def _seconds_to_next(self) -> float | None:
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None


async def work(queue: WorkQueue[K], handle: Callable[[K], Awaitable[None]]) -> None:
    """Handle keys forever, as one worker."""
    while True:
        key = await queue.get()
        try:
            await handle(key)
        finally:
            queue.done(key)
