"""Poll the progress of running trainers from their pods. An unreachable trainer is reported, never restarted."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import aiohttp
import orjson
from pydantic import ValidationError

from finetune_api.handoff import PROGRESS_LIMIT_BYTES, PROGRESS_PATH, PROGRESS_PORT, ProgressReport
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue
from finetune_operator.kube.objects import Key
from finetune_operator.kube.observed import Reading, Target
from finetune_operator.metrics.registry import Metrics
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)
POLLS_PER_SECOND = 20
POLLS_AT_ONCE = 20
"""Polls of one namespace at the same time; each may take the whole timeout."""
MAX_CONNECTIONS = 100
"""Those of all namespaces: the limit of the session. More polls than that wait for their turn."""
INFINITY = float("inf")
TIMEOUT = aiohttp.ClientTimeout(total=5)


class ProgressError(Exception):
    """A trainer's response is unusable."""


class ProgressPoller:
    """Polls every running trainer, each by itself: one that is silent delays no other."""

    def __init__(
        self, cache: WatchCache, queue: WorkQueue, settings: Settings, metrics: Metrics, port: int = PROGRESS_PORT
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._interval = settings.progress_interval_seconds
        self._metrics = metrics
        self._port = port
        self._polled: dict[str, float] = {}
        """When each pod was last polled."""
        self._running: Counter[str] = Counter()
        """Polls by namespace."""

    async def run(self) -> None:
        """Poll forever; a trainer is polled once in the interval, and less often with very many trainers."""
        loop = asyncio.get_running_loop()
        async with open_session() as session, asyncio.TaskGroup() as group:
            while True:
                for key, target in self._find_due(loop.time()):
                    self._running[key.namespace] += 1
                    group.create_task(self._poll_and_release(session, key, target))
                await asyncio.sleep(1)

    def _find_due(self, now: float) -> list[tuple[Key, Target]]:
        """Return the trainers to poll now, of each namespace those that have waited longest."""
        targets: defaultdict[str, list[tuple[Key, Target]]] = defaultdict(list)
        for key, target in self._cache.targets.items():
            targets[key.namespace].append((key, target))
        known = {target.pod_uid for target in self._cache.targets.values()}
        self._polled = {uid: at for uid, at in self._polled.items() if uid in known}
        intervals = share_polls({namespace: len(found) for namespace, found in targets.items()}, self._interval)
        found = []
        for namespace, mine in targets.items():
            waiting = [(self._polled.get(target.pod_uid, -INFINITY), key, target) for key, target in mine]
            due = sorted(one for one in waiting if now - one[0] >= intervals[namespace])
            found += due[: max(0, POLLS_AT_ONCE - self._running[namespace])]
        # After a restart all are due at once: they are spread, and stay so.
        first = sorted(found)[: min(POLLS_PER_SECOND, MAX_CONNECTIONS - self._running.total())]
        self._polled |= {target.pod_uid: now for _, _, target in first}
        return [(key, target) for _, key, target in first]

    async def _poll_and_release(self, session: aiohttp.ClientSession, key: Key, target: Target) -> None:
        try:
            await self._poll(session, key, target)
        finally:
            self._running[key.namespace] -= 1

    async def _poll(self, session: aiohttp.ClientSession, key: Key, target: Target) -> None:
        try:
            report = await fetch_progress(session, target, self._port)
        except (ProgressError, aiohttp.ClientError, TimeoutError, OSError) as problem:
            self._record_failure(key, target, f"{type(problem).__name__}: {problem}"[:300])
            return
        except Exception as problem:  # an unexpected response of one pod must not end the task that polls all pods
            log.exception("%s: unexpected error while polling", key)
            self._record_failure(key, target, f"the response is unreadable: {type(problem).__name__}")
            return
        self._metrics.pulls.labels("answered").inc()
        last = self._cache.readings.get(key)
        self._cache.readings[key] = Reading.of(report, target.pod_uid, datetime.now(UTC), last)
        self._queue.add(key)

    def _record_failure(self, key: Key, target: Target, problem: str) -> None:
        self._metrics.pulls.labels("failed").inc()
        now = datetime.now(UTC)
        last = self._cache.readings.get(key)
        if last is None or last.pod_uid != target.pod_uid:
            last = Reading(target.pod_uid, now)
        since = last.unreachable_since or now
        self._cache.readings[key] = replace(last, unreachable_since=since, problem=last.problem or problem)
        self._queue.add(key)


def share_polls(counts: Mapping[str, int], interval: float) -> dict[str, float]:
    """Return the time between two polls of a trainer in each namespace, from its number of trainers.

    Polls are limited in number; what namespaces with few trainers leave is shared by the others.
    """
    left = float(POLLS_PER_SECOND)
    found = {}
    for rank, (namespace, count) in enumerate(sorted(counts.items(), key=lambda item: item[1])):
        rate = min(count / interval, left / (len(counts) - rank))
        left -= rate
        found[namespace] = count / rate
    return found


def open_session() -> aiohttp.ClientSession:
    """Open an HTTP session without proxy, cookies and decompression, because pods are untrusted.

    It keeps no connection: the next poll of a trainer comes later than most are kept, and each idle one takes memory.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, force_close=True),
        timeout=TIMEOUT,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept-Encoding": "identity"},
    )


async def fetch_progress(session: aiohttp.ClientSession, target: Target, port: int) -> ProgressReport:
    """Return one trainer's progress: without redirects, capped, checked against the schema and the expected UIDs."""
    host = f"[{target.ip}]" if ":" in target.ip else target.ip
    url = f"http://{host}:{port}{PROGRESS_PATH}"
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ProgressError(f"HTTP {answer.status}")
        body = bytearray()
        async for chunk in answer.content.iter_chunked(8192):
            body += chunk
            if len(body) > PROGRESS_LIMIT_BYTES:
                raise ProgressError(f"the response is longer than {PROGRESS_LIMIT_BYTES} bytes")
    try:
        report = ProgressReport.model_validate(orjson.loads(body))
    except (orjson.JSONDecodeError, ValidationError) as problem:
        raise ProgressError("the response is not a progress report") from problem
    if report.job_uid != target.job_uid or report.pod_uid not in {None, target.pod_uid}:
        raise ProgressError("the response is from another trainer")
    return report
