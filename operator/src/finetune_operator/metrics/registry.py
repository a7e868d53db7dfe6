"""The registry of the operator process: its own metrics, and the collector of the jobs'."""

import time
from collections.abc import Mapping
from datetime import timedelta

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from finetune_api import __version__
from finetune_api.names import PLURAL
from finetune_operator.metrics.job_collector import JobCollector
from finetune_operator.metrics.releases import ReleaseCollector

disable_created_metrics()  # type: ignore[no-untyped-call]
RESULTS = ("done", "conflict", "error", "bug")
"""Results of a reconcile: `error` is an error of the API server, `bug` an unexpected exception."""
WATCHED = (PLURAL, "jobs", "pods")


class Metrics:
    """All metrics of the operator process."""

    def __init__(self, keeps_finished: timedelta | None = None) -> None:
        self.registry = CollectorRegistry()
        """All but the series of the jobs: these are too many to be built at each scrape."""
        self.jobs = JobCollector(keeps_finished=keeps_finished)
        self.registry.register(self.jobs)
        self.releases = ReleaseCollector()
        self.registry.register(self.releases)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("finetune_operator_build", "Version of the operator.", registry=self.registry).info(
            {"version": __version__}
        )
        self.reconciles = Counter(
            "finetune_operator_reconcile", "Reconciles of a job, by result.", ["result"], registry=self.registry
        )
        self.seconds = Histogram(
            "finetune_operator_reconcile_seconds", "Duration of a reconcile of a job.", registry=self.registry
        )
        self.requests = Counter(
            "finetune_operator_api_requests",
            "Requests to the API server, except for watches.",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.request_limit = Gauge(
            "finetune_operator_api_request_limit",
            "Requests to the API server that may be under way at once; fewer after it refused some (429).",
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "finetune_operator_queue_depth", "Jobs waiting to be reconciled.", registry=self.registry
        )
        self.last_event = Gauge(
            "finetune_operator_last_event_timestamp_seconds",
            "Last watch event, or the start of the operator before the first, by resource.",
            ["resource"],
            registry=self.registry,
        )
        self.pulls = Counter(
            "finetune_operator_progress_pulls", "Polls of a trainer's progress, by result.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.leading = Gauge(
            "finetune_operator_leading", "Whether this replica reconciles (1) or waits to take over (0).",
            registry=self.registry,
        )  # fmt: skip
        self.other_operators = Gauge(
            "finetune_operator_other_operators",
            "Other operators that have written the status of a job of this one since its start.",
            registry=self.registry,
        )
        self._started = time.time()
        for result in RESULTS:
            self.reconciles.labels(result)
        for result in ("answered", "failed"):
            self.pulls.labels(result)

    def prepare_scrape(self, queue_depth: int, last_event: Mapping[str, float]) -> None:
        """Set the gauges whose values are kept elsewhere, and remove series that are too old."""
        self.jobs.remove_expired()
        self.queue_depth.set(queue_depth)
        for resource in {*WATCHED, *last_event}:
            self.last_event.labels(resource).set(last_event.get(resource, self._started))

    def expose(self) -> bytes:
        """Return every metric in Prometheus' text format; any thread may call this."""
        return generate_latest(self.registry) + self.jobs.expose()
