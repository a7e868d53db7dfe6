"""Event files for TensorBoard, written once from the complete metrics.jsonl: a resumed run has one curve without a
gap."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from tensorboardX import FileWriter
from tensorboardX.proto.summary_pb2 import Summary

from finetune_trainer.monitoring.tracking.follower import Point, parse_point


def write_events(metrics: Path, directory: Path, on_point: Callable[[], object]) -> None:
    """Write one event for each line, with all its values; wall times follow the steps' durations and end now.

    `on_point` is called for each, because a long training takes minutes.
    """
    clock = time.time() - sum(_seconds(point) for point in _read(metrics))
    with closing(FileWriter(str(directory))) as writer:
        for point in _read(metrics):
            on_point()
            clock += _seconds(point)
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            writer.add_summary(Summary(value=values), point.step, walltime=clock)


def _read(metrics: Path) -> Iterator[Point]:
    """Yield the points one by one: a long training has millions."""
    with metrics.open("rb") as lines:
        yield from map(parse_point, lines)


def _seconds(point: Point) -> float:
    return point.values.get("train/seconds", 0.0)
