"""`finetune-trainer run`: the same preflight and training on this machine, from a job's manifest."""

# ruff: noqa: PLC0415 - heavy modules are imported when they are needed

import logging
import shlex
import sys
import uuid
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune_api.handoff import Artifact, JobConfig, Outcome, Report
from finetune_api.objectives import Objective
from finetune_trainer.commands.existing_result import require_same_inputs
from finetune_trainer.commands.folders import require_folder
from finetune_trainer.commands.local_jobs import add_references, parse_finished, sort_jobs, to_published_job
from finetune_trainer.commands.local_maps import LocalNames, read_maps
from finetune_trainer.commands.local_servers import require_own_graders, require_own_trackers
from finetune_trainer.commands.local_stores import connect_here
from finetune_trainer.config.manifest import read_manifests
from finetune_trainer.config.run_context import RunContext, bind_checked
from finetune_trainer.entrypoints.termination import RunState
from finetune_trainer.monitoring.bar import logs_above_bar
from finetune_trainer.monitoring.reporter import Reporter
from finetune_trainer.pipeline.preflight import preflight
from finetune_trainer.storage.local import LocalStore
from finetune_trainer.storage.own_servers import FLAG
from finetune_trainer.storage.protocol import Store

logger = logging.getLogger(__name__)

SHOWN = {
    "report": Artifact.REPORT_PAGE,
    "adapter": Artifact.ADAPTER,
    "full model": Artifact.MERGED,
    "GGUF": Artifact.GGUF,
}


@dataclass
class LocalRun:
    """The report of the last job, and what to print at the end: files and commands of every job."""

    report: Report
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of the command: `NAME=DIR` of finished jobs, and the servers that get this machine's keys."""

    maps: Sequence[str] = ()
    finished: Sequence[str] = ()
    send_keys_to: Collection[str] = ()


def run_jobs(state: RunState, manifest: Path, output: Path, options: RunOptions, *, workspace: Path) -> LocalRun:
    """Check, train and publish the jobs of a manifest, parents first.

    A single job's result is written to `output`, several each to a subfolder with their name, unless `--map` covers
    `output.uri`.
    """
    require_folder(output, "--output")
    require_folder(workspace, "--workspace")
    jobs = read_manifests(manifest, lambda: str(uuid.uuid4()))
    for job in jobs:
        require_own_trackers(job, options.send_keys_to)
        require_own_graders(job, options.send_keys_to)
    earlier = parse_finished(options.finished)
    done = {name: one.job for name, one in earlier.items()}
    folders = {one.job.output_uri: one.folder for one in earlier.values()}
    folders |= {job.output_key(): output / job.name if len(jobs) > 1 else output for job in jobs}
    maps = read_maps(options.maps, jobs, done.values())
    folders |= maps
    local, lines, names = LocalStore(folders), list[str](), LocalNames(folders, maps)
    ordered = sort_jobs(jobs, done)
    with logs_above_bar() if sys.stdout.isatty() else nullcontext():
        for job in ordered:
            config = state.config = add_references(job, done)
            stores = connect_here(config.spec, state.stop, local, options.send_keys_to)
            with names.in_errors(job.output_key()):
                report = _run_one(state, config, stores, local, workspace / job.name)
            report = report.model_copy(update={"message": names.replace_uris(report.message, job.output_key())})
            lines += list_next_steps(config, local, options.send_keys_to)
            if report.outcome is Outcome.GATE_NOT_MET:  # its children cannot build on it
                left = ordered[ordered.index(job) + 1 :]
                lines += [f"{one.name}: was not run, because {job.name} did not meet its gate" for one in left]
                break
            done[job.name] = to_published_job(config, report.artifacts.manifest_sha256 if report.artifacts else None)
            if job is not ordered[-1]:
                logger.info("%s: %s: %s", job.name, report.reason, report.message)
    return LocalRun(report, lines)


def list_next_steps(config: JobConfig, local: LocalStore, send_keys_to: Collection[str]) -> list[str]:
    """Return where the published files are, and the command to try the model; only what exists is named."""
    folder = local.find(config.output_key())
    if folder is None:
        return []
    found = {name: folder / artifact for name, artifact in SHOWN.items() if (folder / artifact).exists()}
    lines = [f"{config.name}: {name} {path}" for name, path in found.items()]
    has_model = "adapter" in found or "full model" in found
    if has_model and config.spec.objective is not Objective.REWARD_MODEL:
        base = local.find(config.spec.model.uri)
        servers = [word for one in send_keys_to for word in (FLAG, one)]
        command = ["finetune-trainer", "chat", str(folder), *(["--base", str(base)] if base else servers)]
        lines.append(f"{config.name}: try it with {shlex.join(command)}")
    return lines


def _run_one(state: RunState, config: JobConfig, storage: Store, local: LocalStore, workspace: Path) -> Report:
    if state.reporter:
        state.reporter.close()
    reporter = state.reporter = Reporter(config.uid)
    workspace.mkdir(parents=True, exist_ok=True)
    context = RunContext(config, storage, workspace, reporter, state.stop)
    checked = preflight(context)
    if checked.outcome is not Outcome.VALIDATED:  # the job's result exists already
        require_same_inputs(config, storage, local)
        logger.info("nothing was trained, because the result is there: to train again, choose another --output")
        return checked
    logger.info("%s: %s", checked.reason, checked.message)
    state.stop.raise_if_set()
    with reporter.start.libraries():
        from finetune_trainer.pipeline.train import train

    ready = bind_checked(config.model_copy(update={"attempt": 1}), checked)
    state.config = ready
    return train(replace(context, config=ready))
