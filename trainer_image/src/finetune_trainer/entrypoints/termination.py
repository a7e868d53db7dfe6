"""The state of a process and its exit: the report in the termination message, and the exit code."""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.handoff import ExitCode, JobConfig, Outcome, Report
from finetune_api.status import Artifacts
from finetune_api.text.printable import printable
from finetune_trainer.errors import KeysRefused, Stopped, StorageUnavailable, TrainerError, one_line
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger("finetune_trainer")

MAX_REPORTED_RUNS = 5
"""Interrupted runs in a report, whose size is limited; `/progress` lists all."""


@dataclass
class RunState:
    """The state of the process; a field that is not set yet is left out of the report."""

    stop: StopFlag
    config: JobConfig | None = None
    reporter: Reporter | None = None
    termination_log: Path | None = None
    echo: dict[str, str] = field(default_factory=dict)
    """uid and digest of a configuration that is invalid."""
    exits_immediately: bool = False
    """Whether to skip the interpreter's shutdown, in which threads of a library can wait for other processes."""

    def finish(self, report: Report) -> ExitCode:
        """Write the report of a completed run and return the exit code: 0 unless a gate was not met."""
        self._close()
        is_met = report.outcome is not Outcome.GATE_NOT_MET
        logger.log(logging.INFO if is_met else logging.ERROR, "%s: %s", report.reason, report.message)
        self._write(report)
        return ExitCode.OK if is_met else ExitCode.GATE_NOT_MET

    def fail(self, error: TrainerError) -> ExitCode:
        """Write the report of a failure and return the exit code.

        If the store is unavailable after SIGTERM, the node is shutting down: this is a stop, not a failure. So is the
        end of a wait for new keys.
        """
        if self.stop.is_set() and isinstance(error, StorageUnavailable | KeysRefused):
            error = Stopped(f"stopped by SIGTERM while storage was unavailable: {error.message}")
        self._close()
        level = logging.WARNING if error.code is ExitCode.PREEMPTED else logging.ERROR
        logger.log(level, "%s: %s", error.reason, error.message)
        self._write(self._failure(error))
        return error.code

    def _failure(self, error: TrainerError) -> Report:
        report = Report(
            outcome=Outcome.PREEMPTED if error.code is ExitCode.PREEMPTED else Outcome.FAILED,
            reason=error.reason,
            message=printable(one_line(error.message)),
            job_uid=self.config.uid if self.config else self.echo.get("uid", ""),
            config_sha256=self.config.config_sha256 if self.config else self.echo.get("config_sha256", ""),
            dataset=error.dataset,
        )
        if self.reporter:
            snapshot = self.reporter.snapshot()
            report.last_step = snapshot.progress.step
            report.checkpoint = snapshot.checkpoint
            report.resumed_from_step = snapshot.progress.resumed_from_step
            report.metrics = snapshot.metrics if snapshot.metrics.model_fields_set else None
            report.early_stopping = snapshot.early_stopping
            report.resolved = snapshot.resolved
        return report

    def _write(self, report: Report) -> None:
        """Write the termination message; without a termination log (outside a container) do nothing."""
        if self.termination_log is None or not self.termination_log.exists():
            return
        if self.reporter and (earlier := self.reporter.snapshot().stopped_runs):
            report = report.model_copy(update={"stopped_runs": earlier[-MAX_REPORTED_RUNS:]})
        try:
            self.termination_log.write_text(termination_message(report), encoding="ascii")
        except OSError as error:
            logger.warning("cannot write the termination message: %s", error.strerror)

    def _close(self) -> None:
        if self.reporter:
            self.reporter.close()


def termination_message(report: Report) -> str:
    """Return the report in at most 4,096 bytes; if URIs are very long, keep the proofs of success and drop the URIs."""
    with suppress(ValueError):
        return report.to_termination_message()
    found = report.artifacts or Artifacts()
    proof = None
    if found.manifest_sha256:
        proof = Artifacts(manifest_sha256=found.manifest_sha256, hub=found.hub, oci=found.oci)
    with suppress(ValueError):
        return report.model_copy(update={"artifacts": proof, "lineage": None}).to_termination_message()
    proof = Artifacts(manifest_sha256=found.manifest_sha256) if proof else None
    return report.model_copy(update={"artifacts": proof, "lineage": None}).to_termination_message()
