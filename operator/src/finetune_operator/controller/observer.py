"""Observe what one reconcile reads: from memory, or live from the API server."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from finetune_operator.cluster import Cluster
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.kube.errors import ClusterError, Denied, Gone, Refused, RetryLater
from finetune_operator.kube.objects import FineTuneJob, Job, Key
from finetune_operator.kube.observed import Observed, Relatives
from finetune_operator.kube.pod import Pod
from finetune_operator.manifests.jobs import build_selector
from finetune_operator.policy import dependencies, kueue
from finetune_operator.policy.pods import hidden_pods

T = TypeVar("T", Job, Pod)

log = logging.getLogger(__name__)


class Observer:
    """What a job, its children and the jobs that it waits for are, from the store or from the API server."""

    def __init__(
        self, cluster: Cluster, cache: WatchCache, has_failed: Callable[[Key], bool], clock: Callable[[], datetime]
    ) -> None:
        """`has_failed` returns whether the last reconcile of a job has failed."""
        self._cluster = cluster
        self._cache = cache
        self._has_failed = has_failed
        self._clock = clock
        self._store = cache.store
        self._hidden: set[str] = set()

    async def recall(self, job: FineTuneJob) -> Observed:
        """Return what the store has of a job, without a request: it may be old, and decides nothing alone."""
        key = job.key
        relatives = await self._find_relatives(job, is_live=False)
        if problem := self._store.find_problem(key.namespace, "jobs", "pods"):
            return Observed(job=job, now=self._clock(), relatives=relatives, obstacle=problem, children_unreadable=True)
        observed = self._combine(job, self._store.children.of(key), self._store.pods.of(key), relatives)
        return self.recall_workloads(observed)

    def recall_workloads(self, observed: Observed) -> Observed:
        """Add the Workloads of the Jobs that Kueue may hold; None if there are no such Jobs or no Kueue."""
        if not any(kueue.may_hold(one) for one in observed.own):
            return replace(observed, workloads=None)
        if not self._store.has_kueue:
            self._store.needs_kueue.set()
            return replace(observed, workloads=None)
        problem = self._store.find_problem(observed.job.key.namespace, "workloads")
        if problem:
            return replace(observed, workloads=(), workloads_error=problem)
        return replace(observed, workloads=self._store.workloads.of(observed.job.key))

    async def observe(self, job: FineTuneJob) -> Observed:
        """Read Jobs before pods: the pods are then never older than the counts of their Job."""
        key, store = job.key, self._store
        relatives = await self._find_relatives(job, is_live=True)
        known = store.children.of(key), store.pods.of(key)
        try:
            children = await self._cluster.list_children(key)
            hidden = await self._find_hidden(job, children)
            pods = await self._cluster.list_pods(key)
            observed = self._combine(job, (*children, *hidden), pods, relatives)
            searched = hidden_pods.find_jobs(observed)
            others = await self._cluster.list_pods_of(key, searched) if searched else ()
        except Denied as problem:
            return Observed(job=job, now=self._clock(), relatives=relatives, obstacle=problem, children_unreadable=True)
        # What other labels hide is not deleted; no watch delivers its changes, so that the store must not get it.
        store.children.replace(key, _without(known[0], hidden), children)
        store.pods.replace(key, _without(known[1], others), pods)
        if others:
            self._log_hidden(key, _without(others, pods))
            merged = {pod.uid: pod for pod in (*pods, *others)}
            observed = self._combine(job, observed.children, tuple(merged.values()), relatives)
        return await self._observe_workloads(observed)

    async def _find_hidden(self, job: FineTuneJob, children: tuple[Job, ...]) -> tuple[Job, ...]:
        """Return the current Job if the list does not show it, because another client has overwritten its labels."""
        current = job.status.job_ref
        if current is None or not lacks_current(job, children):
            return ()
        found = await self._cluster.find_child(job.key, current.name)
        if found is None or found.uid != current.uid:
            return ()
        self._log_hidden(job.key, [found])
        return (found,)

    def _log_hidden(self, key: Key, found: Iterable[Job | Pod]) -> None:
        """Log once that a Job or pod is not in the list by labels."""
        for one in found:
            if one.uid not in self._hidden:
                self._hidden.add(one.uid)
                log.warning("%s: no list shows %s by labels %s", key, one.name, build_selector(key.name))

    def _combine(
        self, job: FineTuneJob, children: tuple[Job, ...], pods: tuple[Pod, ...], relatives: Relatives
    ) -> Observed:
        return Observed(
            job=job,
            now=self._clock(),
            children=children,
            pods=self._cache.merge_ended_pods(job.key, pods),
            relatives=relatives,
            reading=self._cache.readings.get(job.key),
        )

    async def _observe_workloads(self, observed: Observed) -> Observed:
        key = observed.job.key
        held = [one for one in observed.own if kueue.may_hold(one)]
        if not held:
            return replace(observed, workloads=None)
        known = self._store.workloads.of(key)
        try:
            found = await self._cluster.list_workloads(key, held)
        except (Denied, Refused, RetryLater) as problem:
            if self.is_first_failure(key, problem):
                raise
            return replace(observed, workloads=(), workloads_error=problem)
        if found is not None:
            self._store.workloads.replace(key, known, found)
        return replace(observed, workloads=found)

    def is_first_failure(self, key: Key, problem: ClusterError) -> bool:
        """Return whether the request may succeed when it is repeated at once, so that nothing is reported yet."""
        return isinstance(problem, RetryLater) and not self._has_failed(key)

    async def _find_relatives(self, job: FineTuneJob, *, is_live: bool) -> dict[str, FineTuneJob | None]:
        """Return the jobs that this one waits for, and those that they wait for in turn, to detect cycles.

        They come from the watch, whose state may be old: what is pinned next is read from the API server.
        """
        found: dict[str, FineTuneJob | None] = {}
        needed = [need.name for need in dependencies.open_needs(job)]
        waiting = list(needed)
        while waiting and len(found) < dependencies.MAX_RELATIVES:
            name = waiting.pop(0)
            if name in found:
                continue
            found[name] = other = await self._find_relative(Key(job.key.namespace, name))
            waiting += [need.name for need in dependencies.open_needs(other)] if other else []
        if is_live and needed and not dependencies.find_obstacle(job, found):
            found |= {name: await self._get_job_or_none(Key(job.key.namespace, name)) for name in needed}
        return found

    async def _find_relative(self, key: Key) -> FineTuneJob | None:
        dependents = self._cache.dependents
        if key in dependents:
            return dependents[key]
        if (known := self._store.read_open(key)) or self._store.find(key) is None:
            return known
        found = await self._get_job_or_none(key)
        dependents.add_read(key, found)
        return found

    async def _get_job_or_none(self, key: Key) -> FineTuneJob | None:
        try:
            return await self._cluster.get_job(key)
        except Gone:
            return None


def lacks_current(job: FineTuneJob, children: tuple[Job, ...]) -> bool:
    """Return whether the Job of the current attempt is not among these."""
    current = job.status.job_ref
    return current is not None and all(one.uid != current.uid for one in children)


def _without(known: Iterable[T], others: Iterable[T]) -> list[T]:
    """Return the objects that are not among the others, by UID."""
    uids = {one.uid for one in others}
    return [one for one in known if one.uid not in uids]
