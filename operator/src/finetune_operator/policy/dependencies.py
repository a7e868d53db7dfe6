"""What a job needs of other FineTuneJobs: whether it may start, why not, and what it then holds on to."""

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
"""Jobs that are looked at for one that waits; a circle of more is only found by the shorter ways through it."""


@dataclass(frozen=True)
class Need:
    """A reference to another job of the same namespace."""

    pin: Literal["parent", "reward_job"]
    """Field of `status.lineage` that holds the other job as it was when this one was accepted."""
    field: str
    """The reference in the spec."""
    name: str


@dataclass(frozen=True)
class Obstacle:
    """Why a job cannot start yet, or not like this."""

    reason: Reason
    detail: str


def needs(spec: FineTuneJobSpec | None) -> list[Need]:
    """The references of a spec."""
    found = []
    if spec and spec.lineage and spec.lineage.parent_ref:
        found.append(Need("parent", "lineage.parentRef", spec.lineage.parent_ref.name))
    reward = spec.rlhf.reward_model if spec and spec.rlhf else None
    if reward and reward.job_ref:
        found.append(Need("reward_job", "rlhf.rewardModel.jobRef", reward.job_ref.name))
    return found


def open_needs(job: FineTuneJob) -> list[Need]:
    """The references that are not answered: of a job that is accepted or finished there are none."""
    if job.is_finished:
        return []
    return [need for need in needs(job.spec) if getattr(job.status.lineage, need.pin, None) is None]


def find_obstacle(job: FineTuneJob, relatives: Relatives) -> Obstacle | None:
    """The worst of what keeps a job from starting: a mistake in the spec before a failed job before one that runs."""
    for judge in (_mistakes, _failed, _unfinished):
        found = list(judge(job, relatives))
        if found:
            return found[0] if len(found) == 1 else Obstacle(found[0].reason, "; ".join(one.detail for one in found))
    return None


def pin(status: FineTuneJobStatus, job: FineTuneJob, relatives: Relatives) -> bool:
    """Holds on to the complete jobs that this one builds on, whatever becomes of them; whether any was new."""
    found = {need.pin: _published(parent) for need in open_needs(job) if (parent := relatives.get(need.name))}
    if found:
        status.lineage = merged(status.lineage, Lineage(**found))
    return bool(found)


def _mistakes(job: FineTuneJob, relatives: Relatives) -> Iterator[Obstacle]:
    for need in open_needs(job):
        circle = _circle(job, need.name, relatives)
        if circle:
            way = " → ".join(circle)
            yield Obstacle(Reason.INVALID_SPEC, f"{need.field} forms a cycle, {way}: delete one of these jobs")
        parent = relatives.get(need.name)
        if parent and parent.spec:
            yield from _misfits(job, need, parent, parent.spec)


def _misfits(job: FineTuneJob, need: Need, parent: FineTuneJob, spec: FineTuneJobSpec) -> Iterator[Obstacle]:
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
    """What preflight chose, else what was asked for; the artifacts do not tell, for a long report leaves URIs out."""
    resolved = parent.status.resolved
    return ((resolved and resolved.method) or spec.tuning.method) == Method.FULL


def _circle(job: FineTuneJob, start: str, relatives: Relatives) -> list[str]:
    """The names from the job along what each waits for back to the job; empty when no way leads back."""
    home = job.key.name
    ways = [[home, start]]
    known = set()
    while ways:
        way = ways.pop(0)
        if way[-1] == home:
            return way
        other = relatives.get(way[-1])
        if other is None or way[-1] in known:
            continue
        known.add(way[-1])
        ways += [[*way, need.name] for need in open_needs(other)]
    return []


def _failed(job: FineTuneJob, relatives: Relatives) -> Iterator[Obstacle]:
    for need in open_needs(job):
        parent = relatives.get(need.name)
        if parent and parent.status.is_true(ConditionType.FAILED):
            why = f"{parent.status.reason}: {parent.status.message}".strip(": ")
            yield Obstacle(
                Reason.PARENT_FAILED,
                f"{need.field} {need.name} has failed ({why[:300]}): fix the cause, delete it and recreate it, and "
                "this job continues; or delete this job",
            )


def _unfinished(job: FineTuneJob, relatives: Relatives) -> Iterator[Obstacle]:
    for need in open_needs(job):
        parent = relatives.get(need.name)
        if parent is None:
            where = f"there is no FineTuneJob {need.name} in namespace {job.key.namespace}"
            yield Obstacle(Reason.WAITING_FOR_PARENT, f"{where} ({need.field}): this job starts once it is complete")
        elif _is_complete(parent) and _published(parent) is None:
            unread = f"{need.field} {need.name} is complete, but this version of the operator cannot read its result"
            yield Obstacle(Reason.WAITING_FOR_PARENT, unread)
        elif _published(parent) is None:
            state = f"it is {parent.status.phase}" if parent.status.phase else "it has just been created"
            yield Obstacle(Reason.WAITING_FOR_PARENT, f"{need.field} {need.name} is not complete yet: {state}")


def _is_complete(job: FineTuneJob) -> bool:
    return job.status.is_true(ConditionType.COMPLETE)


def _published(job: FineTuneJob) -> PublishedJob | None:
    """The result of a complete job."""
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
