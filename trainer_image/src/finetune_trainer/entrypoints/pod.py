"""The pods of a job: configuration from a mounted file, storage from mounted credentials."""

# ruff: noqa: PLC0415 - what is heavy is imported when it is needed

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import ENV_CONFIG_SHA256, HANDOFF_VERSION, JobConfig, Outcome, Report
from finetune_api.spec import ResumePolicy
from finetune_api.status import CheckpointStatus
from finetune_trainer.config.manifest import field_errors, join_faults
from finetune_trainer.config.run_context import RunContext, bind_checked
from finetune_trainer.entrypoints.stall import end_when_stalled
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.errors import InvalidConfig, Stopped
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.protocol import ReadableStore, Store

logger = logging.getLogger(__name__)

STARTED = datetime.now(UTC)
"""Start of the process, after its first imports."""
TRAINER_RETRY_SECONDS = 180.0
"""How long a trainer, which may hold hours of work, retries a store that does not respond."""


def run_preflight(state: RunState, config_path: Path, workspace: Path, port: int) -> Report:
    """Check everything that needs no GPU."""
    config, reporter = _begin(state, config_path, port)
    end_when_stalled(state, reporter, config.spec.stall_timeout_seconds)
    state.stop.raise_if_set()
    with reporter.start.libraries():
        from finetune_trainer.pipeline.preflight import preflight

    return preflight(RunContext(config, connect_stores(config, state.stop), workspace, reporter, state.stop))


def run_training(state: RunState, config_path: Path, workspace: Path, port: int) -> Report:
    """Train and publish. If a result exists already because its report was lost, return that report."""
    config, reporter = _begin(state, config_path, port)
    if config.spec.has_preflight:
        require_checked(config)
    storage = connect_stores(config, state.stop, TRAINER_RETRY_SECONDS)
    run = RunContext(config, storage, workspace, reporter, state.stop)
    with recorded_interruption(run):
        if found := find_result(run):
            return found
        if not config.spec.has_preflight:
            # In every run: what an earlier one left in storage is bound to nothing that this one was given.
            from finetune_trainer.pipeline.preflight import preflight

            checked = preflight(run)
            if checked.outcome is not Outcome.VALIDATED:
                return checked
            run = replace(run, config=bind_checked(config, checked))
        reporter.start.end("storage")
        with reporter.start.libraries():
            from finetune_trainer.pipeline.train import train

        return train(run)


def run_finish(state: RunState, config_path: Path, workspace: Path, port: int) -> Report:
    """Merge and publish what a trainer has stored, or return the report of an existing result."""
    config, reporter = _begin(state, config_path, port)
    require_checked(config)
    run = RunContext(config, connect_stores(config, state.stop, TRAINER_RETRY_SECONDS), workspace, reporter, state.stop)
    with recorded_interruption(run):
        if found := find_published(run):
            return found
        with reporter.start.libraries():
            from finetune_trainer.pipeline.train import finish_training

        return finish_training(run)


@contextmanager
def recorded_interruption(run: RunContext) -> Iterator[None]:
    """Record in storage that SIGTERM ended the block."""
    try:
        run.stop.raise_if_set()
        yield
    except Stopped:
        progress = run.reporter.snapshot().progress
        record_interruption(run.config, run.stop, progress.step, progress.resumed_from_step)
        raise


def record_interruption(
    config: JobConfig,
    stop: StopFlag,
    last_step: int | None,
    resumed_from_step: int | None,
    *,
    was_measuring: bool = False,
) -> None:
    """Record in storage that SIGTERM ended this run, because the operator may be down."""
    from finetune_trainer.training import interrupted_runs, joint_measuring

    storage = connect_stores(config, stop)
    interrupted_runs.record(config, storage, STARTED, last_step, resumed_from_step)
    if was_measuring:
        joint_measuring.forget(config, storage)


def require_checked(config: JobConfig) -> None:
    """Raise if the job has not passed preflight."""
    if config.resolved is None or config.dataset is None:
        raise InvalidConfig("the configuration lacks resolved or dataset: run preflight first")


def find_result(run: RunContext) -> Report | None:
    """Return the report of an existing result, or of a completed training whose merge another pod does."""
    if found := find_published(run):
        return found
    if run.config.separate_merge and run.config.spec.checkpoint.resume_policy is ResumePolicy.AUTO:
        from finetune_trainer.training.stored_checkpoints import find_trained

        stored = find_trained(run.config, run.storage)
        return report_trained(run.config, stored) if stored else None
    return None


