"""A job's progress at one moment, and the losses since a program began to watch it."""

from dataclasses import dataclass

from finetune_api.names import Phase
from finetune_api.status import FineTuneJobStatus, Metrics, Progress
from finetune_api.text.printable import printable
from finetune_client.cluster.job import Job
from finetune_client.figures import duration, number


@dataclass(frozen=True)
class JobProgress:
    """A job's progress at one moment; a value that is not known yet is None."""

    name: str
    namespace: str
    phase: str
    """One word, for example `Training`."""
    reason: str
    """Reason of the phase, in one word."""
    message: str
    """The reason in one line, with the fix if there is one."""
    stage: str
    """What the trainer does now; empty without a running trainer."""
    percent: int
    """Share of the steps that are done."""
    step: int | None
    total_steps: int | None
    epoch: float | None
    remaining_seconds: int | None
    """Estimated seconds until the last step."""
    train_loss: float | None
    eval_loss: float | None
    baseline_eval_loss: float | None
    """The evaluation loss before training."""
    best_eval_loss: float | None
    reward: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    has_ended: bool
    """Whether the job is complete or has failed."""
    status: FineTuneJobStatus
    """All of the status."""
    line: str
    """The progress as one line of text."""

    def __str__(self) -> str:
        """Return the progress as one line."""
        return self.line

    @classmethod
    def of(cls, job: Job) -> "JobProgress":
        """Return the progress of a job as its status has it."""
        status = job.status
        progress, metrics = status.progress or Progress(), status.metrics or Metrics()
        return cls(
            name=job.name,
            namespace=job.namespace,
            phase=job.phase,
            reason=status.reason or "",
            message=job.why,
            stage=progress.stage or "",
            percent=100 if job.phase == Phase.SUCCEEDED else progress.percent or 0,
            step=progress.step,
            total_steps=progress.total_steps,
            epoch=progress.epoch,
            remaining_seconds=None if job.has_ended else progress.estimated_remaining_seconds,
            train_loss=metrics.train_loss,
            eval_loss=metrics.eval_loss,
            baseline_eval_loss=metrics.baseline_eval_loss,
            best_eval_loss=metrics.best_eval_loss,
            reward=metrics.reward,
            learning_rate=metrics.learning_rate,
            tokens_per_second=metrics.tokens_per_second,
            has_ended=job.has_ended,
            status=status,
            line=describe_progress(job),
        )


class LossHistory:
    """The losses since a program began to watch; the status itself has only the last ones."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.evaluated: list[float] = []
        self.train_steps: list[int] = []
        """The step of each training loss."""
        self.evaluated_steps: list[int] = []
        """The step of each evaluation, 0 for the one before training."""
        self._step = -1

    def add(self, job: Job) -> None:
        """Add the new losses of the job."""
        metrics, progress = job.status.metrics, job.status.progress
        if metrics is None:
            return
        step = progress.step if progress and progress.step is not None else self._step
        if not self.evaluated and metrics.baseline_eval_loss is not None:
            self.evaluated.append(metrics.baseline_eval_loss)
            self.evaluated_steps.append(0)
        if metrics.eval_loss is not None and self.evaluated[-1:] != [metrics.eval_loss]:
            self.evaluated.append(metrics.eval_loss)
            self.evaluated_steps.append(max(step, 0))
        if metrics.train_loss is not None and step != self._step:
            self._step = step
            self.train.append(metrics.train_loss)
            self.train_steps.append(max(step, 0))


def describe_progress(job: Job, *, with_time: bool = True) -> str:
    """Return a job as one line, with its values always in the same order."""
    status = job.status
    progress, metrics = status.progress, status.metrics
    display = (progress and progress.display) or ""
    parts = [job.phase, display]
    if progress and progress.step is not None:
        parts.append(f"step {progress.step}/{progress.total_steps or '?'}")
    if progress and progress.stage and not display.startswith(progress.stage):
        parts.append(progress.stage)
    if metrics and metrics.train_loss is not None:
        parts.append(f"loss {number(metrics.train_loss)}")
    if metrics and metrics.eval_loss is not None:
        parts.append(f"eval {number(metrics.eval_loss)}")
    if with_time and progress and progress.estimated_remaining_seconds is not None and not job.has_ended:
        parts.append(f"left {duration(progress.estimated_remaining_seconds)}")
    parts.append(status.reason or "")
    words = " ".join(filter(None, dict.fromkeys(parts)))  # phase, stage and reason may be the same word
    return printable(f"{words}: {status.message}" if status.message else words)
