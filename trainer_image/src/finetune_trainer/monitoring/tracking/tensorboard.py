"""Event files for TensorBoard, written once from the complete metrics.jsonl: a resumed run has one curve without a
gap."""

import time
from pathlib import Path

from tensorboardX import SummaryWriter

from finetune_trainer.monitoring.tracking.follower import parse_point


def write_events(metrics: Path, directory: Path) -> None:
    """Write one scalar for each value of each step; wall times follow the steps' durations and end now."""
    points = [parse_point(line) for line in metrics.read_bytes().splitlines()]
    clock = time.time() - sum(point.values.get("train/seconds", 0.0) for point in points)
    with SummaryWriter(logdir=str(directory)) as writer:
        for point in points:
            clock += point.values.get("train/seconds", 0.0)
            for name, value in point.values.items():
                writer.add_scalar(name, value, point.step, walltime=clock)
