"""Reports of the trainer written into the status: later figures win, and nothing known is lost."""

from datetime import datetime
from typing import TypeVar

from finetune_api.handoff import ProgressReport, Report, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Lineage, Progress, StatusBlock

B = TypeVar("B", bound=StatusBlock)


def merged(old: B | None, new: B) -> B:
    """The old block with every field that the new one has."""
    if old is None:
        return new
    given = {name: value for name in type(new).model_fields if (value := getattr(new, name)) is not None}
    return old.model_copy(update=given)


def take_report(status: FineTuneJobStatus, report: Report) -> None:
    """What a trusted report says of dataset, settings, figures and artifacts."""
    if report.dataset:
        status.dataset = report.dataset
    if report.resolved:
        status.resolved = merged(status.resolved, report.resolved)
    if report.metrics:
        status.metrics = merged(status.metrics, report.metrics)
    if report.early_stopping:
        status.early_stopping = report.early_stopping
    if report.evaluation:
        status.evaluation = report.evaluation
    if report.artifacts:
        status.artifacts = report.artifacts
        status.checkpoint = None  # they are removed once the result is published
        _show_done(status, report)


def _show_done(status: FineTuneJobStatus, report: Report) -> None:
    final = Progress(display="100%", percent=100, step=report.last_step, stage="Done")
    progress = merged(status.progress, final)
    # What the report does not repeat is as old as the last look at the pod, and would contradict "100%".
    status.progress = progress.model_copy(update={"estimated_remaining_seconds": None, "epoch": None})


def take_lineage(status: FineTuneJobStatus, report: Report, spec: FineTuneJobSpec) -> None:
    """Where the result comes from; image and parents are the operator's own observations and stay as pinned."""
    known = Lineage(base_model=spec.model.uri, config_sha256=config_sha256(spec), seed=spec.hyperparameters.seed)
    pinned = status.lineage or Lineage()
    lineage = merged(merged(status.lineage, known), report.lineage or Lineage())
    own = {"trainer_image": pinned.trainer_image or lineage.trainer_image}
    status.lineage = lineage.model_copy(update={**own, "parent": pinned.parent, "reward_job": pinned.reward_job})


def show_progress(status: FineTuneJobStatus, report: ProgressReport, at: datetime) -> None:
    """The running trainer's last answer."""
    status.progress = report.progress.model_copy(update={"last_updated_time": at.replace(microsecond=0)})
    status.metrics = merged(status.metrics, report.metrics)
    status.checkpoint = report.checkpoint or status.checkpoint
    if report.early_stopping:
        status.early_stopping = report.early_stopping
    if report.resolved:
        status.resolved = merged(status.resolved, report.resolved)
