"""Reconcile one FineTuneRelease: read, plan, write the status, then act. Rare, so that everything is read live."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from finetune_api import names
from finetune_api.release import FineTuneReleaseSpec, FineTuneReleaseStatus
from finetune_operator.cluster import Cluster
from finetune_operator.controller.event_recorder import EventRecorder
from finetune_operator.controller.events import describe_refused_status
from finetune_operator.controller.warning_events import WarningEvents
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.errors import ClusterError, Denied, Gone, NameTaken, Outdated, Refused
from finetune_operator.kube.objects import Key
from finetune_operator.release.cluster import ReleaseCluster
from finetune_operator.release.events import derive_event
from finetune_operator.release.manifests import build_carrier, build_children, build_name
from finetune_operator.release.objects import Release, Seen
from finetune_operator.release.policy import find_query, is_refused, is_settled, plan
from finetune_operator.release.steps import Plan
from finetune_operator.release.trial import find_earlier_trial
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)


class ReleaseReconciler:
    """Reconciler of FineTuneReleases: each call takes one release a step further."""

    def __init__(
        self,
        cluster: Cluster,
        queue: WorkQueue,
        settings: Settings,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster = ReleaseCluster(cluster)
        self._queue = queue
        self._settings = settings
        self._clock = clock
        self._warnings = WarningEvents(cluster, clock)
        self._recorder = EventRecorder(cluster, settings.pod_name, clock, names.RELEASE_KIND)

    async def handle(self, key: Key) -> None:
        """Reconcile a release; every error requeues it."""
        try:
            after = await self._reconcile(key)
        except Gone:
            after = None
        except Outdated:
            self._queue.add_conflicted(key)
            return
        except ClusterError as problem:
            log.warning("release %s: %s; retrying in %.1f s", key, problem, self._queue.add_rate_limited(key))
            return
        except Exception:  # an unexpected error of one release must not end the worker that serves all
            log.exception("release %s: unexpected error; retrying in %.1f s", key, self._queue.add_rate_limited(key))
            return
        self._queue.forget(key)
        if after is not None:
            self._queue.add_after(key, after)

    async def _reconcile(self, key: Key) -> float | None:
        release = await self._cluster.get_release(key)
        if release.is_deleting or is_settled(release):
            return None
        seen = await self._observe(release)
        decided = plan(seen, self._settings)
        acts = decided.creates_job or decided.sets_adapter
        was_refused = acts and is_refused(release, decided)  # then the status waits for what comes of it now
        if not was_refused:
            seen = replace(seen, release=await self._write(release, decided.status))
        refusal = await self._act(seen, decided)
        if refusal:
            decided = plan(replace(seen, problem=refusal), self._settings)
        if refusal or was_refused:
            await self._write(seen.release, decided.status)
        return decided.requeue_after

    async def _write(self, release: Release, status: FineTuneReleaseStatus) -> Release:
        """Write the status, then record what has changed as an event."""
        try:
            written = await self._cluster.patch_status(release, status)
        except (Denied, Refused) as problem:  # no condition can show it
            await self._recorder.record(release, describe_refused_status(problem))
            raise
        if event := derive_event(release.status, written.status):
            log.info("release %s: %s: %s", release.key, event.reason, event.message)
            await self._recorder.record(written, event)
        return written

    async def _observe(self, release: Release) -> Seen:
        seen, spec, namespace = Seen(release, self._clock()), release.spec, release.key.namespace
        if spec is None:
            return seen
        kserve, earlier = spec.target.kserve, find_earlier_trial(release)
        try:
            await self._stop_earlier(release)
            seen = replace(
                seen,
                job=await self._cluster.get_job(Key(namespace, spec.job_ref.name)) if spec.job_ref else None,
                # Before the pods, which are then never older than the counts of their Job.
                child=await self._cluster.get_child(release, build_name(release)),
                pods=await self._cluster.list_pods(release.key),
                service=await self._cluster.get_service(namespace, kserve, seen.now) if kserve else None,
                tried=await self._cluster.get_service(namespace, earlier, seen.now) if earlier else None,
            )
        except (Denied, NameTaken, Outdated, Refused) as problem:
            return replace(seen, problem=problem)
        query = find_query(seen)
        with suppress(Denied):  # the events only explain
            return replace(seen, warnings=await self._warnings.read(namespace, query)) if query else seen
        return seen

    async def _stop_earlier(self, release: Release) -> None:
        """Delete the Job of an earlier generation: two pods must not ask for the same name."""
        name = release.status.job_name
        if name and name != build_name(release) and (child := await self._cluster.get_child(release, name)):
            await self._cluster.delete_child(release.key.namespace, child)

    async def _act(self, seen: Seen, decided: Plan) -> ClusterError | None:
        """Take the action of the plan; return why the API server refuses it."""
        release, spec = seen.release, seen.release.spec
        if spec is None:
            return None
        kserve, service = (decided.undoes, seen.tried) if decided.undoes else (spec.target.kserve, seen.service)
        try:
            if decided.creates_job and release.status.candidate:
                await self._create(seen, release, spec)
            if decided.sets_adapter and kserve and service:
                await self._cluster.set_adapter(release.key.namespace, kserve, service, decided.adapter_uri)
        except (Denied, NameTaken, Refused) as refusal:
            return refusal
        except Gone as problem:  # the LLMInferenceService or a child, not the release
            raise Outdated(str(problem)) from problem
        return None

    async def _create(self, seen: Seen, release: Release, spec: FineTuneReleaseSpec) -> None:
        if candidate := release.status.candidate:
            carrier = build_carrier(release, spec, seen.job)
            children = build_children(release, spec, candidate, carrier, self._settings)
            # No earlier pod is alive, and the rights on NetworkPolicies are granted with these settings only.
            kinds = ("ConfigMap", "NetworkPolicy") if self._settings.has_network_policies else ("ConfigMap",)
            await self._cluster.remove_earlier(release, children, kinds)
            await self._cluster.create(release, children)
