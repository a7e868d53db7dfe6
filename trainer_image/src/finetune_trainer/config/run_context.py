"""What every step of a run needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.handoff import JobConfig, Report
from finetune_trainer.monitoring.reporter import Reporter, work_beat
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.protocol import Store


@dataclass(frozen=True)
class RunContext:
    """The job, its stores, its local folder, its reporter and its stop flag."""

    config: JobConfig
    storage: Store
    workspace: Path
    reporter: Reporter
    stop: StopFlag

    @property
    def on_work(self) -> Callable[[], None]:
        """A callback for each piece of work; it counts a heartbeat and raises `Stopped` after SIGTERM."""
        return work_beat(self.reporter, self.stop)

    @property
    def on_bytes(self) -> Callable[[int], None]:
        """A callback for each transferred block; it counts a heartbeat and raises `Stopped` after SIGTERM."""
        return work_beat(self.reporter, self.stop)


def bind_checked(config: JobConfig, checked: Report) -> JobConfig:
    """Return the configuration of a training with what preflight has found and what binds the training to it."""
    bound = checked.lineage.preflight_sha256 if checked.lineage else None
    found = {"resolved": checked.resolved, "dataset": checked.dataset, "preflight_sha256": bound}
    return config.model_copy(update=found)
