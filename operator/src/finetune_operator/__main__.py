"""Start the operator: connect its parts, and exit when one of them ends."""

import asyncio
import contextlib
import functools
import json
import logging
import signal
import sys
from datetime import timedelta
from typing import cast

from pydantic import ValidationError

from finetune_api.text.printable import PrintableFormatter, printable
from finetune_operator.cluster import Cluster
from finetune_operator.controller.handlers import watch
from finetune_operator.controller.health import Health
from finetune_operator.controller.http_server import serve
from finetune_operator.controller.intake import Intake
from finetune_operator.controller.leader import Leader
from finetune_operator.controller.progress_poller import ProgressPoller
from finetune_operator.controller.reconciler import Reconciler
from finetune_operator.controller.scrape import Scrape
from finetune_operator.controller.watch_cache import WatchCache
from finetune_operator.controller.workqueue import WorkQueue, work
from finetune_operator.kube.errors import ClusterError, Refused
from finetune_operator.metrics.registry import Metrics
from finetune_operator.rights import list_missing_rights
from finetune_operator.settings import Settings

log = logging.getLogger("finetune_operator")
WAIT_SECONDS = 2.0
SHUTDOWN_SECONDS = 15.0
FLUSH_SECONDS = 2.0
"""The Lease is held for as long as the last events are posted."""


class JsonFormatter(PrintableFormatter):
    """Formats each record as one line of JSON, whose texts have no effect on the terminal of a reader either."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        return json.dumps(line | ({"error": self.formatException(record.exc_info)} if record.exc_info else {}))


def set_up_logging(settings: Settings) -> None:
    """Log to standard error, in the format and from the level of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    text = PrintableFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))


async def wait_until_served(cluster: Cluster) -> None:
    """Wait for the API server and for the CRD, which may be installed shortly after the operator."""
    while True:
        try:
            if await cluster.is_served():
                return
            log.warning("the API server does not serve FineTuneJobs: is the CRD installed?")
        except ClusterError as problem:
            log.warning("the API server is unreachable: %s", problem)
        await asyncio.sleep(WAIT_SECONDS)


async def find_kueue(cluster: Cluster) -> str | None:
    """Return the version of Kueue's API in which Workloads are watched; None if there is no Kueue.

    A request that fails is repeated: without an answer, jobs would be served as in a cluster without Kueue.

    Raises:
        Refused: Kueue is too old, or too new.
    """
    while True:
        try:
            version = await cluster.find_kueue()
            break
        except Refused as problem:
            log.error("Workloads are not watched: %s", problem)
            raise
        except ClusterError as problem:
            log.warning("cannot detect Kueue; jobs are served once it is known: %s", problem)
        await asyncio.sleep(WAIT_SECONDS)
    if version:
        log.info("found Kueue: watching Workloads (%s)", version)
    else:
        log.debug("no Kueue: not watching Workloads")
    return version


async def check_rights(cluster: Cluster, settings: Settings) -> None:
    """Log missing rights; the jobs that they block report them in condition Accepted."""
    try:
        missing = await list_missing_rights(cluster, settings)
    except ClusterError as problem:
        log.warning("rights not checked: %s", problem)
        return
    for right in missing:
        log.error("the operator's role lacks: %s", right)


async def work_when_synced(cache: WatchCache, queue: WorkQueue, reconciler: Reconciler) -> None:
    """Work on jobs once all objects are known: one that was not listed yet would count as deleted."""
    await cache.store.is_synced.wait()
    await work(queue, reconciler.handle)


async def run(settings: Settings) -> None:
    """Run until SIGTERM, or until a part fails."""
    # The first process of a container ignores the signal without a handler; kopf replaces this one.
    stop = cast("asyncio.Task[None]", asyncio.current_task()).cancel
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    queue = WorkQueue(settings.workers)
    cache, metrics = WatchCache(), Metrics(timedelta(seconds=settings.finished_job_metrics_seconds))
    health, scrape = Health(queue, cache.silent_for, cache.store.is_synced), Scrape(queue, cache, metrics)
    servers = [await serve(health.routes, settings.health_port), await serve(scrape.routes, settings.metrics_port)]
    cluster = Cluster(settings, metrics)
    leader = Leader(settings, cluster)
    cluster.may_write = leader.may_write
    health.other_leader = lambda: leader.other_leader
    metrics.leading.set_function(lambda: leader.is_leading)
    try:
        await wait_until_served(cluster)
        await leader.acquire()
        reconciler = Reconciler(cluster, cache, queue, settings, metrics)
        # kopf cancels what is created after it has started, and waits for that.
        parts = [
            *(asyncio.create_task(work_when_synced(cache, queue, reconciler)) for _ in range(settings.workers)),
            asyncio.create_task(ProgressPoller(cache, queue, settings, metrics).run()),
            asyncio.create_task(reconciler.events.run()),
            asyncio.create_task(leader.hold()),
        ]
        more = []
        if settings.releases:
            from finetune_operator.release.watch import ReleaseController  # noqa: PLC0415 -- optional

            releases = ReleaseController(cluster, settings, metrics)
            parts.append(asyncio.create_task(releases.work()))
            more.append(releases.watch)
        intake = Intake(cache, queue, metrics, settings)
        watching = asyncio.create_task(watch(intake, cache, settings, functools.partial(find_kueue, cluster), more))
        await check_rights(cluster, settings)
        log.info("serving %s", ", ".join(settings.watch_namespaces) or "all namespaces")
        done, _ = await asyncio.wait([*parts, watching], return_when=asyncio.FIRST_COMPLETED)
        if all(part.cancelled() for part in done):  # kopf cancels other tasks when it stops
            done, _ = await asyncio.wait([watching], timeout=SHUTDOWN_SECONDS)
        for part in [*parts, watching]:
            part.cancel()
        await asyncio.wait([*parts, watching], timeout=SHUTDOWN_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await reconciler.events.flush()
        for part in done or {watching}:
            part.result()
    finally:
        await leader.release()
        await cluster.close()
        for server in servers:
            await server.cleanup()


def main() -> None:
    """Read the settings and run; exit with 2 if a setting is invalid, and with 1 after an error."""
    try:
        settings = Settings()
    except ValidationError as problem:
        for item in problem.errors():
            sys.stderr.write(f"FINETUNE_{str(item['loc'][0]).upper()}: {item['msg']}\n")
        sys.exit(2)
    set_up_logging(settings)
    try:
        asyncio.run(run(settings))
    except asyncio.CancelledError:
        log.info("stopped before this process led or watched")
    except Exception:
        log.exception("the operator ends because a part of it failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
