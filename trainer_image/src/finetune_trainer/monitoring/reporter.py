"""Progress of a running trainer: `GET /progress`, `GET /metrics`, a bar on a terminal, else lines of the log.

Everything here is thread-safe and cheap enough to call at every step.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TextIO, TypeVar

from finetune_api.handoff import ENV_POD_UID, PROGRESS_PORT, ProgressReport, Stage
from finetune_api.runs import StoppedRun
from finetune_api.status import CheckpointStatus, EarlyStoppingStatus, Progress, Resolved, StatusBlock
from finetune_trainer.monitoring.bar import Bar
from finetune_trainer.monitoring.http_server import start_server
from finetune_trainer.monitoring.log_line import LogLine
from finetune_trainer.monitoring.metrics import TrainerMetrics
from finetune_trainer.monitoring.start_phases import StartPhases
from finetune_trainer.monitoring.time_estimate import TimeEstimate
from finetune_trainer.sigterm import StopFlag

B = TypeVar("B", bound=StatusBlock)
Fields = Mapping[str, object]

QUIET_SECONDS = 10.0


class Reporter:
    """The state of the run for users, the operator and Prometheus."""

    def __init__(self, job_uid: str, *, out: TextIO | None = None) -> None:
        self.start = StartPhases()
        self._lock = threading.Lock()
        self._out = out if out is not None else sys.stdout
        self._report = ProgressReport(
            job_uid=job_uid, pod_uid=os.environ.get(ENV_POD_UID) or None, heartbeat=0, progress=Progress()
        )
        self._prometheus = TrainerMetrics()
        self._bar = Bar(self._out) if self._out.isatty() else None
        self._line = LogLine()
        self._pace = TimeEstimate()
        self._share = ""
        self._last_line = -QUIET_SECONDS

    def set_stage(self, name: Stage) -> None:
        """Set the current stage."""
        self._share = ""
        self.update(progress={"stage": name})

    def set_share(self, done: int, total: int) -> None:
        """Count a heartbeat, and set the completed share of a stage before the first step."""
        self._share = f" {100 * done // total}%"
        self.update()

    def beat(self, transferred: int = 0) -> None:
        """Count a heartbeat: a row, a batch, or `transferred` bytes (usable as `on_bytes` of storage)."""
        self._prometheus.beat(transferred)
        with self._lock:
            self._touch()

    def count_tokens(self, tokens: int) -> None:
        """Add trained input tokens to the counter."""
        self._prometheus.count_tokens(tokens)

    def count_tracker_failure(self) -> None:
        """Count a failed attempt to send to a tracker."""
        self._prometheus.count_tracker_failure()

    def update(
        self,
        *,
        progress: Fields | None = None,
        metrics: Fields | None = None,
        early_stopping: Fields | None = None,
        resolved: Resolved | None = None,
    ) -> None:
        """Merge new values, by the field names of `finetune_api.status`; numbers that are not finite are skipped.

        Percent, display and the estimated time are computed from step and total steps.
        """
        self._prometheus.update(progress or {}, metrics or {})
        with self._lock:
            before = self._report.progress.stage
            self._touch()
            report = self._report
            if early_stopping:
                report.early_stopping = _merged(report.early_stopping or EarlyStoppingStatus(), early_stopping)
            report.progress = self._add_derived(_merged(report.progress, progress))
            report.metrics = _merged(report.metrics, metrics)
            if resolved is not None:
                report.resolved = resolved
            self._show(is_new=bool(metrics or early_stopping) or report.progress.stage != before)

    def set_note(self, text: str) -> None:
        """Set `progress.note` without a heartbeat."""
        with self._lock:
            self._report.progress = self._report.progress.model_copy(update={"note": text[:1024]})

    def count_checkpoint_failure(self) -> None:
        """Count a failed checkpoint upload."""
        self._prometheus.count_checkpoint(None)

    def set_checkpoint(self, checkpoint: CheckpointStatus) -> None:
        """Set the last complete checkpoint."""
        if checkpoint.save_seconds is not None:
            self._prometheus.count_checkpoint(checkpoint.save_seconds)
        with self._lock:
            self._touch()
            self._report.checkpoint = checkpoint

    def note_interrupted_runs(self, runs: list[StoppedRun]) -> None:
        """Set the earlier runs that SIGTERM ended."""
        with self._lock:
            self._report.stopped_runs = runs or None

    def snapshot(self) -> ProgressReport:
        """Return a copy of the state, as in `GET /progress`."""
        with self._lock:
            return self._report.model_copy(deep=True)

    def serve(self, port: int = PROGRESS_PORT) -> int:
        """Start the HTTP server on a daemon thread; return its port, which the system chooses for 0."""
        return start_server(port, self._progress_json, self._prometheus.exposition)

    def close(self) -> None:
        """Close the bar."""
        if self._bar:
            self._bar.close()

    def _progress_json(self) -> bytes:
        return self.snapshot().model_dump_json(by_alias=True, exclude_none=True).encode()

    def _touch(self) -> None:
        self._report.heartbeat += 1
        self._report.progress.last_updated_time = datetime.now(UTC).replace(microsecond=0)

    def _add_derived(self, progress: Progress) -> Progress:
        self._pace.observe(progress.stage, progress.step, time.monotonic())
        if progress.step is None or not progress.total_steps:
            progress.display = f"{progress.stage}{self._share}" if progress.stage else None
            return progress
        progress.percent = min(100, 100 * progress.step // progress.total_steps)
        progress.display = f"{progress.percent}%"
        eval_steps = self._report.resolved.eval_steps if self._report.resolved else None
        has_stopped = bool(self._report.early_stopping and self._report.early_stopping.stopped)
        last = progress.step if has_stopped else progress.total_steps
        progress.estimated_remaining_seconds = self._pace.remaining(last, eval_steps)
        return progress

    def _show(self, *, is_new: bool) -> None:
        if self._bar:
            self._bar.show(self._report, self._share)
            return
        if not is_new and time.monotonic() - self._last_line < QUIET_SECONDS:
            return
        self._last_line = time.monotonic()
        self._out.write(self._line.describe(self._report, self._share) + "\n")
        self._out.flush()


def _merged(block: B, fields: Fields | None) -> B:
    """Return the block with new values, validated."""
    if not fields:
        return block
    known = {name: getattr(block, name) for name in type(block).model_fields}
    finite = {name: value for name, value in fields.items() if not isinstance(value, float) or math.isfinite(value)}
    unknown = finite.keys() - known.keys()
    if unknown:
        raise KeyError(f"{type(block).__name__} has no field {', '.join(sorted(unknown))}")
    return type(block).model_validate(known | finite)


def work_beat(reporter: Reporter, stop: StopFlag) -> Callable[..., None]:
    """Return a callback for each piece of work, or with the size of each transferred block.

    It counts a heartbeat and raises `Stopped` after SIGTERM.
    """

    def on_work(transferred: int = 0) -> None:
        stop.raise_if_set()
        reporter.beat(transferred)

    return on_work
