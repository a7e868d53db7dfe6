"""What a run that continues another one reports before its first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune_api.status import Metrics
from finetune_trainer.evaluation.history import History
from finetune_trainer.evaluation.measurements import Measured, TrainPoint
from finetune_trainer.monitoring.reporter import Reporter
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
