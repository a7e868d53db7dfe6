"""Poll the progress of running trainers from their pods. An unreachable trainer is reported, never restarted."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
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
"""Those of all namespaces, which get them in the order of their requests: the default limit of an aiohttp session."""
TIMEOUT = aiohttp.ClientTimeout(total=5)


class ProgressError(Exception):
    """A trainer's response is unusable."""


class ProgressPoller:
    """Polls every running trainer: a round at a time for each namespace, so that none waits for another's trainers."""

    def __init__(
        self, cache: WatchCache, queue: WorkQueue, settings: Settings, metrics: Metrics, port: int = PROGRESS_PORT
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._interval = settings.progress_interval_seconds
        self._metrics = metrics
        self._port = port
        self._connections = asyncio.Semaphore(MAX_CONNECTIONS)

    async def run(self) -> None:
        """Poll forever; a trainer is polled once in the interval, and less often with very many trainers."""
        loop = asyncio.get_running_loop()
        polled: dict[str, float] = {}
        rounds: dict[str, asyncio.Task[None]] = {}
        async with open_session() as session, asyncio.TaskGroup() as group:
            while True:
                targets: defaultdict[str, dict[Key, Target]] = defaultdict(dict)
                for key, target in self._cache.targets.items():
                    targets[key.namespace][key] = target
                intervals = share_polls({namespace: len(found) for namespace, found in targets.items()}, self._interval)
                now = loop.time()
                known = {target.pod_uid for target in self._cache.targets.values()}
                polled = {uid: at for uid, at in polled.items() if uid in known}
                rounds = {namespace: task for namespace, task in rounds.items() if not task.done()}
                for namespace in targets.keys() - rounds.keys():
                    due = {
                        key: target
                        for key, target in targets[namespace].items()
                        if now - polled.get(target.pod_uid, -intervals[namespace]) >= intervals[namespace]
                    }
                    polled |= {target.pod_uid: now for target in due.values()}
                    if due:
                        rounds[namespace] = group.create_task(self._poll_all(session, due))
                await asyncio.sleep(1)

    async def _poll_all(self, session: aiohttp.ClientSession, targets: Mapping[Key, Target]) -> None:
        due = list(targets.items())
        for start in range(0, len(due), POLLS_AT_ONCE):
            batch = due[start : start + POLLS_AT_ONCE]
            await asyncio.gather(*(self._poll(session, key, target) for key, target in batch))

    async def _poll(self, session: aiohttp.ClientSession, key: Key, target: Target) -> None:
        try:
            async with self._connections:  # before the timeout begins
                report = await fetch_progress(session, target, self._port)
        except (ProgressError, aiohttp.ClientError, TimeoutError, OSError) as problem:
            self._record_failure(key, target, f"{type(problem).__name__}: {problem}"[:300])
            return
        except Exception as problem:  # an unexpected response of one pod must not end the task that polls all pods
            log.exception("%s: unexpected error while polling", key)
            self._record_failure(key, target, f"the response is unreadable: {type(problem).__name__}")
            return
        self._metrics.pulls.labels("answered").inc()
        self._cache.readings[key] = Reading(target.pod_uid, datetime.now(UTC), report)
        self._queue.add(key)

    def _record_failure(self, key: Key, target: Target, problem: str) -> None:
        self._metrics.pulls.labels("failed").inc()
        now = datetime.now(UTC)
        last = self._cache.readings.get(key)
        if last is None or last.pod_uid != target.pod_uid:
            last = Reading(target.pod_uid, now)
        since = last.unreachable_since or now
        self._cache.readings[key] = Reading(target.pod_uid, last.at, last.report, since, last.problem or problem)
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
    """Open an HTTP session without proxy, cookies and decompression, because pods are untrusted."""
    return aiohttp.ClientSession(
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
