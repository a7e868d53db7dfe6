"""What a run that continues another one reports before its first step, and one whose GPU is too small."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_api.handoff import ExitCode
from finetune_api.resolved import Resolved
from finetune_api.status import Metrics
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured, TrainPoint
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline import train
from finetune_trainer.pipeline.train import start_loop
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.training.checkpoint_files import SAVED_RUN, WEIGHTS, BaselineOutputs, SavedRun


def test_early_stopping_that_ended_the_training_is_still_reported_by_the_next_run(tmp_path: Path) -> None:
    saved = tmp_path / "resumed"
    saved.mkdir()
    history = History(saved / "metrics.jsonl")
    for step, loss in ((1, 2.0), (2, 2.1)):
        history.add_step(TrainPoint(step, 0.1, loss, 1e-4, 1.0, 1.0, 1.0))
        history.add_evaluation(step, Measured(loss, 10))
    (saved / WEIGHTS).write_text("weights")
    SavedRun(BaselineOutputs(), Metrics(), 1.0).write(saved / SAVED_RUN)
    early = SimpleNamespace(patience=1, min_delta=0.0, warmup_evaluations=0)
    spec = SimpleNamespace(early_stopping=early, checkpoint=SimpleNamespace(keep=0))
    config = SimpleNamespace(spec=spec)
    run = SimpleNamespace(config=config, workspace=tmp_path, reporter=Reporter("uid"), stop=StopFlag())
    inputs: Any = SimpleNamespace(run=run, result=tmp_path / "result", validation=[1], best_weights=tmp_path / "best")
    checkpoints: Any = SimpleNamespace(schedule=SimpleNamespace(steps=1))
    start_loop(inputs, checkpoints, saved)
    found = run.reporter.snapshot().early_stopping
    assert found
    assert (found.stopped, found.stopped_at_step) == (True, 2)


@pytest.mark.parametrize(
    ("batch", "desirable_weight", "fewest"),
    [(4, None, "one row"), (4, 1.0, "2 rows"), (3, 1.0, "3 rows")],
    ids=["Chat", "KTO", "KTO, odd"],
)
def test_a_gpu_too_small_for_every_micro_batch_names_the_smallest_that_was_tried(
    monkeypatch: pytest.MonkeyPatch, batch: int, desirable_weight: float | None, fewest: str
) -> None:
    settings = Resolved(
        per_device_train_batch_size=batch, gradient_accumulation_steps=1, desirable_weight=desirable_weight
    )

    def no_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "fill_gpu", lambda *_: settings)
    monkeypatch.setattr(train, "train_once", no_memory)
    nothing: Any = None
    with pytest.raises(TrainerError, match=f"is too small for {fewest} per batch: lower") as caught:
        train.train_within_memory(nothing, torch.device("cpu"), nothing)
    assert caught.value.code is ExitCode.GPU_OUT_OF_MEMORY


def test_processes_that_start_again_have_the_micro_batch_that_was_announced() -> None:
    """Also one above the default, of which it is no fraction: what filled the GPU was halved."""
    default = Resolved(per_device_train_batch_size=1, gradient_accumulation_steps=8, global_batch_size=8)
    inputs: Any = SimpleNamespace(run=SimpleNamespace(config=SimpleNamespace(resolved=default)))
    found = train.fill_gpu(inputs, torch.device("cpu"), micro_batch=4)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (4, 2)
