"""Warning events of pods and Jobs that do not start: one list for all of a namespace, read ever less often for each."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from finetune_operator.cluster import Cluster
from finetune_operator.kube.errors import Overloaded, RetryLater
from finetune_operator.kube.observed import Warnings
from finetune_operator.policy.pods.pod_diagnosis import EventQuery

log = logging.getLogger(__name__)

SHARED_SECONDS = timedelta(seconds=5)
"""How long one list serves all objects of its namespace: the API server reads every event for it."""
PAUSE, MAX_PAUSE = timedelta(seconds=9), timedelta(minutes=4)
"""Between two reads of the same object's events; the first is a little shorter than the policies' own pause."""
MAX_KNOWN = 2048


@dataclass(frozen=True)
class _Known:
    warnings: Warnings
    pause: timedelta
    read_again_at: datetime


@dataclass(frozen=True)
class _Listed:
    by_uid: dict[str, Warnings] | None
    """None if the list failed."""
    at: datetime


class WarningEvents:
    """The events that `pod_diagnosis` asks for."""

    def __init__(self, cluster: Cluster, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        """By the UID of a pod or Job; of too many, the latest."""
        self._listed: dict[tuple[str, str], _Listed] = {}
        self._locks = WeakValueDictionary[tuple[str, str], asyncio.Lock]()
        """So that jobs of a namespace which wait at the same time share one list; they keep its lock."""

    async def read(self, namespace: str, query: EventQuery) -> Warnings:
        """Return the Warning events of an object, which are read less often the longer it waits."""
        now, known = self._clock(), self._known.pop(query.uid, None)
        if known is None or now >= known.read_again_at:
            pause = min(2 * known.pause, MAX_PAUSE) if known else PAUSE
            listed = await self._list(namespace, query.kind)
            nothing = known.warnings if known and listed is None else Warnings(query.uid, ())
            known = _Known((listed or {}).get(query.uid) or nothing, pause, now + pause)
        self._known[query.uid] = known
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return known.warnings

    async def _list(self, namespace: str, kind: str) -> dict[str, Warnings] | None:
        place = (namespace, kind)
        async with self._locks.setdefault(place, asyncio.Lock()):
            now = self._clock()
            self._listed = {key: one for key, one in self._listed.items() if now - one.at < SHARED_SECONDS}
            if place not in self._listed:
                self._listed[place] = _Listed(await self._try_list(namespace, kind), now)
            return self._listed[place].by_uid

    async def _try_list(self, namespace: str, kind: str) -> dict[str, Warnings] | None:
        """List the events. An API server may keep them in a store of their own: if it is away, no job waits for it."""
        try:
            return await self._cluster.list_warnings(namespace, kind)
        except Overloaded:
            raise
        except RetryLater as problem:
            log.warning("the events of namespace %s cannot be listed: %s", namespace, problem)
            return None
