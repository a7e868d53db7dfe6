"""What an object that a watch delivers changes: the store takes it, and its job is queued if it differs."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from finetune_api import names
from finetune_operator.controller.mirror import Listing
from finetune_operator.controller.store import Kind, Open, Settled
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.errors import ClusterError
from finetune_operator.kube.objects import FineTuneJob, Job, Key, Object, key_of_child, version_of
from finetune_operator.kube.pod import Pod, is_removed
from finetune_operator.kube.workload import Workload, key_of_workload
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy import deadlines
from finetune_operator.settings import Settings


class Intake:
    """The way of every object into the store. It decides nothing about a job."""

    def __init__(
        self,
        cache: WatchCache,
        queue: WorkQueue,
        metrics: Metrics,
        settings: Settings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.cache = cache
        self._store = cache.store
        self._queue = queue
        self.metrics = metrics
        self._settings = settings
        self._clock = clock

    def put(self, kind: Kind, obj: Object) -> None:
        """Take a new or changed object."""
        if kind == names.PLURAL:
            self._put_job(obj)
        elif kind == "jobs":
            self._put_child(obj)
        elif kind == "pods":
            self._put_pod(obj, gone=False)
        else:
            self._put_workload(obj)

    def remove(self, kind: Kind, obj: Object) -> None:
        """Remove a deleted object."""
        uid = obj["metadata"]["uid"]
        if kind == names.PLURAL:
            self.forget_job(Key(obj["metadata"]["namespace"], obj["metadata"]["name"]), uid)
        elif kind == "pods":
            self._put_pod(obj, gone=True)
        else:
            key = key_of_workload(obj) if kind == "workloads" else key_of_child(obj)
            if self._store.mirror(kind).remove(uid, version_of(obj["metadata"])) and key:
                self._queue.add(key)

    def take_job(self, job: FineTuneJob, *, queues: bool = True) -> None:
        """Take the state of a job, also one that a write has returned, and queue the jobs that wait for it."""
        left = deadlines.seconds_to_tidy(job, self._clock(), self._settings)
        wait = timedelta(seconds=(left or 0.0) + deadlines.SLACK_SECONDS)
        if not self._store.put_job(job, None if left is None else self._clock() + wait):
            return
        if left and job.is_settled:  # its Jobs may be gone by then, but not its ConfigMaps
            self._queue.add_after(job.key, wait.total_seconds())
        self.metrics.jobs.update(job)
        self._queue_all(self.cache.dependents.update(job))
        if queues and (job.is_deleting or not job.is_settled):
            # What a user waits for comes before the next look at jobs that run.
            self._queue.add(job.key, is_first=job.is_deleting or not job.status.conditions)

    def forget_job(self, key: Key, uid: str | None = None) -> None:
        """Forget a deleted job, and queue the jobs that wait for it."""
        self._store.remove_job(key, uid)
        self.cache.confirm_event(key)
        if self._store.find(key) is None:
            self.metrics.jobs.remove(key)
            self.cache.forget(key)
            self._queue_all(self.cache.dependents.remove(key))

    def begin_listing(self, kind: Kind, namespace: str | None) -> Listing:
        """Begin a list of all objects of a kind."""
        return self._store.mirror(kind).begin_listing(namespace)

    def end_listing(self, kind: Kind, listing: Listing, *, is_complete: bool) -> None:
        """End a list: what a complete one has not shown was deleted while no watch was connected."""
        lost = self._store.mirror(kind).end_listing(listing, is_complete=is_complete)
        where = (kind, listing.namespace)
        if is_complete and where in self._store.problems:
            del self._store.problems[where]
            self.queue_open_jobs()
        if kind == names.PLURAL and is_complete:
            for key in lost:
                self.forget_job(key)
        else:
            self._queue_all(lost)

    def report_problem(self, kind: Kind, problem: ClusterError, namespace: str | None = None) -> None:
        """Record why a kind cannot be listed; jobs report it in their conditions."""
        known = self._store.problems.get((kind, namespace))
        self._store.problems[kind, namespace] = problem
        if known is None:
            self.queue_open_jobs()

    def queue_open_jobs(self, within_seconds: float = 0.0) -> None:
        """Queue every job that is not finished, evenly within some seconds."""
        found = [job.key for job in self._store.jobs if isinstance(job, Open)]
        for number, key in enumerate(found):
            self._queue.add_after(key, within_seconds * number / len(found))

    def _put_job(self, obj: Object) -> None:
        meta = obj["metadata"]
        self.cache.confirm_event(Key(meta["namespace"], meta["name"]))
        if not self._store.jobs.has(meta["uid"], version_of(meta)):  # else it is the echo of a write
            self.take_job(FineTuneJob.from_object(obj))

    def _put_child(self, obj: Object) -> None:
        key = key_of_child(obj)
        found = self._store.find(key) if key else None
        if key and isinstance(found, Open):
            if self._store.children.put(key, Job.from_object(obj)):
                self._queue.add(key)
        elif key and isinstance(found, Settled) and found.removes_children_at:
            self._queue.add_after(key, max(0.0, (found.removes_children_at - self._clock()).total_seconds()))

    def _put_pod(self, obj: Object, *, gone: bool) -> None:
        key = key_of_child(obj)
        if key is None or not self._store.has_open(key):
            return
        pod = Pod.from_object(obj, gone=gone and is_removed(obj))
        self.cache.keep_ended_pod(key, pod)
        if self._store.pods.remove(pod.uid, pod.version) if gone else self._store.pods.put(key, pod):
            self._queue.add(key)

    def _put_workload(self, obj: Object) -> None:
        key = key_of_workload(obj)
        if key and self._store.has_open(key) and self._store.workloads.put(key, Workload.from_object(obj)):
            self._queue.add(key)

    def _queue_all(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._queue.add(key)
