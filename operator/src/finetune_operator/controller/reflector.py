"""Lists and watches the objects of one kind, with kopf's client, into the store."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Literal, Protocol

import aiohttp
import kopf
import orjson

# kopf's public handlers get neither the end of a list nor what it no longer contains, and kopf keeps memory of every
# object that it passes to them, also of the Workloads of others: decisions/0042.
from kopf._cogs.clients.errors import APIError
from kopf._cogs.clients.watching import Bookmark, WatchingError, continuous_watch, watch_objs
from kopf._cogs.structs.references import NamespaceName, Resource

from finetune_api import names
from finetune_operator.controller.mirror import Listing
from finetune_operator.controller.store import Kind
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.kube.errors import ClusterError, Denied, RetryLater, error_from

log = logging.getLogger(__name__)
Watched = Kind | Literal["finetunereleases"]
GROUPS: dict[Watched, tuple[str, str]] = {
    "finetunejobs": (names.GROUP, names.VERSION),
    "finetunereleases": (names.GROUP, names.VERSION),
    "jobs": ("batch", "v1"),
    "pods": ("", "v1"),
    "workloads": (names.KUEUE_GROUP, names.KUEUE_VERSIONS[0]),
}
"""Group of each kind, and its version unless another one was found."""
LIST_ENDS = "k8s.io/initial-events-end"
"""Annotation of the bookmark after the last object of a streamed list."""
FIRST_PAUSE, MAX_PAUSE = 0.5, 30.0
"""Seconds between a list or watch that failed and the next list."""
SHORTEST_WATCH = 1.0
"""Seconds; the API server ends a watch after minutes, so a shorter one without an event was cut off."""
REPORT_SECONDS = 10.0
"""An API server that has just started denies everything until it has read the roles."""


class Receiver(Protocol):
    """What takes the objects that are delivered, as the intake of jobs does."""

    def begin_listing(self, kind: Any, namespace: str | None) -> Listing:
        """Begin a list of all objects of a kind."""

    def end_listing(self, kind: Any, listing: Listing, *, is_complete: bool) -> None:
        """End a list."""

    def put(self, kind: Any, obj: dict[str, Any]) -> None:
        """Take a new or changed object."""

    def remove(self, kind: Any, obj: dict[str, Any]) -> None:
        """Remove a deleted object."""

    def queue_open_jobs(self, within_seconds: float = 0.0) -> None:
        """Queue every job that is not finished."""

    def report_problem(self, kind: Any, problem: ClusterError, namespace: str | None = None) -> None:
        """Record why a kind cannot be listed."""


class Reflector:
    """Keeps the objects of one kind in a namespace, or in all. It lists them again periodically and after a gap."""

    def __init__(
        self,
        kind: Watched,
        namespace: str | None,
        intake: Receiver,
        cache: WatchCache,
        settings: kopf.OperatorSettings,
        *,
        resync_seconds: float,
        version: str = "",
    ) -> None:
        self.kind = kind
        group, usual = GROUPS[kind]
        self._resource = Resource(group, version or usual, kind, namespaced=True)
        self._namespace = namespace
        self._intake = intake
        self._cache = cache
        self._settings = settings
        self._resync_seconds = resync_seconds
        self._failures = 0
        self._failing_since: float | None = None
        self._unreadable: set[str] = set()
        """UIDs of the objects that were skipped, so that each is logged once."""
        self.is_listed = asyncio.Event()
        """Set once all objects were listed, or cannot be."""

    async def run(self) -> None:
        """List and watch until the task is cancelled, or until Kueue or the version of its API is no longer served."""
        while True:
            try:
                async with asyncio.timeout(None) as limit:
                    await self._follow(limit)
            except TimeoutError as problem:
                if limit.expired():
                    continue
                self._report(problem)
            except (APIError, WatchingError, aiohttp.ClientError, OSError) as problem:
                watching, status = self._settings.watching, getattr(problem, "status", 0)
                if watching.initial_streaming and status == HTTPStatus.UNPROCESSABLE_ENTITY:
                    watching.initial_streaming = False  # Kubernetes before 1.34, or without its feature WatchList
                    continue
                if self.kind == "workloads" and status == HTTPStatus.NOT_FOUND and self.is_listed.is_set():
                    log.warning("%s are no longer served as %s", self._where, self._resource.version)
                    return
                self._report(problem)
            except Exception:  # an unexpected error of one watch must not end the process
                log.exception("watching %s failed", self._where)
            await asyncio.sleep(self._pause())
            self._failures += 1  # until the watch has delivered something

    async def _follow(self, limit: asyncio.Timeout) -> None:
        """List, then watch until the limit, or until the watch has to begin with a list again."""
        about: dict[str, Any] = {
            "settings": self._settings,
            "resource": self._resource,
            "namespace": NamespaceName(self._namespace) if self._namespace else None,
            "operator_pause_waiter": asyncio.get_running_loop().create_future(),
        }
        streams_lists = self._settings.watching.initial_streaming
        stream = stream_objects(about) if streams_lists else continuous_watch(**about)
        listing: Listing | None = self._intake.begin_listing(self.kind, self._namespace)
        try:
            async with aclosing(stream):  # type: ignore[type-var]
                async for item in stream:
                    if item is Bookmark.LISTED and listing:
                        self._end_listing(listing)
                        listing = None
                        # Of many operators and kinds, not all list in the same second.
                        seconds = self._resync_seconds * random.uniform(0.9, 1.1)  # noqa: S311
                        limit.reschedule(asyncio.get_running_loop().time() + seconds)
                    elif isinstance(item, dict):
                        self._failures = self._failures if listing else 0
                        self._take(item["type"], dict(item["object"]), listing)
        finally:
            if listing:
                self._intake.end_listing(self.kind, listing, is_complete=False)

    def _end_listing(self, listing: Listing) -> None:
        self._intake.end_listing(self.kind, listing, is_complete=True)
        self._failing_since = None
        self._unreadable &= listing.seen
        self.is_listed.set()
        if self.kind == names.PLURAL:
            self._intake.queue_open_jobs(min(self._resync_seconds, 60.0))

    def _take(self, kind_of_event: str | None, obj: dict[str, Any], listing: Listing | None) -> None:
        """Pass an object on. One that cannot be read must not end the watch of all others: its last state stays."""
        if kind_of_event == "BOOKMARK":
            return
        if listing is None:  # a list comes whether the watch delivers or not
            self._cache.record_event(self.kind)
        meta = obj["metadata"]
        try:
            if kind_of_event == "DELETED":
                self._intake.remove(self.kind, obj)
            else:
                self._intake.put(self.kind, obj)
            self._unreadable.discard(meta["uid"])
        except Exception:
            if listing:
                listing.seen.add(meta["uid"])
            if meta["uid"] not in self._unreadable:
                self._unreadable.add(meta["uid"])
                name = f"{meta.get('namespace')}/{meta['name']}"
                log.warning("skipped %s of %s, which cannot be read", name, self._where, exc_info=True)

    def _report(self, problem: Exception) -> None:
        """Record what only a user can change, and that Workloads cannot be listed; jobs are served without them."""
        log.warning("cannot watch %s: %s", self._where, problem)
        found = _typed(problem, self._resource, self._namespace)
        now = asyncio.get_running_loop().time()
        self._failing_since = self._failing_since or now
        if now - self._failing_since < REPORT_SECONDS:
            return
        if self.kind == names.PLURAL:
            if isinstance(found, Denied):
                self.is_listed.set()  # the jobs of other namespaces are served
            return
        if not isinstance(found, RetryLater) or (self.kind == "workloads" and not self.is_listed.is_set()):
            self._intake.report_problem(self.kind, found, self._namespace)
            self.is_listed.set()

    def _pause(self) -> float:
        most = min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures, 10))
        return most * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, not a secret

    @property
    def _where(self) -> str:
        return f"{self.kind} in {self._namespace or 'all namespaces'}"


async def stream_objects(about: dict[str, Any]) -> AsyncIterator[Bookmark | dict[str, Any]]:
    """Yield all objects, `Bookmark.LISTED`, and then what changes, from watches alone: a list is never whole in memory.

    Ends where a list has to begin again. kopf's own generator takes a watch that breaks within the list for its end.
    Raises WatchingError where something closes each watch at once, so that the next one waits, as client-go does.
    """
    version, is_listed = None, False
    clock = asyncio.get_running_loop().time
    while True:
        began, is_silent = clock(), True
        async with aclosing(watch_objs(**about, since=version)) as events:  # type: ignore[type-var]
            async for event in events:
                obj, is_silent = event["object"], False
                if event["type"] == "ERROR":
                    if obj.get("code") == HTTPStatus.GONE:
                        return
                    raise WatchingError(f"the watch ended with an error: {obj}")
                if not is_listed and LIST_ENDS in (obj["metadata"].get("annotations") or {}):
                    is_listed = True
                    yield Bookmark.LISTED
                version = obj["metadata"]["resourceVersion"]
                yield dict(event)
        if not is_listed:
            return
        if is_silent and clock() - began < SHORTEST_WATCH:
            raise WatchingError("the watch was closed at once: is a proxy with a limit before the API server?")


def _typed(problem: Exception, resource: Resource, namespace: str | None) -> ClusterError:
    """Return the error as the cluster's client raises it; one that is not an answer of the API server is retried."""
    if not isinstance(problem, APIError):
        return RetryLater(str(problem))
    where = f"/namespaces/{namespace}" if namespace else ""
    path = f"/apis/{resource.group}/{resource.version}{where}/{resource.plural}"
    body = orjson.dumps({"message": problem.message or str(problem)})
    status = HTTPStatus.BAD_GATEWAY if problem.status == HTTPStatus.NOT_FOUND else problem.status
    return error_from(status, body, None, path)
