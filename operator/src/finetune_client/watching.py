"""A job's progress as it changes, for `for` and for `async for`.

A watch reports a change at once. It ends after a minute at the latest, and the job is read again: so a lost connection,
an API server that restarted and an expired version (410) are handled in the same way.
"""

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from finetune_client.cluster.client import SLACK_SECONDS, WATCH_SECONDS, Cluster
from finetune_client.cluster.connection import RETRIES, Expired, NoApi, Stop
from finetune_client.cluster.job import Job
from finetune_client.errors import JobDeleted, NotFound, Unreachable, WaitTimeout
from finetune_client.progress import JobProgress

RETRY_SECONDS = 2.0
SHORTEST_SECONDS = 1
"""Of a request: one shorter would fail at a slow API server, also where its answer is that the job has ended."""
_END = object()


class Watch:
    """The progress of one job after each change, until it has ended."""

    def __init__(
        self,
        cluster: Cluster,
        job: Job,
        timeout: float | None = None,
        observe: Callable[[Job], None] = lambda _: None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._cluster, self._job, self._observe = cluster, job, observe
        self._timeout, self._retry_seconds = timeout, retry_seconds

    def __iter__(self) -> Iterator[JobProgress]:
        """Yield the progress now and after each change; the last one has ended."""
        return map(JobProgress.of, self.jobs(Stop()))

    def __aiter__(self) -> AsyncIterator[JobProgress]:
        """Yield the same without blocking the event loop: a thread reads."""
        return self._read_in_thread()

    def jobs(self, stop: Stop) -> Iterator[Job]:
        """Yield the job itself after each change, until it has ended or `stop` is set."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        version = ""
        while not stop.is_set:
            first = self._look(stop, deadline)
            for job in itertools.chain([first], self._changes(first, stop, deadline)):
                found = str(job.raw["metadata"].get("resourceVersion", ""))
                if found != version:
                    version = found
                    self._observe(job)
                    yield job
                if job.has_ended:
                    return

    def _changes(self, job: Job, stop: Stop, deadline: float | None) -> Iterator[Job]:
        """Yield the job after each change, until it has to be read again."""
        left, is_changed = self._seconds_left(deadline), False
        if left <= 0:
            raise self._timed_out("has not ended", "; it runs on")
        seconds = max(SHORTEST_SECONDS, round(min(WATCH_SECONDS, left)))
        slack = SLACK_SECONDS if left > WATCH_SECONDS else SHORTEST_SECONDS
        with contextlib.suppress(Unreachable, Expired):
            for event in self._cluster.watch_job(job, stop, seconds, slack):
                if event["type"] == "DELETED":
                    raise self._deleted()
                if event["type"] not in {"ADDED", "MODIFIED"}:
                    break  # an error, such as an expired version
                is_changed = True
                yield Job.from_object(event["object"])
        if not is_changed:
            self._pause(stop, deadline)

    def _seconds_left(self, deadline: float | None) -> float:
        return math.inf if deadline is None else deadline - time.monotonic()

    def _pause(self, stop: Stop, deadline: float | None) -> None:
        stop.wait(max(0, min(self._retry_seconds, self._seconds_left(deadline))))

    def _timed_out(self, what: str, more: str) -> WaitTimeout:
        return WaitTimeout(
            f"{self._job.name} {what} within {self._timeout:g} seconds{more}",
            "wait longer, or read it again later: its status stays in the cluster",
        )

    def _look(self, stop: Stop, deadline: float | None) -> Job:
        """Return the job as stored now; ask again for a minute, or until the deadline, while the API server is
        unreachable."""
        for attempt in range(RETRIES + 1):
            seconds = None if deadline is None else max(SHORTEST_SECONDS, self._seconds_left(deadline))
            try:
                job = self._cluster.get_job(self._job.name, seconds)
            except Unreachable as error:
                if self._seconds_left(deadline) <= 0:
                    raise self._timed_out("was not seen to end", f": {error.message}") from None
                if attempt == RETRIES or stop.is_set:
                    raise
                self._pause(stop, deadline)
            except NoApi:
                raise
            except NotFound:
                raise self._deleted() from None
            else:
                if job.uid != self._job.uid:
                    raise self._deleted()
                return job
        raise AssertionError  # the last attempt returns or raises

    def _deleted(self) -> JobDeleted:
        return JobDeleted(
            f"{self._job.name} was deleted while it was watched",
            "its files, checkpoints included, stay in storage: the same job, created again, resumes from them",
        )

    async def _read_in_thread(self) -> AsyncIterator[JobProgress]:
        loop, found, stop = asyncio.get_running_loop(), asyncio.Queue[Any](), Stop()

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(found.put_nowait, item)

        def read() -> None:
            try:
                for job in self.jobs(stop):
                    put(JobProgress.of(job))
            except Exception as error:  # noqa: BLE001 - raised where the progress is read
                put(error)
            put(_END)

        threading.Thread(target=read, name=f"watch {self._job.name}", daemon=True).start()
        try:
            while (item := await found.get()) is not _END:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
