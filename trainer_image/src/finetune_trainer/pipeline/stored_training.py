"""A completed training in storage, from which another pod merges, validates and publishes."""

import logging
import os
import shutil
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from finetune_api.handoff import Artifact, Outcome, Report
from finetune_api.status import EarlyStoppingStatus, Metrics
from finetune_trainer.evaluation.early_stopping import Plateau
from finetune_trainer.evaluation.history import History
from finetune_trainer.pipeline.finalize import TrainedFigures, TrainingResult
from finetune_trainer.pipeline.inputs import Inputs
from finetune_trainer.training.checkpoint_files import BEST_WEIGHTS, replay_evaluations
from finetune_trainer.training.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

FIGURES = "trained.json"
RESULT = "result"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(ser_json_inf_nan="constants"))
class StoredTraining(TrainedFigures):
    """The figures of a training, with those of the status."""

    seconds: float
    metrics: Metrics
    early_stopping: EarlyStoppingStatus | None
    total_steps: int | None


STORED = TypeAdapter(StoredTraining)


def store_training(inputs: Inputs, trained: TrainingResult, checkpoints: Checkpoints) -> Report:
    """Store the trained weights, the result's files so far and the figures; return the report that names them."""
    folder = inputs.run.workspace / "trained"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs.result, folder / RESULT, copy_function=os.link)
    os.link(inputs.best_weights, folder / BEST_WEIGHTS)
    known = inputs.run.reporter.snapshot()
    figures = StoredTraining(
        **_figures_of(trained),
        seconds=time.monotonic() - trained.began,
        metrics=known.metrics,
        early_stopping=known.early_stopping,
        total_steps=known.progress.total_steps,
    )
    (folder / FIGURES).write_bytes(STORED.dump_json(figures))
    last_step = trained.history.train[-1].step if trained.history.train else 0
    stored = checkpoints.save_trained(last_step, folder)
    logger.info("the trained weights are stored at %s", stored.uri)
    config = inputs.run.config
    return Report(
        outcome=Outcome.TRAINED,
        reason=Outcome.TRAINED.value,
        message=f"trained {last_step} steps; another pod, without GPUs, merges and publishes",
        job_uid=config.uid,
        config_sha256=config.config_sha256,
        last_step=last_step,
        checkpoint=stored,
        resumed_from_step=known.progress.resumed_from_step,
        resolved=trained.settings,
        metrics=known.metrics,
        early_stopping=known.early_stopping,
    )


def restore_training(inputs: Inputs, checkpoints: Checkpoints) -> TrainingResult:
    """Restore what `store_training` stored: files, figures, and the state of the reporter."""
    step, folder = checkpoints.restore_trained()
    figures = STORED.validate_json((folder / FIGURES).read_bytes())
    os.replace(folder / BEST_WEIGHTS, inputs.best_weights)
    _move_files(folder / RESULT, inputs.result)
    reporter = inputs.run.reporter
    progress = {"step": step, "total_steps": figures.total_steps, "resumed_from_step": step}
    early_stopping = figures.early_stopping.model_dump(exclude_none=True) if figures.early_stopping else None
    metrics = figures.metrics.model_dump(exclude_none=True)
    reporter.update(progress=progress, metrics=metrics, early_stopping=early_stopping, resolved=figures.settings)
    history, plateau = _replay(inputs)
    began = time.monotonic() - figures.seconds
    return TrainingResult(**_figures_of(figures), history=history, plateau=plateau, began=began)


def _figures_of(trained: TrainedFigures) -> dict[str, Any]:
    return {one.name: getattr(trained, one.name) for one in fields(TrainedFigures)}


def _move_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another one, which keeps its own files."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            moved = target / path.relative_to(source)
            moved.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, moved)


def _replay(inputs: Inputs) -> tuple[History, Plateau]:
    """Return history and early stopping from the lines of `metrics.jsonl`."""
    metrics = inputs.result / Artifact.METRICS
    lines = metrics.read_bytes()
    history = History(metrics)
    metrics.write_bytes(lines)
    history.read(metrics)
    plateau = Plateau.of(inputs.run.config.spec.early_stopping)
    replay_evaluations(history, plateau)
    return history, plateau
