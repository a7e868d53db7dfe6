"""The only module that calls the API server; it converts responses into objects and typed errors."""

import asyncio
import functools
import logging
import re
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http import HTTPStatus
from typing import Any, cast

import orjson
import urllib3

from finetune_api import names
from finetune_operator.connection import Connection, RequestLimit
from finetune_operator.kube.errors import (
    AlreadyExists,
    Gone,
    NameTaken,
    Outdated,
    Refused,
    RetryLater,
    error_from,
)
from finetune_operator.kube.objects import LATEST, FineTuneJob, Job, Key, Object, controller_of, moment
from finetune_operator.kube.observed import START_WARNINGS, WarningEvent, Warnings
from finetune_operator.kube.pod import Pod
from finetune_operator.kube.workload import Workload
from finetune_operator.manifests import jobs as manifests
from finetune_operator.manifests.jobs import Child
from finetune_operator.manifests.network import fill_token
from finetune_operator.manifests.planted import find_changed_labels, find_foreign_content
from finetune_operator.metrics.registry import Metrics
from finetune_operator.settings import Settings

logger = logging.getLogger(__name__)

PAGE = 500
MAX_EVENT_PAGES = 4
NETWORKING = "networking.k8s.io"
EVENTS = "events.k8s.io"
_ADDRESS = re.compile(r"<\S+ object at 0x[0-9a-f]+>:? ?")
"""What urllib3 adds to a message, and what would make it different each time."""


