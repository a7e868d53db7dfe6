"""`list`: the jobs as a table, those that have not ended first."""

from collections.abc import Sequence
from datetime import datetime

from rich.text import Text

from finetune_client.cluster.job import Job
from finetune_client.figures import NONE, duration, number
from kubectl_finetune.display.table import between, columns

HEADER = (
    "NAME",
    "PHASE",
    "OBJECTIVE",
    "METHOD",
    "PROGRESS",
    "LEFT",
    "TRAIN-LOSS",
    "EVAL-LOSS",
    "QUEUE",
    "REASON",
    "AGE",
)


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Return running and waiting jobs before ended ones, the newest first."""
    newest = sorted(jobs, key=lambda job: str(job.raw["metadata"].get("creationTimestamp", "")), reverse=True)
    return sorted(newest, key=lambda job: job.has_ended)


def table(jobs: Sequence[Job], now: datetime, *, everywhere: bool) -> Text:
    """Return a table with one line a job."""
    lead = ("NAMESPACE",) if everywhere else ()
    rows = [((job.namespace,) if everywhere else ()) + _row(job, now) for job in in_order(jobs)]
    return columns((*lead, *HEADER), rows)


def _row(job: Job, now: datetime) -> tuple[str, ...]:
    status = job.status
    progress, metrics, resolved = status.progress, status.metrics, status.resolved
    left = progress.estimated_remaining_seconds if progress and not job.has_ended else None
    return (
        job.name,
        "Deleting" if job.deletion else job.phase,
        str(job.field("objective") or NONE),
        (resolved and resolved.method) or NONE,
        (progress and progress.display) or NONE,
        duration(left),
        number(metrics.train_loss if metrics else None),
        number(metrics.eval_loss if metrics else None),
        str(job.field("scheduling.queueName") or NONE),
        status.reason or NONE,
        between(job.created, now),
    )
