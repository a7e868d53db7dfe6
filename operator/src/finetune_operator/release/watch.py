"""The watch of FineTuneReleases, with a work queue of their own."""

import asyncio
import logging
from typing import Any

from finetune_api import names
from finetune_operator.cluster import Cluster
from finetune_operator.controller.handlers import build_kopf_settings
from finetune_operator.controller.mirror import Listing, Mirror
from finetune_operator.controller.reflector import Reflector
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue, work
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import Object
from finetune_operator.release.objects import Release
from finetune_operator.release.policy import is_settled
from finetune_operator.release.reconciler import ReleaseReconciler
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)
WORKERS = 2


class ReleaseController:
    """Queues every release that has not ended, and reconciles it."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._settings = settings
        self._queue = WorkQueue(WORKERS)
        self._reconciler = ReleaseReconciler(cluster, self._queue, settings)

    async def work(self) -> None:
        """Reconcile until the task is cancelled."""
        await asyncio.gather(*(work(self._queue, self._reconciler.handle) for _ in range(WORKERS)))

    async def watch(self) -> None:
        """Watch until the task is cancelled."""
        settings, resync = build_kopf_settings(self._settings), self._settings.resync_seconds
        namespaces: list[str | None] = [*self._settings.watch_namespaces] or [None]
        async with asyncio.TaskGroup() as group:
            for namespace in namespaces:
                # Their last event is no sign of a stale watch: most clusters have few of them.
                one = Reflector("finetunereleases", namespace, self, WatchCache(), settings, resync_seconds=resync)
                group.create_task(one.run())

    def put(self, kind: Any, obj: Object) -> None:
        """Queue a release that has not ended."""
        del kind
        release = Release.from_object(obj)
        if not is_settled(release):
            self._queue.add(release.key)

    def remove(self, kind: Any, obj: Object) -> None:
        """Do nothing: what answers stays, and the Job has an owner reference."""

    def begin_listing(self, kind: Any, namespace: str | None) -> Listing:
        """Begin a list of which nothing is kept."""
        del kind
        return Mirror[Any]().begin_listing(namespace)

    def end_listing(self, kind: Any, listing: Listing, *, is_complete: bool) -> None:
        """Do nothing: every listed release is queued already."""

    def queue_open_jobs(self, within_seconds: float = 0.0) -> None:
        """Do nothing: jobs have a queue of their own."""

    def report_problem(self, kind: Any, problem: ClusterError, namespace: str | None = None) -> None:
        """Log why releases cannot be watched."""
        log.error("%s in %s are not served: %s", names.RELEASE_PLURAL, namespace or "all namespaces", problem)
