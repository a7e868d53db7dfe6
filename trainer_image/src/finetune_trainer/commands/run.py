"""`finetune-trainer run`: the same preflight and training on this machine, from a job's manifest."""

# ruff: noqa: PLC0415 - heavy modules are imported when they are needed

import logging
import os
import uuid
from dataclasses import replace
from pathlib import Path

from finetune_api.handoff import JobConfig, Outcome, Report
from finetune_api.spec import FineTuneJobSpec
from finetune_api.spec import Storage as StorageSpec
from finetune_trainer.commands.local_jobs import add_references, parse_finished, sort_jobs, to_published_job
from finetune_trainer.config.manifest import read_manifests
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.sigterm import StopFlag
from finetune_trainer.storage.local import LocalStore, parse_maps
from finetune_trainer.storage.protocol import ReadableStore, Store
from finetune_trainer.storage.routed import RoutedStore

logger = logging.getLogger(__name__)


def run_jobs(
    state: RunState, manifest: Path, output: Path, maps: list[str], finished: list[str], *, workspace: Path
) -> Report:
    """Check, train and publish the jobs of a manifest, parents first; return the report of the last one.

    A single job's result is written to `output`, several each to a subfolder with their name, unless `--map` covers
    `output.uri`.
    """
    jobs = read_manifests(manifest, lambda: str(uuid.uuid4()))
    earlier = parse_finished(finished)
    done = {name: one.job for name, one in earlier.items()}
    folders = {one.job.output_uri: one.folder for one in earlier.values()}
    folders |= {job.output_key(): output / job.name if len(jobs) > 1 else output for job in jobs}
    folders |= parse_maps(maps)
    ordered = sort_jobs(jobs, done)
    for job in ordered:
        config = state.config = add_references(job, done)
        storage = _connect(config.spec, state.stop, LocalStore(folders))
        report = _run_one(state, config, storage, workspace / job.name)
        if report.outcome is Outcome.GATE_NOT_MET:  # its children cannot build on it
            return report
        done[job.name] = to_published_job(config, report.artifacts.manifest_sha256 if report.artifacts else None)
        if job is not ordered[-1]:
            logger.info("%s: %s: %s", job.name, report.reason, report.message)
    return report


def _run_one(state: RunState, config: JobConfig, storage: Store, workspace: Path) -> Report:
    if state.reporter:
        state.reporter.close()
    reporter = state.reporter = Reporter(config.uid)
    workspace.mkdir(parents=True, exist_ok=True)
    context = RunContext(config, storage, workspace, reporter, state.stop)
    checked = preflight(context)
    logger.info("%s: %s", checked.reason, checked.message)
    if checked.outcome is not Outcome.VALIDATED:  # the job's result exists already
        return checked
    state.stop.raise_if_set()
    from finetune_trainer.pipeline.train import train

    ready = config.model_copy(update={"resolved": checked.resolved, "dataset": checked.dataset, "attempt": 1})
    state.config = ready
    return train(replace(context, config=ready))


def _connect(spec: FineTuneJobSpec, stop: StopFlag, local: LocalStore) -> Store:
    """Return the job's stores with this machine's credentials: the manifest's Secrets exist only in a cluster."""

    def open_s3() -> Store:
        from finetune_trainer.storage.s3 import S3Store
        from finetune_trainer.storage.s3_client import S3Connection

        storage = (spec.storage or StorageSpec()).model_copy(
            update={"credentials_secret_ref": None, "ca_secret_ref": None}
        )
        if storage.endpoint is None and os.environ.get("AWS_ENDPOINT_URL"):
            storage = storage.model_copy(update={"endpoint": os.environ["AWS_ENDPOINT_URL"]})
        return S3Store(S3Connection(storage))

    def open_hub() -> ReadableStore:
        from finetune_trainer.storage.hub.uris import connect_hub_here

        connection = connect_hub_here(spec)
        from finetune_trainer.storage.hub.storage import HubStore

        return HubStore(connection, stop=stop)

    return RoutedStore(open_s3, open_hub, local)
