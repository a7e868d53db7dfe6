"""The watch of FineTuneReleases, with a work queue of their own."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from finetune_api import names
from finetune_api.release import ReleaseConditionType
from finetune_operator.cluster import Cluster
from finetune_operator.controller.handlers import build_reflectors
from finetune_operator.controller.mirror import Listing, Mirror
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue, work
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import Key, Object
from finetune_operator.metrics.registry import Metrics
from finetune_operator.release.objects import Release
from finetune_operator.release.policy import is_settled
from finetune_operator.release.reconciler import ReleaseReconciler
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)
WORKERS = 2


class ReleaseController:
    """Queues every release that has not ended, and reconciles it."""

    def __init__(self, cluster: Cluster, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics.releases
        self._mirror = Mirror[Release]()
        self._queue = WorkQueue(WORKERS)
        self._reconciler = ReleaseReconciler(cluster, self._queue, settings)

    async def work(self) -> None:
        """Reconcile until the task is cancelled."""
        await asyncio.gather(*(work(self._queue, self._reconciler.handle) for _ in range(WORKERS)))

    async def watch(self) -> None:
        """Watch until the task is cancelled."""
        # Their last event is no sign of a stale watch: most clusters have few of them.
        reflectors = build_reflectors("finetunereleases", self, WatchCache(), self._settings)
        async with asyncio.TaskGroup() as group:
            for one in reflectors:
                group.create_task(one.run())

    def put(self, kind: Any, obj: Object) -> None:
        """Show the state of a release, and queue it if it is new or has another spec.

        A status alone queues nothing: each reconcile sets the time of the next one.
        """
        del kind
        release = Release.from_object(obj)
        known = next((one.generation for one in self._mirror.of(release.key) if one.uid == release.uid), None)
        if self._mirror.put(release.key, release):
            self._metrics.update(
                release.key,
                is_ready=release.is_true(ReleaseConditionType.READY),
                is_stalled=release.is_true(ReleaseConditionType.STALLED),
                reason=release.status.reason or "Unseen",
            )
        if release.generation != known:
            self._queue_open([release])

    def remove(self, kind: Any, obj: Object) -> None:
        """Remove a release from the metrics: what answers stays, and the Job has an owner reference."""
        del kind
        release = Release.from_object(obj)
        self._mirror.remove(release.uid)
        self._forget({release.key})

    def begin_listing(self, kind: Any, namespace: str | None) -> Listing:
        """Begin a list of releases."""
        del kind
        return self._mirror.begin_listing(namespace)

    def end_listing(self, kind: Any, listing: Listing, *, is_complete: bool) -> None:
        """Remove the releases that a complete list has not shown from the metrics, and queue those that are open."""
        del kind
        self._forget(self._mirror.end_listing(listing, is_complete=is_complete))
        self._queue_open(one for one in self._mirror if one.uid in listing.seen)

    def _queue_open(self, releases: Iterable[Release]) -> None:
        for one in releases:
            if not is_settled(one):
                self._queue.add(one.key)

    def _forget(self, keys: set[Key]) -> None:
        for key in keys:
            if not self._mirror.of(key):  # else it was created again
                self._metrics.remove(key)

    def queue_open_jobs(self, within_seconds: float = 0.0) -> None:
        """Do nothing: jobs have a queue of their own."""

    def report_problem(self, kind: Any, problem: ClusterError, namespace: str | None = None) -> None:
        """Log why releases cannot be watched."""
        log.error("%s in %s are not served: %s", names.RELEASE_PLURAL, namespace or "all namespaces", problem)
