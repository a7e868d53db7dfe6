"""Copy the trainer's reports into the status: later values win, and no value is lost."""

from datetime import datetime
from typing import TypeVar

from finetune_api.handoff import ProgressReport, Report, config_sha256
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import DatasetStatus, FineTuneJobStatus, Lineage, Progress, StatusBlock

B = TypeVar("B", bound=StatusBlock)
CHECKED = {
    "preflight_sha256": "rows or model files with the summary",
    "dataset_sha256": "training rows",
    "base_model_revision": "commit",
}
"""Fields of the lineage that preflight reports and the trainer repeats, with what they identify."""
QUIET = 60.0
"""Seconds in which a report without news is not written."""
PINNED = ("trainer_image", *CHECKED)
"""Fields of the lineage whose first value stays."""


def merged(old: B | None, new: B) -> B:
    """Return the old block, updated with every field that the new one has."""
    if old is None:
        return new
    given = {name: value for name in type(new).model_fields if (value := getattr(new, name)) is not None}
    return old.model_copy(update=given)


def record_report(status: FineTuneJobStatus, report: Report) -> None:
    """Record dataset, settings, metrics and artifacts of a trusted report."""
    record_dataset(status, report)
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
        status.checkpoint = status.trained_weights = None  # they are removed once the result is published
        _record_done(status, report)


def record_dataset(status: FineTuneJobStatus, report: Report | None) -> None:
    """Record what preflight found in the dataset."""
    if report and report.dataset:
        status.dataset = report.dataset


def dataset_sentence(dataset: DatasetStatus | None) -> str:
    """Return the counts of a valid dataset as a sentence."""
    if dataset is None or dataset.rows is None:
        return "Dataset, model and storage are usable."
    sentence = f"{dataset.accepted_rows or 0} of {dataset.rows} rows can be trained on"
    if dataset.rejected_rows:
        codes = ", ".join(f"{code} {count}" for code, count in sorted((dataset.rejected_rows_by_code or {}).items()))
        sentence += f"; {dataset.rejected_rows} rejected ({codes})" if codes else f"; {dataset.rejected_rows} rejected"
    return f"{sentence}."


def record_image(status: FineTuneJobStatus, image: str) -> None:
    """Pin the image of the first run, which later runs use."""
    status.lineage = merged(status.lineage or Lineage(), Lineage(trainer_image=image))


def _record_done(status: FineTuneJobStatus, report: Report) -> None:
    final = Progress(display="100%", percent=100, step=report.last_step, stage="Done")
    progress = merged(status.progress, final)
    # The report does not repeat these fields; their last values would contradict "100%".
    status.progress = progress.model_copy(update={"estimated_remaining_seconds": None, "epoch": None})


def record_lineage(status: FineTuneJobStatus, report: Report, spec: FineTuneJobSpec) -> None:
    """Record the lineage; image and parents are the operator's own observations and stay as pinned, as do the digests
    of what preflight checked."""
    known = Lineage(base_model_uri=spec.model.uri, config_sha256=config_sha256(spec), seed=spec.hyperparameters.seed)
    pinned = status.lineage or Lineage()
    lineage = merged(merged(status.lineage, known), report.lineage or Lineage())
    own = {name: getattr(pinned, name) or getattr(lineage, name) for name in PINNED}
    status.lineage = lineage.model_copy(update={**own, "parent": pinned.parent, "reward_job": pinned.reward_job})


def find_difference(status: FineTuneJobStatus, report: Report) -> str:
    """Return how what was trained differs from what preflight checked; empty if it does not, or if that is unknown."""
    pinned, reported = status.lineage or Lineage(), report.lineage or Lineage()
    for name, words in CHECKED.items():
        checked, used = getattr(pinned, name), getattr(reported, name)
        if checked and used and checked != used:
            return f"the trainer used {words} {used}, and preflight had checked {checked}"
    return ""


def record_progress(status: FineTuneJobStatus, report: ProgressReport, at: datetime) -> None:
    """Record the running trainer's last progress."""
    status.progress = _dated(report.progress, status.progress, at.replace(microsecond=0))
    status.metrics = merged(status.metrics, report.metrics)
    status.checkpoint = report.checkpoint or status.checkpoint
    if report.early_stopping:
        status.early_stopping = report.early_stopping
    if report.resolved:
        status.resolved = merged(status.resolved, report.resolved)


def _dated(new: Progress, old: Progress | None, at: datetime) -> Progress:
    """Return the progress with its time; without news the old time stays for a minute, so that the status does."""
    time = old.last_updated_time if old else None
    if time and new.model_copy(update={"last_updated_time": time}) == old and 0 <= (at - time).total_seconds() < QUIET:
        return new.model_copy(update={"last_updated_time": time})
    return new.model_copy(update={"last_updated_time": at})


def record_end(status: FineTuneJobStatus) -> None:
    """Remove what an ended job does not have: the estimate of the remaining time, and the bookkeeping."""
    status.internal = None
    if status.progress:
        status.progress = status.progress.model_copy(update={"estimated_remaining_seconds": None})
