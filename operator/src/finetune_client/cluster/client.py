"""The requests to a cluster: FineTuneJobs, their pods, logs and events."""

import difflib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from finetune_api import names
from finetune_api.text.printable import printable
from finetune_client.cluster.connection import (
    APPLY,
    PLUGIN,
    BadRequest,
    Connection,
    Expired,
    FieldConflict,
    NoApi,
    Query,
    Stop,
    open_connection,
    read_object,
)
from finetune_client.cluster.job import Job, Object
from finetune_client.errors import FineTuneError, Forbidden, NotFound, WrongUse
from finetune_client.metadata import NAMESPACE_FIX, is_namespace

PAGE = 500
STRICT: dict[str, str | int] = {"fieldValidation": "Strict"}
WATCH_SECONDS = 60
"""Length of one watch; then the job is read again, so that a connection that was silently lost is noticed."""
SLACK_SECONDS = 10


class Cluster:
    """One namespace of a cluster; lists can cover all namespaces."""

    def __init__(self, connection: Connection, namespace: str, options: str = "") -> None:
        if not is_namespace(namespace):
            raise WrongUse(f"{printable(json.dumps(namespace))} cannot be the name of a namespace", NAMESPACE_FIX)
        self.namespace = namespace
        self.options = options
        """What a command for this cluster has at its end: context and kubeconfig, if they were given."""
        self._connection = connection

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return self._connection.server

    def get_job(self, name: str, seconds: float | None = None) -> Job:
        """Return the job as stored now, within so many seconds; the error for a missing one suggests similar names."""
        return Job.from_object(self._get(name, seconds))

    def get_controlled_job(self, name: str) -> Job:
        """Return the job, if need be without parts of its status that this version cannot read.

        Its conditions must be readable, because they say whether it has ended.
        """
        raw = self._get(name)
        job = Job.from_list(raw)
        return job if job.status.conditions else Job.from_object(raw)

    def _get(self, name: str, seconds: float | None = None) -> Object:
        try:
            return self._connection.call("GET", self._path(name), seconds=seconds)
        except NoApi:
            raise
        except NotFound:
            raise self._unknown(name) from None

    def find_job(self, name: str) -> Job | None:
        """Return the job, or None if none has that name."""
        try:
            return self.get_job(name)
        except NotFound:
            return None

    def list_jobs(self, *, everywhere: bool = False, selector: str = "") -> list[Job]:
        """Return the jobs of the namespace, or of all namespaces."""
        path = f"/apis/{names.API_VERSION}/{names.PLURAL}" if everywhere else self._path()
        found: list[Job] = []
        token = ""
        while True:
            query: Query = {"labelSelector": selector, "limit": PAGE, "continue": token}
            try:
                page = self._connection.call("GET", path, query=query)
            except BadRequest as refused:
                if not selector:
                    raise
                fix = "write key=value or key!=value, with commas between, as for kubectl"
                raise WrongUse(f"{selector} is not a label selector: {refused.message}", fix) from None
            except Expired:  # the API server no longer has the version of the first page
                page, found = self._connection.call("GET", path, query={"labelSelector": selector}), []
            found += [Job.from_list(item) for item in page["items"]]
            token = page["metadata"].get("continue", "")
            if not token:
                return found

    def create_job(self, manifest: Object) -> Job:
        """Create a job; unknown fields are refused."""
        return Job.from_object(self._connection.call("POST", self._path(), manifest, STRICT))

    def apply_job(self, manifest: Object, manager: str, *, force: bool) -> Job:
        """Create the job, or change the fields that this manager owns, by server-side apply; `force` also changes those
        of other managers."""
        query = STRICT | {"fieldManager": manager} | ({"force": "true"} if force else {})
        path = self._path(str(manifest["metadata"]["name"]))
        try:
            return self._patch(path, manifest, query)
        except FieldConflict as conflict:
            # What a manager has created or patched is not what it has applied: the API server knows it as two owners.
            if conflict.managers != {manager}:
                raise
        return self._patch(path, manifest, query | {"force": "true"})

    def watch_job(self, job: Job, stop: Stop, seconds: int, slack: float) -> Iterator[Object]:
        """Yield the watch events of the job after the given state, for so many seconds; the API server may be late by
        `slack`."""
        query: dict[str, str | int] = {
            "watch": "true",
            "fieldSelector": f"metadata.name={job.name}",
            "resourceVersion": str(job.raw["metadata"].get("resourceVersion", "")),
            "timeoutSeconds": seconds,
        }
        rest = b""
        for chunk in self._connection.stream(self._path(), query, stop, seconds + slack):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in filter(None, lines):
                yield read_object(line)

    def patch_spec(self, name: str, change: Object) -> None:
        """Change operational fields of the spec."""
        self._connection.call("PATCH", self._path(name), {"spec": change})

    def delete_job(self, job: Job) -> None:
        """Delete exactly that job; its Jobs, pods and ConfigMaps go with it."""
        body = {"propagationPolicy": "Background", "preconditions": {"uid": job.uid}}
        self._connection.call("DELETE", self._path(job.name), body)

    def list_pods(self, job: Job, component: names.Component) -> list[Object]:
        """Return the job's pods of that component, oldest first; a merge pod is one of the trainer's."""
        wanted = f"{component},{names.Component.MERGE}" if component is names.Component.TRAINER else component.value
        selector = f"{names.LABEL_JOB_NAME},{names.LABEL_COMPONENT} in ({wanted})"
        page = self._connection.call(
            "GET", f"/api/v1/namespaces/{job.namespace}/pods", query={"labelSelector": selector}
        )
        owned = [
            one
            for one in page["items"]
            if (one["metadata"].get("annotations") or {}).get(names.ANNOTATION_JOB_NAME) == job.name
            # one that is older is of a deleted job of this name, and still saves its checkpoint
            and not ("" < str(one["metadata"]["creationTimestamp"]) < job.raw["metadata"].get("creationTimestamp", ""))
        ]
        return sorted(owned, key=lambda one: str(one["metadata"]["creationTimestamp"]))

    def list_events(self, job: Job) -> list[Object]:
        """Return the events of the job, oldest first; none if reading them is forbidden."""
        path, fields = f"/api/v1/namespaces/{job.namespace}/events", f"involvedObject.uid={job.uid}"
        try:
            items: list[Object] = self._connection.call("GET", path, query={"fieldSelector": fields})["items"]
        except Forbidden:
            return []
        return sorted(items, key=read_event_time)

    def read_log(self, pod: Object, *, follow: bool, tail: int | None, timestamps: bool) -> Iterator[bytes]:
        """Yield the log of the pod's trainer container, as it is written."""
        meta = pod["metadata"]
        options: dict[str, str | int] = {"container": names.TRAINER_CONTAINER}
        options |= {"follow": "true"} if follow else {}
        options |= {"timestamps": "true"} if timestamps else {}
        options |= {"tailLines": tail} if tail is not None else {}
        yield from self._connection.stream(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/log", options)

    def in_namespace(self, namespace: str) -> "Cluster":
        """Return the same cluster with another namespace."""
        return Cluster(self._connection, namespace, self.options)

    def _patch(self, path: str, manifest: Object, query: Query) -> Job:
        return Job.from_object(self._connection.call("PATCH", path, manifest, query, APPLY))

    def _path(self, name: str = "") -> str:
        base = f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/{names.PLURAL}"
        return f"{base}/{quote(name, safe='')}" if name else base

    def _unknown(self, name: str) -> NotFound:
        try:
            there = [job.name for job in self.list_jobs()]
        except FineTuneError:
            there = []
        every = f"kubectl finetune list -A{self.options} shows those of all namespaces"
        near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(near)}?" if near else every
        return NotFound(f"no {names.KIND} {name} in namespace {self.namespace}", fix)


def open_cluster(kubeconfig: Path | None, context: str | None, namespace: str | None, agent: str = PLUGIN) -> Cluster:
    """Return the cluster and namespace of the options, else of the kubeconfig."""
    connection = open_connection(kubeconfig, context, agent)
    given = {"--context": context, "--kubeconfig": kubeconfig}
    options = "".join(f" {name} {shlex.quote(str(value))}" for name, value in given.items() if value)
    return Cluster(connection, namespace or connection.namespace, options)


def read_event_time(event: Object) -> str:
    """Return when an event was last observed; empty if it has no time."""
    observed = (event.get("series") or {}).get("lastObservedTime")
    return str(observed or event.get("lastTimestamp") or event.get("eventTime") or "")