class Cluster:
    """Client of the API server; every call runs in a thread, within the limit of requests and the timeout."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(settings.workers, thread_name_prefix="api")
        self._limit = RequestLimit(settings.workers, settings.api_qps, settings.api_burst)
        self._connection = Connection(settings)
        self.may_write: Callable[[], bool] = lambda: True
        """Whether this process may still change objects; the election of a leader replaces it."""
        self._kueue: str | Refused = names.KUEUE_VERSIONS[0]
        """The version of Kueue's API, or why none can be used."""

    async def close(self) -> None:
        """Close the threads and the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._connection.close()

    async def get_job(self, key: Key) -> FineTuneJob:
        """Read one FineTuneJob."""
        return FineTuneJob.from_object(await self._call("GET", _custom(key)))

    async def list_children(self, key: Key) -> tuple[Job, ...]:
        """List the Jobs that carry the job's name, of any owner."""
        items = await self._list_named(key, _jobs(key.namespace))
        return tuple(Job.from_object(item) for item in items)

    async def find_child(self, key: Key, name: str) -> Job | None:
        """Read one of the job's Jobs, also one whose labels another client has overwritten; None if there is none."""
        try:
            return Job.from_object(await self._call("GET", f"{_jobs(key.namespace)}/{name}"))
        except Gone:
            return None

    async def list_pods(self, key: Key) -> tuple[Pod, ...]:
        """List the pods that carry the job's name."""
        return tuple(Pod.from_object(item) for item in await self._list_named(key, _core(key.namespace, "pods")))

    async def list_pods_of(self, key: Key, job_uids: Iterable[str]) -> tuple[Pod, ...]:
        """List the pods of some Jobs by the label of the Job controller."""
        query = {"labelSelector": f"{names.LABEL_CONTROLLER_UID} in ({','.join(job_uids)})"}
        page = await self._call("GET", _core(key.namespace, "pods"), query=query)
        return tuple(Pod.from_object(item) for item in page["items"])

    async def _list_named(self, key: Key, path: str) -> list[Object]:
        page = await self._call("GET", path, query={"labelSelector": manifests.build_selector(key.name)})
        return [
            item
            for item in page["items"]
            if (item["metadata"].get("annotations") or {}).get(names.ANNOTATION_JOB_NAME) == key.name
        ]

    async def list_workloads(self, key: Key, children: Iterable[Job]) -> tuple[Workload, ...] | None:
        """List Kueue's Workloads of these Jobs; None if the API server does not serve Workloads."""
        uids = ",".join(child.uid for child in children)
        query = {"labelSelector": f"{names.LABEL_QUEUED_JOB_UID} in ({uids})"}
        try:
            page = await self._call("GET", self._workloads(key.namespace), query=query)
        except Gone:
            return None
        return tuple(Workload.from_object(item) for item in page["items"])

    def _workloads(self, namespace: str) -> str:
        if isinstance(self._kueue, Refused):
            raise self._kueue
        return f"/apis/{names.KUEUE_GROUP}/{self._kueue}/namespaces/{namespace}/workloads"

    async def create_child(self, job: FineTuneJob, child: Child) -> Job:
        """Create the Job after everything that its pods need; an existing object is a success if this job owns it and
        it has the content.

        One that another client made in the job's name is deleted, and `Outdated` raised, so that it is created again.
        `Outdated` is also raised while an object of an earlier job of this name is not removed yet.
        """
        namespace = job.key.namespace
        await self._create_owned(job, _core(namespace, "configmaps"), child.config_map)
        if child.network_policy:
            await self._create_owned(job, _policies(namespace), child.network_policy)
        if child.peer_token:
            token = fill_token(child.peer_token, secrets.token_hex(32))
            await self._create_owned(job, _core(namespace, "configmaps"), token)
        if child.service:
            await self._create_owned(job, _core(namespace, "services"), child.service)
        made = await self._create_owned(job, _jobs(namespace), child.job)
        if changed := find_changed_labels(child.job, made):
            await self.delete(f"{_jobs(namespace)}/{child.name}", made["metadata"]["uid"])
            words = f"a policy has given Job {child.name} another {', '.join(changed)}, by which the operator finds it"
            raise Refused(f"{words}: exempt app.kubernetes.io/* and finetune.dev/* from that policy")
        return Job.from_object(made)

    async def _create_owned(self, job: FineTuneJob, path: str, body: Object) -> Object:
        kind, name = body["kind"], body["metadata"]["name"]
        try:
            return await self._call("POST", path, body=body)
        except Refused as problem:
            raise problem.of(kind, name) from problem
        except AlreadyExists:
            try:
                found = await self._call("GET", f"{path}/{name}")
            except Gone as problem:  # the object, not the job
                raise Outdated(str(problem)) from problem
            owner = controller_of(found)
            if owner.get("uid") != job.uid:
                if (owner.get("kind"), owner.get("name")) == (names.KIND, job.key.name):
                    # A live look shows it as a leftover; its deletion then queues the job.
                    raise Outdated(f"{body['kind']} {name} belongs to an earlier job of this name") from None
                raise NameTaken(body["kind"], name) from None
            if field := find_foreign_content(body["kind"], body, found):
                await self.delete(f"{path}/{name}", found["metadata"]["uid"])
                logger.warning("%s: deleted %s %s, whose %s is not the operator's", job.key, body["kind"], name, field)
                raise Outdated(f"{body['kind']} {name} was made by another client") from None
            return found

    async def delete_child(self, job: FineTuneJob, child: Job) -> None:
        """Delete exactly that Job (by UID), and its pods."""
        await self.delete(f"{_jobs(job.key.namespace)}/{child.name}", child.uid)

    async def delete(self, path: str, uid: str) -> None:
        """Delete exactly that object (by UID), with what it owns, unless it is gone."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self.request("DELETE", path, body=body)
        except (Gone, Outdated):
            return

    async def remove_children(self, job: FineTuneJob) -> bool:
        """Delete what belongs to a job's Jobs, then these with their pods; return whether it had Jobs."""
        namespace = job.key.namespace
        await self._remove_owned(job, _core(namespace, "configmaps"))
        await self._remove_owned(job, _core(namespace, "services"))
        if self._settings.has_network_policies:
            await self._remove_owned(job, _policies(namespace))
        children = [one for one in await self.list_children(job.key) if one.owner_uid == job.uid]
        for child in children:
            await self.delete_child(job, child)
        return bool(children)

    async def _remove_owned(self, job: FineTuneJob, path: str) -> None:
        for item in await self._list_named(job.key, path):
            if controller_of(item).get("uid") == job.uid:
                await self.delete(f"{path}/{item['metadata']['name']}", item["metadata"]["uid"])

    async def set_suspended(self, job: FineTuneJob, child: Job, *, is_suspended: bool) -> Job:
        """Suspend exactly that Job (by UID), noted in an annotation as done by the operator, or resume it."""
        note = {names.ANNOTATION_SUSPENDED_BY: names.MANAGED_BY if is_suspended else None}
        body = {"metadata": {"uid": child.uid, "annotations": note}, "spec": {"suspend": is_suspended}}
        return Job.from_object(await self._patch(f"{_jobs(job.key.namespace)}/{child.name}", body))

    async def set_active(self, job: FineTuneJob, workload: Workload, *, is_active: bool) -> None:
        """Deactivate a Workload, noted in an annotation, or activate it again; Kueue then stops or admits its Job."""
        note = {names.ANNOTATION_SUSPENDED_BY: None if is_active else names.MANAGED_BY}
        body = {"metadata": {"uid": workload.uid, "annotations": note}, "spec": {"active": is_active}}
        await self._patch(f"{self._workloads(job.key.namespace)}/{workload.name}", body)

    async def move_to_queue(self, job: FineTuneJob, child: Job, queue: str | None) -> None:
        """Move a Job that is not admitted to another queue; with None, take it out of its queue and let it run."""
        note = {names.ANNOTATION_QUEUED_BY: names.MANAGED_BY if queue else None}
        body: Object = {"metadata": {"uid": child.uid, "labels": {names.LABEL_QUEUE: queue}, "annotations": note}}
        if queue is None:
            body["spec"] = {"suspend": False}
        await self._patch(f"{_jobs(job.key.namespace)}/{child.name}", body)

    async def _patch(self, path: str, body: Object) -> Object:
        try:
            return await self._call("PATCH", path, body=body)
        except Gone as problem:
            raise Outdated(str(problem)) from problem

    async def patch_status(self, job: FineTuneJob, change: Object) -> FineTuneJob:
        """Patch the status; raise `Outdated` if the object has changed since it was read."""
        meta = {"uid": job.uid, "resourceVersion": job.resource_version}
        path = f"{_custom(job.key)}/status"
        body = {"metadata": meta, "status": change}
        query = {"fieldManager": self._settings.identity}
        return FineTuneJob.from_object(await self._call("PATCH", path, body=body, query=query))

    async def list_warnings(self, namespace: str, kind: str) -> dict[str, Warnings]:
        """List the Warning events that explain why a pod or Job does not start, by its UID, newest first."""
        path, found = f"/api/v1/namespaces/{namespace}/events", dict[str, list[Object]]()
        for reason in START_WARNINGS[kind]:
            query = {"fieldSelector": f"involvedObject.kind={kind},type=Warning,reason={reason}", "limit": PAGE}
            for _ in range(MAX_EVENT_PAGES):
                page = await self._call("GET", path, query=query)
                for one in page["items"]:
                    found.setdefault(one["involvedObject"].get("uid", ""), []).append(one)
                if not (token := page["metadata"].get("continue")):
                    break
                query |= {"continue": token}
        return {uid: _read_warnings(uid, items) for uid, items in found.items()}

    async def post_event(self, event: Object) -> None:
        """Post an event, unless it exists."""
        try:
            await self._call("POST", _events(event["metadata"]["namespace"]), body=event)
        except AlreadyExists:
            return

    async def count_event(self, namespace: str, name: str, series: Object) -> None:
        """Set the series of an event: how often it was observed, and when last."""
        await self._call("PATCH", f"{_events(namespace)}/{name}", body={"series": series})

    async def is_served(self) -> bool:
        """Return whether the API server serves FineTuneJobs."""
        try:
            await self._call("GET", f"/apis/{names.API_VERSION}")
        except Gone:
            return False
        return True

    async def find_kueue(self) -> str | None:
        """Return the newest usable version of Kueue's API, and use it from now on; None if there is no Kueue.

        Raises:
            Refused: Kueue serves only other versions.
        """
        try:
            found = await self._call("GET", f"/apis/{names.KUEUE_GROUP}")
        except Gone:
            return None
        served = [one["version"] for one in found.get("versions") or []]
        usable = [one for one in names.KUEUE_VERSIONS if one in served]
        if not usable:
            words = f"Kueue of this cluster serves {names.KUEUE_GROUP} only as {', '.join(served)}"
            self._kueue = Refused(f"{words}, and the operator needs {' or '.join(names.KUEUE_VERSIONS)}: update Kueue")
            raise self._kueue
        self._kueue = usable[0]
        return usable[0]

    async def read_lease(self, namespace: str, name: str) -> Object | None:
        """Read a Lease; None if there is none."""
        try:
            return await self._call("GET", f"{_leases(namespace)}/{name}", is_urgent=True)
        except Gone:
            return None

    async def write_lease(self, lease: Object) -> Object:
        """Create a Lease, or replace the one that was read."""
        meta = lease["metadata"]
        path = _leases(meta["namespace"])
        if "resourceVersion" in meta:
            return await self._call("PUT", f"{path}/{meta['name']}", body=lease, is_urgent=True)
        return await self._call("POST", path, body=lease, is_urgent=True)

    async def request(
        self, verb: str, path: str, *, body: Object | None = None, query: dict[str, Any] | None = None
    ) -> Object:
        """Send a request of an optional part of the operator, within the same limits."""
        return await self._call(verb, path, body=body, query=query)

    async def _call(
        self,
        verb: str,
        path: str,
        *,
        body: Object | None = None,
        query: dict[str, Any] | None = None,
        is_urgent: bool = False,
    ) -> Object:
        """Send a request; an urgent one waits neither for the limit of requests nor for a thread that others use, and
        not long for its answer."""
        if is_urgent:
            return await asyncio.to_thread(self._send, verb, path, body, query or {}, is_urgent=True)
        async with self._limit.slot():
            self._metrics.request_limit.set(self._limit.allowed)
            if verb != "GET" and not self.may_write():
                raise RetryLater(f"{verb} {path}: not sent, because another operator may lead by now")
            send = functools.partial(self._send, verb, path, body, query or {})
            return await asyncio.get_running_loop().run_in_executor(self._threads, send)

    def _send(
        self, verb: str, path: str, body: Object | None, query: dict[str, Any], *, is_urgent: bool = False
    ) -> Object:
        code = "failed"
        try:
            content = orjson.dumps(body) if body else None
            answer = self._connection.request(verb, path, content, query, is_urgent=is_urgent)
            code = str(answer.status)
        except urllib3.exceptions.HTTPError as problem:
            raise RetryLater(f"{verb} {path}: {_ADDRESS.sub('', str(problem))}") from problem
        finally:
            self._metrics.requests.labels(verb, find_resource(path), code).inc()
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise error_from(answer.status, answer.data, answer.headers.get("Retry-After"), path)
        return cast("Object", orjson.loads(answer.data))


