"""Reconcile one FineTuneJob: observe, plan, apply, and write the status once at the end if anything changed."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from finetune_api.status import FineTuneJobStatus
from finetune_operator.cluster import Cluster
from finetune_operator.controller import events
from finetune_operator.controller.event_backlog import EventBacklog
from finetune_operator.controller.event_recorder import EventRecorder
from finetune_operator.controller.intake import Intake
from finetune_operator.controller.observer import Observer, lacks_current
from finetune_operator.controller.progress_budget import is_only_progress, seconds_to_news
from finetune_operator.controller.warning_events import WarningEvents
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import CONFLICT_DELAY, WorkQueue
from finetune_operator.kube.errors import ClusterError, Denied, Gone, NameTaken, Outdated, Refused, RetryLater
from finetune_operator.kube.objects import FineTuneJob, Key, Object
from finetune_operator.kube.observed import Observed
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy import deadlines
from finetune_operator.policy.conditions import acknowledge_generation
from finetune_operator.policy.decision import Decision
from finetune_operator.policy.finality import is_final
from finetune_operator.policy.plan import plan
from finetune_operator.policy.pods import hidden_pods
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)
MAX_STEPS = 6
"""Maximum number of actions in one reconcile: create a Job, and read events in between; more would be a loop."""


class Reconciler:
    """Reconciler of FineTuneJobs: each call takes one job a step further."""

    def __init__(
        self,
        cluster: Cluster,
        cache: WatchCache,
        queue: WorkQueue,
        settings: Settings,
        metrics: Metrics,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._queue = queue
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._others: set[str] = set()
        self._warnings = WarningEvents(cluster, clock)
        self._store = cache.store
        self._observer = Observer(cluster, cache, queue.has_failed, clock)
        self._intake = Intake(cache, queue, metrics, settings, clock)
        recorder = EventRecorder(cluster, settings.pod_name, clock)
        self.events = EventBacklog(recorder, queue.is_idle, clock)

    async def handle(self, key: Key) -> None:
        """Reconcile a job; every error requeues it, so no job is lost."""
        with self._metrics.seconds.time():
            result = await self._attempt(key)
        self._metrics.reconciles.labels(result).inc()

    async def _attempt(self, key: Key) -> str:
        try:
            await self._reconcile(key)
        except Gone:
            self._cache.forget(key)
        except Outdated as problem:
            self._cache.doubted.add(key)
            delay = self._queue.add_conflicted(key)
            if delay > CONFLICT_DELAY:
                log.warning("%s: repeated conflicts: %s; retrying in %.1f s", key, problem, delay)
            return "conflict"
        except (RetryLater, Denied, Refused) as problem:
            after = getattr(problem, "after_seconds", None) or 0.0
            delay = self._queue.add_rate_limited(key, after)
            log.warning("%s: %s; retrying in %.1f s", key, problem, delay)
            return "error"
        except Exception:  # an unexpected error of one job must not end the worker that serves all jobs
            delay = self._queue.add_rate_limited(key)
            log.exception("%s: unexpected error; retrying in %.1f s", key, delay)
            return "bug"
        self._queue.forget(key)
        return "done"

    async def _reconcile(self, key: Key) -> None:
        job = await self._find_job(key)
        self._check_writers(job)
        if job.is_deleting:
            await self._stop_deleted(job)
            return
        if job.is_finished:
            await self._settle(job)
            return
        if job.status_error:
            log.error("%s: ignored because its status cannot be read: %s", key, job.status_error)
            return
        await self._take_step(job)

    async def _settle(self, job: FineTuneJob) -> None:
        self._cache.forget(job.key)
        if not job.is_settled:
            job = await self._write(job, acknowledge_generation(job.status, job.generation))
        await self._remove_expired_children(job)

    async def _take_step(self, job: FineTuneJob) -> None:
        key = job.key
        is_live = key in self._cache.doubted
        observed = await self._observer.observe(job) if is_live else await self._observer.recall(job)
        is_incomplete = lacks_current(job, observed.children) or hidden_pods.are_missing(observed)
        if not is_live and not observed.children_unreadable and is_incomplete:
            observed, is_live = await self._observe_again(observed), True
        observed, decision = await self._plan_and_act(observed, is_live=is_live)
        self._cache.doubted.discard(key)
        status = self._hold_progress_back(observed, decision.status)
        written = await self._write(observed.job, status, queues=not _is_held_up(observed))
        if written.is_finished:
            self._cache.forget(key)
            await self._remove_expired_children(written)
            return
        self._cache.set_target(key, decision.follow)
        if decision.requeue_after is not None:
            self._queue.add_after(key, decision.requeue_after)
        for problem in (observed.obstacle, observed.workloads_error):
            if isinstance(problem, RetryLater):
                raise problem  # it is written to the status, and retried with backoff

    def _hold_progress_back(self, observed: Observed, status: FineTuneJobStatus) -> FineTuneJobStatus:
        """Return the status to write: the stored one while a difference in progress is small, or others are first."""
        key, stored = observed.job.key, observed.job.status
        if not is_only_progress(stored, status):
            return status
        wait = seconds_to_news(stored, status, observed.now) or self._cache.budget.wait(key)
        if not wait:
            return status
        self._queue.add_after(key, wait)
        if self._store.has_open(key):  # else it was deleted in the meantime
            self._metrics.jobs.update(replace(observed.job, status=status))  # alerts look at the age of the last report
        return stored

    async def _find_job(self, key: Key) -> FineTuneJob:
        """Return the latest known state of a job; a settled one, and one that was in conflict, is read again."""
        if self._store.find(key) is None:
            raise Gone(str(key))
        known = self._store.read_open(key)
        return known if known and key not in self._cache.doubted else await self._read_job(key)

    async def _read_job(self, key: Key) -> FineTuneJob:
        job = await self._cluster.get_job(key)
        self._intake.take_job(job, queues=False)
        return job

    def _check_writers(self, job: FineTuneJob) -> None:
        other = self._cache.find_other_writer(job.key, job.writers, self._settings.identity)
        if other and other not in self._others:
            self._others.add(other)
            self._metrics.other_operators.set(len(self._others))
            log.warning("another operator (%s) writes the status of %s: stop one of the two", other, job.key)

    async def _stop_deleted(self, job: FineTuneJob) -> None:
        """Remove the children of a job that is being deleted; a finalizer may keep the job itself for a long time."""
        self._cache.forget(job.key)
        if not job.keeps_children and await self._cluster.remove_children(job):
            log.info("%s: Jobs removed, because the job is being deleted", job.key)

    async def _remove_expired_children(self, job: FineTuneJob) -> None:
        """Remove a finished job's children after its TTL; one that has passed is noticed by its listed Jobs."""
        left = deadlines.seconds_to_tidy(job, self._clock(), self._settings)
        if left:
            self._queue.add_after(job.key, left + deadlines.SLACK_SECONDS)
        elif left is not None and await self._cluster.remove_children(job):
            log.info("%s: Jobs removed, %s s after the end", job.key, deadlines.find_ttl(job, self._settings))

    async def _plan_and_act(self, observed: Observed, *, is_live: bool) -> tuple[Observed, Decision]:
        """Plan and act until no action is left; the result of an action is part of the next plan.

        What cannot be taken back is planned again from a live read, and done only if that gives the same.
        """
        for _ in range(MAX_STEPS):
            decision = plan(observed, self._settings)
            if not is_live and is_final(observed.job.status, decision):
                observed, is_live = await self._observe_again(observed), True
                continue
            if observed.obstacle is not None:
                return observed, decision
            try:
                changed = await self._act(observed, decision)
            except (Denied, NameTaken, Refused, RetryLater) as problem:
                if self._observer.is_first_failure(observed.job.key, problem):
                    raise
                log.warning("%s: %s", observed.job.key, problem)
                changed = replace(observed, obstacle=problem)
            if changed is None:
                return observed, decision
            observed = changed
        raise RuntimeError(f"{observed.job.key}: not settled after {MAX_STEPS} actions")

    async def _observe_again(self, recalled: Observed) -> Observed:
        """Read the job and its children from the API server."""
        job = await self._read_job(recalled.job.key)
        if job.is_finished or job.is_deleting or job.status_error:
            raise Outdated("it has changed in the meantime")
        return replace(await self._observer.observe(job), warnings=recalled.warnings)

    async def _act(self, observed: Observed, decision: Decision) -> Observed | None:
        """Do the planned action; return what to plan from next, or None if the decision is final."""
        job = observed.job
        if decision.delete:
            await self._cluster.delete_child(job, decision.delete)
        elif decision.create:
            child = await self._cluster.create_child(job, decision.create)
            log.info("%s: created Job %s", job.key, child.name)
            self._store.children.put(job.key, child)
            return self._observer.recall_workloads(replace(observed, children=(*observed.children, child)))
        elif change := decision.suspend or decision.resume:
            is_suspended = decision.suspend is not None
            child = await self._cluster.set_suspended(job, change, is_suspended=is_suspended)
            log.info("%s: Job %s %s", job.key, child.name, "suspended" if is_suspended else "resumed")
            self._store.children.put(job.key, child)
            others = [one for one in observed.children if one.uid != child.uid]
            return replace(observed, children=(*others, child))
        elif decision.move_to_queue:
            await self._cluster.move_to_queue(job, *decision.move_to_queue)
        elif workload := decision.deactivate or decision.activate:
            is_active = decision.activate is not None
            await self._cluster.set_active(job, workload, is_active=is_active)
            log.info("%s: Workload %s active: %s", job.key, workload.name, is_active)
        elif query := decision.fetch_events_for:
            return replace(observed, warnings=await self._warnings.read(job.key.namespace, query))
        return None

    async def _write(self, job: FineTuneJob, status: FineTuneJobStatus, *, queues: bool = True) -> FineTuneJob:
        """Write what has changed, queue the job unless only its progress has, and return it as it is then."""
        change = build_merge_patch(job.status.to_wire(), status.to_wire())
        if not change:
            return job
        is_new = self._cache.expect_event(job.key)
        try:
            written = await self._cluster.patch_status(job, change)
        except ClusterError as problem:
            if is_new:
                self._cache.confirm_event(job.key)
            if isinstance(problem, Denied | Refused):  # no condition can show it
                self.events.add(job, events.describe_refused_status(problem))
            raise
        if written.resource_version == job.resource_version:  # nothing changed, so there is no event
            self._cache.confirm_event(job.key)
        self._intake.take_job(written, queues=queues and not is_only_progress(job.status, status))
        for event in events.derive_events(job.status, status):
            self.events.add(written, event)
        return written


def _is_held_up(observed: Observed) -> bool:
    """Return whether a request failed that is repeated after a delay, which the write of its message must not end."""
    return isinstance(observed.obstacle, Refused | RetryLater) or isinstance(observed.workloads_error, RetryLater)


def build_merge_patch(old: Object, new: Object) -> Object:
    """Return the JSON merge patch from the old object to the new one; lists are replaced as a whole."""
    change: Object = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = build_merge_patch(before, value)
            if inner:
                change[name] = inner
        elif value != before:
            change[name] = value
    return change
