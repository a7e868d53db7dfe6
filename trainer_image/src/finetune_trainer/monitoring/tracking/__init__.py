"""Who is told of a training beside the operator: MLflow, W&B, TensorBoard. None of them can fail a job or hold it up.

Each reads `metrics.jsonl`, which the training writes in any case, on a thread of its own: that file is the queue, so
nothing is lost while a tracker is away, and nothing piles up in memory.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from finetune_api.handoff import Artifact, JobConfig, Outcome, Report
from finetune_api.tracking import Tracking, WandbMode
from finetune_trainer.errors import Stopped
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.monitoring.tracking.follower import Follower, RunEnd
from finetune_trainer.monitoring.tracking.mlflow import MlflowRun
from finetune_trainer.monitoring.tracking.wandb import WandbRun
from finetune_trainer.sigterm import StopFlag

logger = logging.getLogger(__name__)


class Patience(float, Enum):
    """Seconds in which all trackers together may take in the last figures."""

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
        self.is_met = True
        if asked.mlflow:
            self._live.append(Follower(MlflowRun(config, asked.mlflow), metrics, reporter))
        if asked.wandb:
            followers = self._offline if asked.wandb.mode is WandbMode.OFFLINE else self._live
            self._wandb = WandbRun(config, asked.wandb, workspace / "wandb")
            followers.append(Follower(self._wandb, metrics, reporter))

    def start(self) -> None:
        """Everything from here on is told."""
        for follower in [*self._live, *self._offline]:
            follower.start()

    def write_files(self) -> None:
        """Lays what is to be published with the result into its folder; the training has ended."""
        try:
            self._write_files()
        except OSError as error:  # a full disk, for one
            told = f"what trackers keep beside the result could not be written: {error.strerror}"
            logger.warning("%s", told)
            self._reporter.set_note(told)

    def _write_files(self) -> None:
        if self._tensorboard:
            from finetune_trainer.monitoring.tracking.tensorboard import write_events  # noqa: PLC0415 - it imports torch

            write_events(self._result / Artifact.METRICS, self._result / Artifact.TENSORBOARD)
        if self._wandb and self._offline:
            self._end(self._offline, RunEnd.FINISHED, Patience.ENDED)
            self._wandb.collect(self._result / Artifact.WANDB)

    def record_result(self, report: Report) -> None:
        """What the trackers are to remember of the result; one that meets no gate is a failure to them as well."""
        self.is_met = report.outcome is not Outcome.GATE_NOT_MET
        artifacts = report.artifacts
        if artifacts and artifacts.manifest_uri and artifacts.manifest_sha256:
            known = {"manifest_uri": artifacts.manifest_uri, "manifest_sha256": artifacts.manifest_sha256}
            for follower in self._live:
                follower.remember(known)

    def end(self, ending: RunEnd) -> None:
        """Tells the rest and the end of the run, within `Patience`; what takes longer is left."""
        patience = Patience.STOPPED if ending is RunEnd.STOPPED else Patience.ENDED
        self._end([*self._live, *self._offline], ending, patience)

    def _end(self, followers: list[Follower], ending: RunEnd, patience: Patience) -> None:
        began = time.monotonic()
        for follower in followers:
            follower.ask_to_end(ending)
        for follower in followers:
            while not follower.wait(0.1):
                limit = min(patience, Patience.STOPPED) if self._stop.is_set() else patience
                if time.monotonic() - began > limit:
                    break
        for follower in followers:
            follower.leave()


@contextmanager
def track(
    config: JobConfig, *, result: Path, workspace: Path, reporter: Reporter, stop: StopFlag, is_first: bool = True
) -> Iterator[Trackers]:
    """The job's trackers while it trains and publishes; how it ends is how the block is left. Of several processes the
    first one tells them."""
    asked = config.spec.tracking if is_first else None
    trackers = Trackers(config, asked or Tracking(), result=result, workspace=workspace, reporter=reporter, stop=stop)
    trackers.start()
    ending = RunEnd.FAILED
    try:
        yield trackers
        ending = RunEnd.FINISHED if trackers.is_met else RunEnd.FAILED
    except Stopped:
        ending = RunEnd.STOPPED
        raise
    finally:
        trackers.end(ending)
