"""Post events through the events API; a repeated one is counted in its series, instead of being posted again."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from finetune_api import names
from finetune_operator.cluster import Cluster
from finetune_operator.controller.events import Event
from finetune_operator.kube.errors import ClusterError, Gone
from finetune_operator.kube.objects import Key, Object

log = logging.getLogger(__name__)
MAX_NOTE_BYTES = 1024
"""The events API refuses a longer note."""
SERIES = timedelta(minutes=6)
"""For so long after an event the same one belongs to its series, as with the recorder of client-go."""
MAX_SERIES = 1024


@dataclass(frozen=True)
class _Series:
    name: str
    count: int
    last: datetime


class Subject(Protocol):
    """The object that an event is about."""

    @property
    def key(self) -> Key:
        """Namespace and name."""

    @property
    def uid(self) -> str:
        """UID of the object."""

    @property
    def resource_version(self) -> str:
        """Resource version of the object with the status that the event describes."""


class EventRecorder:
    """Recorder of the events of one kind of objects; an event that cannot be posted is logged, and nothing waits for
    it."""

    def __init__(self, cluster: Cluster, instance: str, clock: Callable[[], datetime], kind: str = names.KIND) -> None:
        self._kind = kind
        self._cluster = cluster
        self._instance = instance
        self._clock = clock
        self._recent: OrderedDict[tuple[str, Event], _Series] = OrderedDict()

    async def record(self, subject: Subject, event: Event, at: datetime | None = None) -> None:
        """Post the event of that time, by default now; or count it if the same one was posted a short time before."""
        now, known = at or self._clock(), self._recent.pop((subject.uid, event), None)
        series = _Series(known.name, known.count + 1, now) if known and now - known.last < SERIES else None
        try:
            series = await self._send(subject, event, series, now)
        except ClusterError as problem:
            log.warning("%s: event not posted: %s", subject.key, problem)
        if series:  # also one that could not be counted, which the next one counts
            self._recent[subject.uid, event] = series
        if len(self._recent) > MAX_SERIES:
            self._recent.popitem(last=False)

    async def _send(self, subject: Subject, event: Event, series: _Series | None, now: datetime) -> _Series:
        if series:
            counted = {"count": series.count, "lastObservedTime": _stamp(now)}
            try:
                await self._cluster.count_event(subject.key.namespace, series.name, counted)
            except Gone:  # Kubernetes has removed it, after an hour by default
                pass
            else:
                return series
        body = build_event(subject, event, self._instance, now, self._kind)
        await self._cluster.post_event(body)
        return _Series(body["metadata"]["name"], 1, now)


def build_event(subject: Subject, event: Event, instance: str, now: datetime, kind: str = names.KIND) -> Object:
    """Return the Event object; its name is a hash of its content, so that a repeated post is the same event."""
    content = f"{subject.uid}/{subject.resource_version}/{event.reason}/{event.message}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "namespace": subject.key.namespace,
            "name": f"{subject.key.name[:230].rstrip('-.')}.{hashlib.sha256(content.encode()).hexdigest()[:16]}",
        },
        "eventTime": _stamp(now),
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": kind,
            "namespace": subject.key.namespace,
            "name": subject.key.name,
            "uid": subject.uid,
            "resourceVersion": subject.resource_version,
        },
        "type": "Warning" if event.is_warning else "Normal",
        "reason": event.reason.value,
        "note": event.message.encode()[:MAX_NOTE_BYTES].decode(errors="ignore"),
        "reportingController": names.MANAGED_BY,
        "reportingInstance": instance[:128] or names.MANAGED_BY,
        "action": "Reconcile",
    }


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
