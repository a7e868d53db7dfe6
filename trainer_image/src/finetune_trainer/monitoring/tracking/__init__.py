"""Experiment trackers: MLflow, W&B, TensorBoard. None of them can fail or delay a job.

Each reads `metrics.jsonl`, which the training always writes, on its own thread: the file is the queue, so nothing is
lost while a tracker is unreachable, and nothing accumulates in memory.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from finetune_api.handoff import Artifact, JobConfig, Outcome, Report
from finetune_api.tracking import Tracking, WandbMode
from finetune_trainer.errors import KeysRefused, Stopped, StorageUnavailable
from finetune_trainer.monitoring.reporter import Reporter, work_beat
from finetune_trainer.monitoring.tracking.follower import Follower, RunEnd
from finetune_trainer.monitoring.tracking.mlflow import MlflowRun
from finetune_trainer.monitoring.tracking.wandb import WandbRun
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)


ENDINGS = {Outcome.GATE_NOT_MET: RunEnd.FAILED, Outcome.TRAINED: RunEnd.STOPPED}


class DrainTimeout(float, Enum):
    """Seconds that all trackers together have for the last values."""

    STOPPED = 2.0
    ENDED = 10.0


class Trackers:
    """The trackers of one run of a job."""

    def __init__(
        self, config: JobConfig, asked: Tracking, *, result: Path, workspace: Path, reporter: Reporter, stop: StopFlag
    ) -> None:
        metrics = result / Artifact.METRICS
        self._result, self._reporter, self._stop = result, reporter, stop
        self._tensorboard = asked.tensorboard
        self._live: list[Follower] = []
        self._offline: list[Follower] = []
        self._wandb: WandbRun | None = None
        self.ending = RunEnd.FINISHED
        if asked.mlflow:
            self._live.append(Follower(MlflowRun(config, asked.mlflow), metrics, reporter))
        if asked.wandb:
            followers = self._offline if asked.wandb.mode is WandbMode.OFFLINE else self._live
            self._wandb = WandbRun(config, asked.wandb, workspace / "wandb")
            followers.append(Follower(self._wandb, metrics, reporter))

    def start(self) -> None:
        """Start sending."""
        for follower in [*self._live, *self._offline]:
            follower.start()

    def write_files(self) -> None:
        """Write the trackers' files to the result folder, after the training."""
        try:
            self._write_files()
        except OSError as error:  # for example a full disk
            text = f"the trackers' files could not be written to the result: {error.strerror}"
            logger.warning("%s", text)
            self._reporter.set_note(text)

    def _write_files(self) -> None:
        if self._tensorboard:
            from finetune_trainer.monitoring.tracking.tensorboard import write_events  # noqa: PLC0415 - imports torch

            on_point = work_beat(self._reporter, self._stop)
            write_events(self._result / Artifact.METRICS, self._result / Artifact.TENSORBOARD, on_point)
        if self._wandb and self._offline:
            self._end(self._offline, RunEnd.FINISHED, DrainTimeout.ENDED)
            self._wandb.collect(self._result / Artifact.WANDB)

    def record_result(self, report: Report) -> None:
        """Record the manifest for the trackers; a missed gate is a failed run, a separate merge resumes it."""
        self.ending = ENDINGS.get(report.outcome, RunEnd.FINISHED)
        artifacts = report.artifacts
        if artifacts and artifacts.manifest_uri and artifacts.manifest_sha256:
            known = {"manifest_uri": artifacts.manifest_uri, "manifest_sha256": artifacts.manifest_sha256}
            for follower in self._live:
                follower.remember(known)

    def end(self, ending: RunEnd) -> None:
        """Send the rest and the end of the run, within `DrainTimeout`."""
        timeout = DrainTimeout.STOPPED if ending is RunEnd.STOPPED else DrainTimeout.ENDED
        self._end([*self._live, *self._offline], ending, timeout)

    def _end(self, followers: list[Follower], ending: RunEnd, timeout: DrainTimeout) -> None:
        began = time.monotonic()
        for follower in followers:
            follower.ask_to_end(ending)
        for follower in followers:
            while not follower.wait(0.1):
                limit = min(timeout, DrainTimeout.STOPPED) if self._stop.is_set() else timeout
                if time.monotonic() - began > limit:
                    break
        for follower in followers:
            follower.abandon()


@contextmanager
def track(
    config: JobConfig, *, result: Path, workspace: Path, reporter: Reporter, stop: StopFlag, is_first: bool = True
) -> Iterator[Trackers]:
    """Run the job's trackers while it trains and publishes; the exit from the block decides the run's end. Of several
    processes, only the first one has trackers."""
    asked = config.spec.tracking if is_first else None
    trackers = Trackers(config, asked or Tracking(), result=result, workspace=workspace, reporter=reporter, stop=stop)
    trackers.start()
    ending = RunEnd.FAILED
    try:
        yield trackers
        ending = trackers.ending
    except (Stopped, StorageUnavailable, KeysRefused) as error:
        if isinstance(error, Stopped) or stop.is_set():  # then the pod ends as preempted, too
            ending = RunEnd.STOPPED
        raise
    finally:
        trackers.end(ending)
