"""Verify the lineage of a published result against its manifest, and from parent to parent back to the base."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.handoff import ADAPTER_WEIGHTS, Artifact, Manifest
from finetune_api.scalars import StatusBlock
from finetune_api.status import PublishedJob
from finetune_trainer.storage.protocol import ReadableStore, join_uri

MAX_LINKS = 64
"""Maximum number of results, bases and teachers; a longer chain is a fault."""


@dataclass(frozen=True)
class Link:
    """A result, or the base at an end of the chain; `sha256` is the digest of its manifest, or of the base's files."""

    depth: int
    role: str
    name: str
    uri: str
    sha256: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.role, self.name, self.uri, f"sha256:{self.sha256}") if part)


class RecordedJob(StatusBlock):
    """The field `job` of a lineage."""

    namespace: str
    name: str
    uid: str
    config_sha256: str


class RecordedFile(StatusBlock):
    """A file in a lineage."""

    path: str
    sha256: str


class RecordedBase(StatusBlock):
    """The field `baseModel` or `teacher` of a lineage."""

    uri: str
    revision: str | None = None
    sha256: str


class RecordedRows(StatusBlock):
    """The field `dataset` of a lineage."""

    files: list[RecordedFile]


class RecordedAdapter(StatusBlock):
    """The field `initialAdapter` of a lineage."""

    uri: str
    sha256: str | None = None


class RecordedLineage(StatusBlock):
    """The verified fields of a `lineage.json`."""

    job: RecordedJob
    config_file: RecordedFile
    base_model: RecordedBase
    teacher: RecordedBase | None = None
    dataset: RecordedRows
    initial_adapter: RecordedAdapter | None = None
    parent: PublishedJob | None = None
    reward_job: PublishedJob | None = None

    def ancestors(self) -> Iterator[tuple[str, PublishedJob]]:
        """Yield the results that it builds on, each with its role."""
        for role, job in (("parent", self.parent), ("reward job", self.reward_job)):
            if job:
                yield role, job


@dataclass(frozen=True)
class _Visit:
    role: str
    job: PublishedJob
    depth: int
    seen: tuple[str, ...]
    children: tuple[tuple[str, RecordedLineage], ...]
    """The lineages that lead to it, each with the start of its faults."""

    def __str__(self) -> str:
        return f"{self.role} {self.job.output_uri}"


def read_result(uri: str, storage: ReadableStore) -> Manifest | str:
    """Return the manifest under a prefix, or its fault."""
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    return f"{Artifact.MANIFEST} is missing" if data is None else _parse(data)


def follow_chain(
    uri: str, manifest: Manifest, storage: ReadableStore
) -> tuple[RecordedLineage | None, list[Link], list[str]]:
    """Return the result's lineage, every result, base and teacher in its chain, and the faults."""
    lineage = _read_lineage(uri, manifest, storage)
    if isinstance(lineage, str):
        return None, [], [lineage]
    faults, links = list(_compare_manifest(lineage, manifest)), [*_models(lineage, 1)]
    visits = _visits(lineage, 1, (uri,), (("", lineage),))
    while visits:
        if len(links) >= MAX_LINKS:
            return lineage, links, [*faults, f"the chain has more than {MAX_LINKS} links"]
        visit = visits.pop(0)
        parent = _read_parent(visit, storage)
        if isinstance(parent, str):
            faults.append(f"{visit} {parent}")
            continue
        for start, child in visit.children:
            faults += [f"{start}{fault}" for fault in _compare_adapter(child, visit.job.output_uri, parent)]
        links.append(
            Link(
                visit.depth,
                visit.role,
                f"{parent.namespace}/{parent.name}",
                visit.job.output_uri,
                visit.job.manifest_sha256,
            )
        )
        above = _read_lineage(visit.job.output_uri, parent, storage)
        if isinstance(above, str):
            faults.append(f"{visit}: {above}")
            continue
        faults += [f"{visit}: {fault}" for fault in _compare_manifest(above, parent)]
        links += _models(above, visit.depth + 1)
        children = (*visit.children, (f"{visit}: ", above))
        visits = _visits(above, visit.depth + 1, (*visit.seen, visit.job.output_uri), children) + visits
    return lineage, links, faults


def _parse(data: bytes) -> Manifest | str:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return f"{Artifact.MANIFEST} cannot be read"


def _read_lineage(uri: str, manifest: Manifest, storage: ReadableStore) -> RecordedLineage | str:
    listed = _digests(manifest).get(Artifact.LINEAGE)
    data = storage.read(join_uri(uri, Artifact.LINEAGE)) if listed else None
    if data is None:
        return f"{Artifact.LINEAGE} is missing" if listed else f"{Artifact.MANIFEST} lists no {Artifact.LINEAGE}"
    if hashlib.sha256(data).hexdigest() != listed:
        return f"{Artifact.LINEAGE} does not match its SHA-256 in the manifest"
    try:
        return RecordedLineage.model_validate_json(data)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        return f"{Artifact.LINEAGE} cannot be read: {field or 'it'} is missing or invalid"


def _compare_manifest(lineage: RecordedLineage, manifest: Manifest) -> Iterator[str]:
    """Yield the differences between a lineage and its manifest."""
    for name in RecordedJob.model_fields:
        ours, theirs = getattr(lineage.job, name), getattr(manifest, name)
        if ours != theirs:
            yield f"lineage: {name} of the job is {ours} and {theirs} in the manifest"
    listed = _digests(manifest)
    for file in (lineage.config_file, *lineage.dataset.files):
        if listed.get(file.path) != file.sha256:
            yield f"lineage: {file.path} has SHA-256 {file.sha256} and {listed.get(file.path)} in the manifest"


def _compare_adapter(lineage: RecordedLineage, uri: str, manifest: Manifest) -> Iterator[str]:
    """Yield a fault if the continued adapter is of this result, but not the one that its manifest lists."""
    adapter, folder = lineage.initial_adapter, join_uri(uri, Artifact.ADAPTER)
    listed = _digests(manifest).get(f"{Artifact.ADAPTER}/{ADAPTER_WEIGHTS}")
    if adapter and adapter.uri == folder and adapter.sha256 != listed:
        yield f"lineage: the adapter {folder} had SHA-256 {adapter.sha256} and {listed} in its manifest"


def _visits(
    lineage: RecordedLineage, depth: int, seen: tuple[str, ...], children: tuple[tuple[str, RecordedLineage], ...]
) -> list[_Visit]:
    return [_Visit(role, job, depth, seen, children) for role, job in lineage.ancestors()]


def _read_parent(visit: _Visit, storage: ReadableStore) -> Manifest | str:
    uri, recorded = visit.job.output_uri, visit.job.manifest_sha256
    if uri in visit.seen:
        return "is its own ancestor"
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    if data is None:
        return f"has no {Artifact.MANIFEST}, the recorded SHA-256 is {recorded}"
    found = hashlib.sha256(data).hexdigest()
    if found != recorded:
        return f"has a {Artifact.MANIFEST} of SHA-256 {found} instead of the recorded {recorded}"
    return _parse(data)


def _digests(manifest: Manifest) -> dict[str, str]:
    return {file.path: file.sha256 for file in manifest.files}


def _models(lineage: RecordedLineage, depth: int) -> Iterator[Link]:
    """Yield the base, and its teacher if it has one."""
    for role, model in (("base", lineage.base_model), ("teacher", lineage.teacher)):
        if model:
            commit = f"@{model.revision}" if model.revision else ""
            yield Link(depth, role, "", f"{model.uri}{commit}", model.sha256)
