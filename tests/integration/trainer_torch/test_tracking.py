"""A real training with trackers, one of which never responds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from trackers import silent_server
from training_bench import HYPERPARAMETERS, Bench

from finetune_api.handoff import Manifest, Outcome
from finetune_trainer.commands.verify import verify_result
from finetune_trainer.errors import Stopped
from finetune_trainer.monitoring.reporter import Reporter, work_beat
from finetune_trainer.monitoring.tracking.tensorboard import write_events
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.protocol import sha256_file

MakeBench = Callable[..., Bench]
SHORT = {"hyperparameters": HYPERPARAMETERS | {"maxSteps": 6}}
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.mark.nightly
def test_trackers_change_neither_the_weights_nor_the_end_of_a_job(make_bench: MakeBench) -> None:
    plain = make_bench(**SHORT)
    plain.run()
    with silent_server() as uri:
        asked: dict[str, Any] = {
            "mlflow": {"endpoint": uri, "experiment": "e"},
            "wandb": {"project": "p", "mode": "Offline"},
            "tensorboard": True,
        }
        tracked = make_bench(**SHORT, tracking=asked)
        report = tracked.run()
    assert report.outcome is Outcome.PUBLISHED
    assert sha256_file(tracked.output / WEIGHTS) == sha256_file(plain.output / WEIGHTS)
    manifest = Manifest.model_validate_json((tracked.output / "manifest.json").read_bytes())
    folders = {file.path.split("/")[0] for file in manifest.files}
    assert {"tensorboard", "wandb"} <= folders
    assert verify_result("s3://bucket/output", tracked.storage).faults == []
    assert tracked.reporter.snapshot().progress.note == "MLflow is incomplete: the last values were not sent in time"


def test_tensorboard_itself_reads_every_figure(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": step, "loss": 3.0 - step, "seconds": 0.5} for step in (1, 2)]
    lines.append({"kind": "eval", "step": 2, "loss": 2.25})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    calls: list[int] = []
    write_events(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", lambda: calls.append(1))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert [(one.step, one.value) for one in events.Scalars("eval/loss")] == [(2, 2.25)]
    (file,) = (tmp_path / "tensorboard").iterdir()
    records = list(RawEventFileLoader(str(file)).Load())
    assert (len(calls), len(records)) == (3, 4), "an event for each line, after that of the file's version"


def test_sigterm_ends_the_writing_of_tensorboard_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 3.0}\n' * 9)
    stop, reporter = StopFlag(), Reporter("u")
    on_work = work_beat(reporter, stop)

    def stop_at_third() -> None:
        if reporter.snapshot().heartbeat == 2:
            stop.set()
        on_work()

    with pytest.raises(Stopped):
        write_events(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", stop_at_third)
    assert reporter.snapshot().heartbeat == 2
