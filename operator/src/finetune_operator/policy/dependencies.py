"""The FineTuneJobs that a job builds on: whether it may start, why not, and which results it uses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from finetune_api.names import ConditionType, Reason
from finetune_api.spec import FineTuneJobSpec, Method, Objective
from finetune_api.status import FineTuneJobStatus, Lineage, PublishedJob
from finetune_operator.kube.objects import FineTuneJob
from finetune_operator.kube.observed import Relatives
from finetune_operator.policy.status_report import merged

MAX_RELATIVES = 32
"""Maximum number of jobs to read for a waiting one; in a longer cycle, only shorter paths are detected."""


@dataclass(frozen=True)
class Need:
    """A reference to another job of the same namespace."""

    pin: Literal["parent", "reward_job"]
    """Field of `status.lineage` that records the other job when this one is accepted."""
    field: str
    """Path of the reference in the spec."""
    name: str


@dataclass(frozen=True)
class Obstacle:
    """Why a job cannot start, or not yet."""

    reason: Reason
    detail: str


def needs(spec: FineTuneJobSpec | None) -> list[Need]:
    """Return a spec's references to other jobs."""
    found = []
    if spec and spec.lineage and spec.lineage.parent_ref:
        found.append(Need("parent", "lineage.parentRef", spec.lineage.parent_ref.name))
    reward = spec.rlhf.reward_model if spec and spec.rlhf else None
    if reward and reward.job_ref:
        found.append(Need("reward_job", "rlhf.rewardModel.jobRef", reward.job_ref.name))
    return found


def open_needs(job: FineTuneJob) -> list[Need]:
    """Return the references that are not pinned yet: none for an accepted or finished job."""
    if job.is_finished:
        return []
    return [need for need in needs(job.spec) if getattr(job.status.lineage, need.pin, None) is None]


def find_obstacle(job: FineTuneJob, relatives: Relatives) -> Obstacle | None:
    """Return what keeps a job from starting: a mistake in the spec, else a failed job, else an unfinished one."""
    for check in (_spec_mistakes, _failed_parents, _unfinished_parents):
        found = list(check(job, relatives))
        if found:
            return found[0] if len(found) == 1 else Obstacle(found[0].reason, "; ".join(one.detail for one in found))
    return None


def pin(status: FineTuneJobStatus, job: FineTuneJob, relatives: Relatives) -> bool:
    """Record the complete jobs that this one builds on, and return whether any was new."""
    found = {need.pin: _published_result(parent) for need in open_needs(job) if (parent := relatives.get(need.name))}
    if found:
        status.lineage = merged(status.lineage, Lineage(**found))
    return bool(found)


def _spec_mistakes(job: FineTuneJob, relatives: Relatives) -> Iterator[Obstacle]:
    for need in open_needs(job):
        cycle = _find_cycle(job, need.name, relatives)
        if cycle:
            path = " → ".join(cycle)
            yield Obstacle(Reason.INVALID_SPEC, f"{need.field} forms a cycle, {path}: delete one of these jobs")
        parent = relatives.get(need.name)
        if parent and parent.spec:
            yield from _parent_mismatches(job, need, parent, parent.spec)


def _parent_mismatches(job: FineTuneJob, need: Need, parent: FineTuneJob, spec: FineTuneJobSpec) -> Iterator[Obstacle]:
    if need.pin == "reward_job" and spec.objective is not Objective.REWARD_MODEL:
        yield Obstacle(
            Reason.INVALID_SPEC,
            f"{need.field} of {job.key.name} names {need.name}, whose objective is {spec.objective.value}: name a job "
            "with objective RewardModel",
        )
    if need.pin == "parent" and _continues_adapter(job) and _trains_every_weight(parent, spec):
        yield Obstacle(
            Reason.INVALID_SPEC,
            f"tuning.initialAdapter.fromParent is set, but {need.name} trains every weight (method Full) and "
            "publishes no adapter: remove tuning.initialAdapter, and set model.uri to what it publishes",
        )


def _continues_adapter(job: FineTuneJob) -> bool:
    adapter = job.spec.tuning.initial_adapter if job.spec else None
    return adapter is not None and bool(adapter.from_parent)


def _trains_every_weight(parent: FineTuneJob, spec: FineTuneJobSpec) -> bool:
    """Return whether the parent used method Full: as resolved by preflight, else as requested.

    Its artifacts are no proof, because a long report omits URIs.
    """
    resolved = parent.status.resolved
    return ((resolved and resolved.method) or spec.tuning.method) == Method.FULL


def _find_cycle(job: FineTuneJob, start: str, relatives: Relatives) -> list[str]:
    """Return the names along a cycle of references through the job; empty if there is none."""
    origin = job.key.name
    paths = [[origin, start]]
    visited = set()
    while paths:
        path = paths.pop(0)
        if path[-1] == origin:
            return path
        other = relatives.get(path[-1])
        if other is None or path[-1] in visited:
            continue
        visited.add(path[-1])
        paths += [[*path, need.name] for need in open_needs(other)]
    return []


def _failed_parents(job: FineTuneJob, relatives: Relatives) -> Iterator[Obstacle]:
    for need in open_needs(job):
        parent = relatives.get(need.name)
        if parent and parent.status.is_true(ConditionType.FAILED):
            why = f"{parent.status.reason}: {parent.status.message}".strip(": ")
            yield Obstacle(
                Reason.PARENT_FAILED,
                f"{need.field} {need.name} has failed ({why[:300]}): fix the cause, delete it and recreate it, and "
                "this job continues; or delete this job",
            )


def _unfinished_parents(job: FineTuneJob, relatives: Relatives) -> Iterator[Obstacle]:
    for need in open_needs(job):
        parent = relatives.get(need.name)
        if parent is None:
            where = f"FineTuneJob {need.name} ({need.field}) does not exist in namespace {job.key.namespace}"
            fix = f"this job starts once it is complete; if no such job is to come, check the name in {need.field}"
            yield Obstacle(Reason.WAITING_FOR_PARENT, f"{where}: {fix}")
        elif _is_complete(parent) and _published_result(parent) is None:
            unread = f"{need.field} {need.name} is complete, but this version of the operator cannot read its result"
            yield Obstacle(Reason.WAITING_FOR_PARENT, unread)
        elif _published_result(parent) is None:
            state = f"it is {parent.status.phase}" if parent.status.phase else "it has just been created"
            yield Obstacle(Reason.WAITING_FOR_PARENT, f"{need.field} {need.name} is not complete yet: {state}")


def _is_complete(job: FineTuneJob) -> bool:
    return job.status.is_true(ConditionType.COMPLETE)


def _published_result(job: FineTuneJob) -> PublishedJob | None:
    """Return the result of a complete job."""
    artifacts = job.status.artifacts
    if not _is_complete(job) or job.spec is None or artifacts is None or not artifacts.manifest_sha256:
        return None
    return PublishedJob(
        name=job.key.name,
        uid=job.uid,
        objective=job.spec.objective.value,
        output_uri=artifacts.uri or job.spec.output.uri,
        manifest_sha256=artifacts.manifest_sha256,
    )