def report_trained(config: JobConfig, stored: CheckpointStatus) -> Report:
    """Return the report of a training that an earlier run completed, whose own report was lost."""
    return Report(
        outcome=Outcome.TRAINED,
        reason=Outcome.TRAINED.value,
        message=f"an earlier run trained {stored.step} steps; another pod, without GPUs, merges and publishes",
        job_uid=config.uid,
        config_sha256=config.config_sha256,
        last_step=stored.step,
        checkpoint=stored,
        resumed_from_step=stored.step,
    )


def find_published(run: RunContext) -> Report | None:
    """Return the report of an existing result, pushed if requested; raise if the prefix belongs to another job."""
    from finetune_trainer.publishing.claim import check_claim
    from finetune_trainer.publishing.publish import adopt_result
    from finetune_trainer.publishing.pushes import push_published
    from finetune_trainer.training import interrupted_runs
    from finetune_trainer.training.stored_checkpoints import remove_checkpoints

    config, storage = run.config, run.storage
    storage.probe(config.output_key())
    run.reporter.note_interrupted_runs(interrupted_runs.read(config, storage))
    if check_claim(config, storage):
        found = adopt_result(config, storage, Outcome.PUBLISHED, run.on_bytes)
        if found:
            remove_checkpoints(config, storage)
            return push_published(run, found)
    run.stop.raise_if_set()
    return None


def read_config(path: Path, state: RunState) -> JobConfig:
    """Read the mounted configuration; keep the uid and digest of an invalid one, to report them to the operator."""
    try:
        data = path.read_bytes()
        content = json.loads(data)
        state.echo = {"uid": str(content.get("uid", "")), "config_sha256": str(content.get("configSHA256", ""))}
        require_digest(path, data)
        _require_known_version(content.get("handoffVersion"))
        state.config = JobConfig.model_validate(content)
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise InvalidConfig(f"{path}: {join_faults(field_errors(error, 'config'))}") from None
    except (ValueError, AttributeError):
        raise InvalidConfig(f"{path} is not a JSON object") from None
    return state.config


def require_digest(path: Path, data: bytes) -> None:
    """Raise if the file is not the one that the operator wrote; an older operator names no digest."""
    written, found = os.environ.get(ENV_CONFIG_SHA256), hashlib.sha256(data).hexdigest()
    if written and written != found:
        problem = f"{path} is not the configuration that the operator wrote: its SHA-256 is {found}, and {written} was"
        raise InvalidConfig(f"{problem} written: find out who makes ConfigMaps here")


def _require_known_version(version: object) -> None:
    """Raise for a newer version, because ignoring its new fields would run another job than the requested one."""
    if isinstance(version, int) and version > HANDOFF_VERSION:
        found = f"the configuration has handoffVersion {version}, this trainer supports {HANDOFF_VERSION}"
        raise InvalidConfig(f"{found}: use the trainer image of the operator's version")


def _begin(state: RunState, config_path: Path, port: int) -> tuple[JobConfig, Reporter]:
    config = read_config(config_path, state)
    reporter = state.reporter = Reporter(config.uid)
    serve(reporter, port)
    reporter.start.end("process")
    return config, reporter


def serve(reporter: Reporter, port: int) -> None:
    """Serve progress on the port; if the port is taken, log a warning and continue."""
    try:
        logger.info("serving /progress, /metrics and /healthz on port %d", reporter.serve(port))
    except OSError as error:
        logger.warning("cannot open port %d, progress is not served: %s", port, error.strerror)


def connect_stores(config: JobConfig, stop: StopFlag, retry_budget: float = 0.0) -> Store:
    """Return the job's stores; each connects when it is first used. `retry_budget` is in seconds."""
    from finetune_trainer.storage.routed import RoutedStore

    def open_s3() -> Store:
        from finetune_trainer.storage.s3 import S3Store
        from finetune_trainer.storage.s3_client import connect_s3

        return S3Store(connect_s3(config.spec.storage), retry_budget, stop)

    def open_hub() -> ReadableStore:
        from finetune_trainer.storage.hub.storage import HubStore
        from finetune_trainer.storage.hub.uris import connect_hub

        return HubStore(connect_hub(config.spec), retry_budget, stop)

    return RoutedStore(open_s3, open_hub)
