"""The kopf handlers: turn watch events into keys on the work queue."""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import kopf

from finetune_api import names
from finetune_operator.controller.rotating_ca import RotatingConnection
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.objects import FineTuneJob, Key, key_of_child
from finetune_operator.metrics.registry import Metrics
from finetune_operator.policy import deadlines
from finetune_operator.settings import Settings

LOGIN_PAUSE_SECONDS = 2.0
OWN_OBJECTS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"


def build_registry(
    queue: WorkQueue, cache: WatchCache, metrics: Metrics, settings: Settings, *, has_kueue: bool
) -> kopf.OperatorRegistry:
    """Return the handlers, which enqueue keys and keep ended pods; they decide nothing."""
    registry = kopf.OperatorRegistry()

    async def on_job(event: kopf.RawEvent, body: kopf.Body, **_: Any) -> None:
        cache.record_event(names.PLURAL)
        key = Key(body.metadata["namespace"], body.metadata["name"])
        cache.confirm_event(key)
        if event["type"] == "DELETED":
            metrics.jobs.remove(key)
            cache.forget(key)
            _add_all(queue, cache.dependents.remove(key))
            return
        job = FineTuneJob.from_object(dict(body))
        metrics.jobs.update(job)
        _add_all(queue, cache.dependents.update(job))
        if not job.is_settled or (event["type"] == "MODIFIED" and deadlines.find_ttl(job, settings) is not None):
            queue.add(key)

    async def on_child(body: kopf.Body, **_: Any) -> None:
        cache.record_event("jobs")
        _add(queue, key_of_child(dict(body)))

    async def on_pod(event: kopf.RawEvent, body: kopf.Body, **_: Any) -> None:
        cache.record_event("pods")
        key = key_of_child(dict(body))
        if key is not None:
            cache.keep_ended_pod(key, dict(body), gone=event["type"] == "DELETED")
            queue.add(key)

    async def on_workload(body: kopf.Body, **_: Any) -> None:
        cache.record_event("workloads")
        labels = body.metadata.get("labels") or {}
        _add(queue, cache.held_jobs.get(labels.get(names.LABEL_QUEUED_JOB_UID, "")))

    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, id="job", registry=registry)(on_job)
    kopf.on.event("batch", "v1", "jobs", id="child", registry=registry)(on_child)
    kopf.on.event("", "v1", "pods", id="pod", registry=registry)(on_pod)
    if has_kueue:
        group, version = names.KUEUE_API_VERSION.split("/")
        kopf.on.event(group, version, "workloads", id="workload", registry=registry)(on_workload)
    kopf.on.login(id="login", registry=registry)(build_login())
    return registry


def _add(queue: WorkQueue, key: Key | None) -> None:
    if key is not None:
        queue.add(key)


def _add_all(queue: WorkQueue, keys: Iterable[Key]) -> None:
    for key in keys:
        queue.add(key)


def build_login() -> Callable[..., Awaitable[kopf.ConnectionInfo | None]]:
    """Return a login handler that can be repeated after a 401.

    kopf ends a watch forever when it has no credentials left, and ignores new ones that equal rejected ones; a rising
    priority makes them differ. The token may have been renewed, or the 401 may have been an error of the API server.
    """
    logins = itertools.count()

    async def on_login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        number = next(logins)
        if number:
            await asyncio.sleep(LOGIN_PAUSE_SECONDS)
        found = _login(**kwargs)
        return replace(found, priority=number) if found else None

    return on_login


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in as `cluster.Connection` does: `KUBECONFIG` wins over the pod's service account."""
    if os.environ.get("KUBECONFIG") or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return kopf.login_with_kubeconfig(**kwargs)
    found = kopf.login_with_service_account(**kwargs)
    return RotatingConnection.of(found) if found else None


def build_kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """Return settings with which kopf writes nothing and needs no rights except list and watch."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.watching.connect_timeout = settings.api_timeout_seconds
    chosen.watching.chunk_size = 500
    chosen.watching.label_selectors["batch", "jobs"] = OWN_OBJECTS
    chosen.watching.label_selectors["", "pods"] = OWN_OBJECTS
    chosen.networking.request_timeout = 4 * settings.api_timeout_seconds
    return chosen


async def watch(
    queue: WorkQueue,
    cache: WatchCache,
    metrics: Metrics,
    settings: Settings,
    ready: asyncio.Event,
    *,
    has_kueue: bool,
) -> None:
    """Watch until the process receives SIGTERM or SIGINT."""
    await kopf.operator(
        registry=build_registry(queue, cache, metrics, settings, has_kueue=has_kueue),
        settings=build_kopf_settings(settings),
        # By default kopf looks up the user's name, which an arbitrary UID does not have.
        identity=cast("Any", settings.pod_name or names.MANAGED_BY),
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        ready_flag=ready,
    )
