"""Find the jobs that a job builds on without an operator: in the same manifest, or among finished results."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from pydantic import ValidationError

from finetune_api import names
from finetune_api.handoff import Artifact, JobConfig, Manifest
from finetune_api.status import PublishedJob
from finetune_trainer.config.manifest import read_manifest
from finetune_trainer.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference to another job: the field of the spec, the field of the configuration for it, and the job's name."""

    field: str
    holder: str
    name: str


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """The result of an earlier run and its folder."""

    job: PublishedJob
    folder: Path


def list_references(config: JobConfig) -> list[Reference]:
    """Return the jobs that this one builds on."""
    found = []
    lineage, rlhf = config.spec.lineage, config.spec.rlhf
    if lineage and lineage.parent_ref:
        found.append(Reference("lineage.parentRef", "parent", lineage.parent_ref.name))
    if rlhf and rlhf.reward_model and rlhf.reward_model.job_ref:
        found.append(Reference("rlhf.rewardModel.jobRef", "reward_job", rlhf.reward_model.job_ref.name))
    return found


def sort_jobs(configs: Sequence[JobConfig], finished: Iterable[str]) -> list[JobConfig]:
    """Return the jobs, parents first; raise if a referenced job is neither among them nor finished."""
    jobs = {config.name: config for config in configs}
    known = jobs.keys() | set(finished)
    for config in configs:
        for reference in list_references(config):
            if reference.name not in known:
                raise InvalidConfig(
                    f"{config.name}: {reference.field} names {reference.name}, which is not available: put "
                    f"its {names.KIND} into the same file, or pass its finished result with "
                    f"--job {reference.name}=DIR, the --output folder of its run"
                )
    needs = {name: [one.name for one in list_references(config) if one.name in jobs] for name, config in jobs.items()}
    try:
        return [jobs[name] for name in TopologicalSorter(needs).static_order()]
    except CycleError as error:
        raise InvalidConfig(f"these jobs wait for each other: {', '.join(sorted(set(error.args[1])))}") from None


def add_references(config: JobConfig, finished: Mapping[str, PublishedJob]) -> JobConfig:
    """Return the configuration with the finished jobs that it builds on, as the operator would write it."""
    return config.model_copy(update={one.holder: finished[one.name] for one in list_references(config)})


def to_published_job(config: JobConfig, manifest_sha256: str | None) -> PublishedJob:
    """Return a job with a result as a parent for others."""
    return PublishedJob(
        name=config.name,
        uid=config.uid,
        objective=config.spec.objective.value,
        output_uri=config.output_key(),
        manifest_sha256=manifest_sha256 or "",
    )


def parse_finished(options: Sequence[str]) -> dict[str, FinishedJob]:
    """Parse `NAME=DIR` options into finished jobs by name."""
    found = {}
    for option in options:
        name, separator, folder = option.partition("=")
        if not separator or not name or not folder:
            raise InvalidConfig(f"--job {option}: write NAME=DIR")
        found[name] = _finished(option, name, Path(folder))
    return found


def _finished(option: str, name: str, folder: Path) -> FinishedJob:
    try:
        data = (folder / Artifact.MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(data)
    except (OSError, ValidationError):
        raise InvalidConfig(f"--job {option}: {folder} does not contain a finished result") from None
    if manifest.name != name:
        raise InvalidConfig(f"--job {option}: the result in {folder} belongs to {manifest.name}")
    config = read_manifest(folder / Artifact.CONFIG, manifest.uid)
    return FinishedJob(to_published_job(config, hashlib.sha256(data).hexdigest()), folder)
