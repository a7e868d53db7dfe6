"""The two pods of a job: configuration from a mounted file, storage from mounted credentials."""

# ruff: noqa: PLC0415 - what is heavy is imported when it is needed

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import HANDOFF_VERSION, ExitCode, JobConfig, Outcome, Report
from finetune_trainer.config.manifest import field_errors
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.protocol import Storage

logger = logging.getLogger(__name__)

STARTED = datetime.now(UTC)
"""When the process began, but for its first imports."""
TRAINER_PATIENCE_SECONDS = 180.0
"""How long a trainer, which may hold hours of work, tries a store that does not answer."""


def preflight(state: RunState, config_path: Path, workspace: Path, port: int) -> Report:
    """Everything that can be checked without a GPU."""
    config, reporter = _begin(state, config_path, port)
    state.stop.raise_if_set()
    from finetune_trainer.pipeline.preflight import preflight as check

    return check(RunContext(config, connect(config, state.stop), workspace, reporter, state.stop))


def train(state: RunState, config_path: Path, workspace: Path, port: int) -> Report:
    """Training; a result that is already there, whose report was lost, is reported instead of made again."""
    config, reporter = _begin(state, config_path, port)
    require_checked(config)
    storage = connect(config, state.stop, TRAINER_PATIENCE_SECONDS)
    run = RunContext(config, storage, workspace, reporter, state.stop)
    try:
        state.stop.raise_if_set()
        if found := find_result(run):
            return found
        from finetune_trainer.pipeline.train import train as fine_tune

        return fine_tune(run)
    except Stopped:
        seen = reporter.snapshot().progress
        write_down_stop(config, state.stop, seen.step, seen.resumed_from_step)
        raise


def write_down_stop(config: JobConfig, stop: StopFlag, last_step: int | None, resumed_from_step: int | None) -> None:
    """Leaves word in storage that SIGTERM ended this run, for the operator may not be there to see."""
    from finetune_trainer.training.interrupted_runs import write_down

    write_down(config, connect(config, stop), STARTED, last_step, resumed_from_step)


def require_checked(config: JobConfig) -> None:
    """Refuses a job whose preflight has not passed."""
    if config.resolved is None or config.dataset is None:
        raise TrainerError(ExitCode.INVALID_CONFIG, "the configuration lacks resolved or dataset: run preflight first")


def find_result(run: RunContext) -> Report | None:
    """The report of a result that is there already; raises where the prefix is not the job's to write to."""
    from finetune_trainer.publishing.claim import check_claim
    from finetune_trainer.publishing.publish import adopt
    from finetune_trainer.training.checkpoints import remove_checkpoints
    from finetune_trainer.training.interrupted_runs import read as read_stopped_runs

    config, storage = run.config, run.storage
    storage.probe(config.output_key())
    run.reporter.note_stopped_runs(read_stopped_runs(config, storage))
    if check_claim(config, storage):
        found = adopt(config, storage, Outcome.PUBLISHED, run.on_bytes)
        if found:
            remove_checkpoints(config, storage)
            return found
    run.stop.raise_if_set()
    return None


def read_config(path: Path, state: RunState) -> JobConfig:
    """The mounted configuration; what can be told of a broken one goes to the state, so that its report is accepted."""
    try:
        content = json.loads(path.read_bytes())
        state.echo = {"uid": str(content.get("uid", "")), "config_sha256": str(content.get("configSha256", ""))}
        _refuse_newer(content.get("handoffVersion"))
        state.config = JobConfig.model_validate(content)
    except OSError as error:
        raise TrainerError(ExitCode.INVALID_CONFIG, f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise TrainerError(ExitCode.INVALID_CONFIG, f"{path}: {'; '.join(field_errors(error, 'config'))}") from None
    except (ValueError, AttributeError):
        raise TrainerError(ExitCode.INVALID_CONFIG, f"{path} is not a JSON object") from None
    return state.config


def _refuse_newer(version: object) -> None:
    """A field that a newer operator added would be ignored, so that another job would run than the one asked for."""
    if isinstance(version, int) and version > HANDOFF_VERSION:
        message = f"the configuration has handoffVersion {version}, this trainer knows {HANDOFF_VERSION}: use the image"
        raise TrainerError(ExitCode.INVALID_CONFIG, f"{message} that belongs to the operator's version")


def _begin(state: RunState, config_path: Path, port: int) -> tuple[JobConfig, Reporter]:
    config = read_config(config_path, state)
    reporter = state.reporter = Reporter(config.uid)
    serve(reporter, port)
    return config, reporter


def serve(reporter: Reporter, port: int) -> None:
    """Opens the port; where it is taken the work goes on unseen."""
    try:
        logger.info("answering /progress, /metrics and /healthz on port %d", reporter.serve(port))
    except OSError as error:
        logger.warning("port %d cannot be opened, progress goes unseen: %s", port, error.strerror)


def connect(config: JobConfig, stop: StopFlag, patience: float = 0.0) -> Storage:
    """The job's stores, each connected to when it is first used."""
    from finetune_trainer.storage.routed import RoutedStorage

    def connect_s3() -> Storage:
        from finetune_trainer.storage.s3 import S3Storage
        from finetune_trainer.storage.s3_client import connect

        return S3Storage(connect(config.spec.storage), patience, stop)

    def connect_hub() -> Storage:
        from finetune_trainer.storage.hub.storage import HubStorage
        from finetune_trainer.storage.hub.uris import connect_hub

        return HubStorage(connect_hub(config.spec), patience, stop)

    return RoutedStorage(connect_s3, connect_hub)
