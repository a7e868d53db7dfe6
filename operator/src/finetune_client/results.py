"""The result of a job that has ended: what was published, or why nothing was."""

from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.evaluation import EvaluationStatus
from finetune_api.handoff import Artifact
from finetune_api.names import ConditionType
from finetune_api.status import FineTuneJobStatus, KeptCheckpoint, Metrics
from finetune_client import storage
from finetune_client.cluster.job import Job
from finetune_client.errors import FineTuneError, JobFailed

REASONS = "docs/troubleshooting.md"


class Report(str):
    """The report as Markdown, which a notebook renders."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class JobResult:
    """What a complete job has published."""

    job: Job = field(repr=False)
    uri: str
    """Prefix of all published files."""
    digest: str
    """SHA-256 of `manifest.json`, which has the digest of every published file."""
    adapter_uri: str | None
    merged_uri: str | None
    gguf_uri: str | None
    kept_checkpoints: list[KeptCheckpoint]
    """The adapters of other steps (`checkpoint.keep`), the best first."""
    report_uri: str | None
    lineage_uri: str | None
    size_bytes: int | None
    verdict: str
    """`Better`, `Worse`, `NoMeasurableDifference` or `NotEvaluated`."""
    evaluation: EvaluationStatus
    """The verdict with its figures, and the results of the gates."""
    metrics: Metrics
    reason: str
    """Reason of the condition `Complete`."""
    message: str
    """Its message."""

    @property
    def status(self) -> FineTuneJobStatus:
        """All of the job's status."""
        return self.job.status

    def report(self, endpoint: str | None = None) -> Report:
        """Return the report as Markdown, read from storage with your own AWS variables or profile and verified."""
        return Report(storage.open_storage(self.job, endpoint).read(Artifact.REPORT).decode())

    def download(self, folder: str | Path, what: str = Artifact.ADAPTER, endpoint: str | None = None) -> list[Path]:
        """Write the adapter, or another file or folder of the result, below a folder; an empty `what` is all of it.

        Each file is verified by the digest in the job's status; the keys are your own AWS variables or profile.
        """
        return storage.open_storage(self.job, endpoint).download(Path(folder), what)


def require_result(job: Job) -> JobResult:
    """Return the result of an ended job; raise JobFailed if it has failed."""
    status, own = job.status, job.status.artifacts
    if status.is_true(ConditionType.FAILED):
        found = status.condition(ConditionType.FAILED)
        reason = found.reason if found else status.reason or ""
        is_checked = status.is_true(ConditionType.VALIDATED)
        log = "logs()" if is_checked else "logs(preflight=True)"
        fix = f"{log} has the log of its pod; {REASONS}#{reason.lower()} has what to change"
        raise JobFailed(job.name, reason, (found and found.message) or job.why, fix, status)
    complete = status.condition(ConditionType.COMPLETE)
    if complete is None or complete.status != "True" or own is None or not own.uri:
        raise FineTuneError(f"{job.name} has no result yet ({job.phase})", job.why)
    evaluation = status.evaluation or EvaluationStatus()
    return JobResult(
        job=job,
        uri=own.uri,
        digest=own.manifest_sha256 or "",
        adapter_uri=own.adapter_uri,
        merged_uri=own.merged_uri,
        gguf_uri=own.gguf_uri,
        kept_checkpoints=own.kept_checkpoints or [],
        report_uri=own.report_uri,
        lineage_uri=own.lineage_uri,
        size_bytes=own.size_bytes,
        verdict=evaluation.verdict or "NotEvaluated",
        evaluation=evaluation,
        metrics=status.metrics or Metrics(),
        reason=complete.reason,
        message=complete.message,
    )
