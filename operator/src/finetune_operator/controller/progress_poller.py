"""Poll the progress of running trainers from their pods. An unreachable trainer is reported, never restarted."""

import asyncio
import logging
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
TIMEOUT = aiohttp.ClientTimeout(total=5)


class ProgressError(Exception):
    """A trainer's response is unusable."""


class ProgressPoller:
    """One task that polls every running trainer in turn."""

    def __init__(
        self, cache: WatchCache, queue: WorkQueue, settings: Settings, metrics: Metrics, port: int = PROGRESS_PORT
    ) -> None:
        self._cache = cache
        self._queue = queue
        self._interval = settings.progress_interval_seconds
        self._metrics = metrics
        self._port = port

    async def run(self) -> None:
        """Poll forever; a round takes at least the interval, and longer with very many trainers."""
        loop = asyncio.get_running_loop()
        async with open_session() as session:
            polled: dict[str, float] = {}
            while True:
                now = loop.time()
                interval = max(self._interval, len(self._cache.targets) / POLLS_PER_SECOND)
                due = [
                    (key, target)
                    for key, target in self._cache.targets.items()
                    if now - polled.get(target.pod_uid, -interval) >= interval
                ]
                polled = {uid: at for uid, at in polled.items() if now - at < 2 * interval}
                polled |= {target.pod_uid: now for _, target in due}
                for start in range(0, len(due), POLLS_PER_SECOND):
                    batch = due[start : start + POLLS_PER_SECOND]
                    await asyncio.gather(*(self._poll(session, key, target) for key, target in batch))
                await asyncio.sleep(1)

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
