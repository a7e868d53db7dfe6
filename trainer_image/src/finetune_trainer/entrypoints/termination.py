"""What one process knows of its job, and how it ends: the report in the termination message, and the exit code."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.handoff import ExitCode, JobConfig, Outcome, Report
from finetune_api.status import Artifacts
from finetune_trainer.errors import Stopped, StorageUnavailable, TrainerError, one_line
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger("finetune_trainer")

TOLD_IN_THE_END = 5
"""Stopped runs in a report, whose size is bounded; `/progress` has told of all."""


@dataclass
class RunState:
    """Filled in as the process learns more; what is missing stays out of the report."""

    stop: StopFlag
    config: JobConfig | None = None
    reporter: Reporter | None = None
    termination_log: Path | None = None
    echo: dict[str, str] = field(default_factory=dict)
    """uid and config digest of a config that could not be read as a whole."""
    leaves_at_once: bool = False
    """Whether the process ends without the interpreter's own end, at which threads of a library may wait for others."""

    def finish(self, report: Report) -> ExitCode:
        """Leave the report of a run that went to its end; returns the exit code, 0 unless a gate was not met."""
        self._close()
        is_met = report.outcome is not Outcome.GATE_NOT_MET
        logger.log(logging.INFO if is_met else logging.ERROR, "%s: %s", report.reason, report.message)
        self._write(report)
        return ExitCode.OK if is_met else ExitCode.GATE_NOT_MET

    def fail(self, error: TrainerError) -> ExitCode:
        """Leave the report of a failure; returns the exit code.

        A store that vanishes after SIGTERM went with the node: that is the same stop, not a failure to count.
        """
        if self.stop.is_set() and isinstance(error, StorageUnavailable):
            error = Stopped(f"stopped by SIGTERM while storage was unavailable: {error.message}")
        self._close()
        level = logging.WARNING if error.code is ExitCode.PREEMPTED else logging.ERROR
        logger.log(level, "%s: %s", error.code.reason, error.message)
        self._write(self._failure(error))
        return error.code

    def _failure(self, error: TrainerError) -> Report:
        report = Report(
            outcome=Outcome.PREEMPTED if error.code is ExitCode.PREEMPTED else Outcome.FAILED,
            reason=error.code.reason,
            message=one_line(error.message),
            job_uid=self.config.uid if self.config else self.echo.get("uid", ""),
            config_sha256=self.config.config_sha256 if self.config else self.echo.get("config_sha256", ""),
            dataset=error.dataset,
        )
        if self.reporter:
            seen = self.reporter.snapshot()
            report.last_step = seen.progress.step
            report.checkpoint = seen.checkpoint
            report.resumed_from_step = seen.progress.resumed_from_step
            report.metrics = seen.metrics if seen.metrics.model_fields_set else None
            report.early_stopping = seen.early_stopping
            report.resolved = seen.resolved
        return report

    def _write(self, report: Report) -> None:
        """Where there is no termination log (not a container) there is nobody to read it."""
        if self.termination_log is None or not self.termination_log.exists():
            return
        if self.reporter and (earlier := self.reporter.snapshot().stopped_runs):
            report = report.model_copy(update={"stopped_runs": earlier[-TOLD_IN_THE_END:]})
        try:
            self.termination_log.write_text(termination_message(report), encoding="ascii")
        except OSError as error:
            logger.warning("the termination message cannot be written: %s", error.strerror)

    def _close(self) -> None:
        if self.reporter:
            self.reporter.close()


def termination_message(report: Report) -> str:
    """The report in at most 4,096 bytes; with very long URIs the proof of success stays, and its places go."""
    try:
        return report.to_termination_message()
    except ValueError:
        digest = report.artifacts.manifest_sha256 if report.artifacts else None
        proof = Artifacts(manifest_sha256=digest) if digest else None
        return report.model_copy(update={"artifacts": proof, "lineage": None}).to_termination_message()