def find_resource(path: str) -> str:
    """Return the resource of a path, with its subresource; the last part of a path without a namespace."""
    parts = path.strip("/").split("/")
    if "namespaces" not in parts[:-2]:
        return parts[-1]
    resource, *rest = parts[parts.index("namespaces") + 2 :]
    return "/".join([resource, *rest[1:]])


def _custom(key: Key) -> str:
    return f"/apis/{names.API_VERSION}/namespaces/{key.namespace}/{names.PLURAL}/{key.name}"


def _core(namespace: str, kind: str) -> str:
    return f"/api/v1/namespaces/{namespace}/{kind}"


def _policies(namespace: str) -> str:
    return f"/apis/{NETWORKING}/v1/namespaces/{namespace}/networkpolicies"


def _events(namespace: str) -> str:
    return f"/apis/{EVENTS}/v1/namespaces/{namespace}/events"


def _jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def _leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def _read_warnings(uid: str, items: list[Object]) -> Warnings:
    found = (WarningEvent(one.get("reason", ""), " ".join(one.get("message", "").split()), _time(one)) for one in items)
    return Warnings(uid, tuple(sorted(found, key=lambda one: one.at, reverse=True)))


def _time(event: Object) -> datetime:
    observed = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp")
    return moment(observed or event.get("eventTime") or event["metadata"].get("creationTimestamp")) or LATEST
