"""The lineage of a published result, held against its manifest and followed from parent to parent back to the base."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.handoff import Artifact, Manifest
from finetune_trainer.storage import Storage, join

MOST_LINKS = 64
"""Results that are looked at; a longer chain is told as a fault."""
ANCESTORS = {"parent": "parent", "rewardJob": "reward job"}


@dataclass(frozen=True)
class Link:
    """One result, or the base at an end of the chain; `sha256` is that of its manifest, or of the base's files."""

    depth: int
    role: str
    name: str
    uri: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.role} {self.name} {self.uri} sha256:{self.sha256}".replace("  ", " ")


@dataclass(frozen=True)
class _Visit:
    role: str
    uri: str
    sha256: str
    depth: int
    seen: tuple[str, ...] = ()


def read_result(uri: str, storage: Storage) -> Manifest | str:
    """The manifest under a prefix, or what is wrong with it."""
    data = storage.read(join(uri, Artifact.MANIFEST))
    if data is None:
        return f"{Artifact.MANIFEST} is missing"
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return f"{Artifact.MANIFEST} cannot be read"


def find_chain(
    uri: str, manifest: Manifest, storage: Storage
) -> tuple[Mapping[str, Any] | None, list[Link], list[str]]:
    """The result's own lineage, every result and base that it comes from, and what does not fit."""
    lineage, faults = _read_lineage(uri, manifest, storage)
    if lineage is None:
        return None, [], faults
    faults += list(_unlike_manifest(lineage, manifest))
    links: list[Link] = []
    open_ends = list(_parents(lineage, 1, (uri,)))[::-1]
    links += _base(lineage, 1)
    while open_ends and len(links) < MOST_LINKS:
        visit = open_ends.pop()
        parent = _read_parent(visit, storage)
        if isinstance(parent, str):
            faults.append(parent)
            continue
        links.append(Link(visit.depth, visit.role, f"{parent.namespace}/{parent.name}", visit.uri, visit.sha256))
        above, more = _read_lineage(visit.uri, parent, storage)
        faults += [f"{visit.role} {visit.uri}: {fault}" for fault in more]
        if visit.depth == 1 and visit.role == "parent":
            faults += list(_unlike_parent(lineage, visit.uri, parent))
        if above is None:
            continue
        faults += [f"{visit.role} {visit.uri}: {fault}" for fault in _unlike_manifest(above, parent)]
        links += _base(above, visit.depth + 1)
        open_ends += list(_parents(above, visit.depth + 1, (*visit.seen, visit.uri)))[::-1]
    if open_ends and len(links) >= MOST_LINKS:
        faults.append(f"the chain has more than {MOST_LINKS} links")
    return lineage, links, faults


def _read_lineage(uri: str, manifest: Manifest, storage: Storage) -> tuple[dict[str, Any] | None, list[str]]:
    listed = next((file.sha256 for file in manifest.files if file.path == Artifact.LINEAGE), None)
    if listed is None:
        return None, [f"{Artifact.MANIFEST} lists no {Artifact.LINEAGE}"]
    data = storage.read(join(uri, Artifact.LINEAGE))
    if data is None:
        return None, [f"{Artifact.LINEAGE} is missing"]
    if hashlib.sha256(data).hexdigest() != listed:
        return None, [f"{Artifact.LINEAGE} has another content than its SHA-256 in the manifest"]
    try:
        content = dict(json.loads(data))
        parts = [dict(content[name]) for name in ("job", "baseModel", "dataset")]
    except (ValueError, KeyError, TypeError):
        parts = []
    if not parts or not all(parts):
        return None, [f"{Artifact.LINEAGE} cannot be read: it names no job, base model or dataset"]
    return content, []


def _unlike_manifest(lineage: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """Where the lineage tells something else than the manifest that it is published with."""
    job, listed = lineage["job"], {file.path: file.sha256 for file in manifest.files}
    for name, theirs in (
        ("namespace", manifest.namespace),
        ("name", manifest.name),
        ("uid", manifest.uid),
        ("configSha256", manifest.config_sha256),
    ):
        if job.get(name) != theirs:
            yield f"lineage: job.{name} is {job.get(name)} and {theirs} in the manifest"
    config = lineage.get("configFile", {}).get("sha256")
    if config != listed.get(Artifact.CONFIG):
        yield f"lineage: {Artifact.CONFIG} has SHA-256 {config} and {listed.get(Artifact.CONFIG)} in the manifest"
    for file in lineage["dataset"].get("files", []):
        path, sha256 = file.get("path"), file.get("sha256")
        if listed.get(path) != sha256:
            yield f"lineage: {path} has SHA-256 {sha256} and {listed.get(path)} in the manifest"


def _unlike_parent(lineage: Mapping[str, Any], uri: str, parent: Manifest) -> Iterator[str]:
    """The adapter that was continued is the one that the parent published."""
    adapter = lineage.get("initialAdapter", {})
    folder = f"{uri.rstrip('/')}/{Artifact.ADAPTER}"
    if adapter.get("uri") != folder:
        return
    path = f"{Artifact.ADAPTER}/adapter_model.safetensors"
    listed = next((file.sha256 for file in parent.files if file.path == path), None)
    if adapter.get("sha256") != listed:
        yield f"lineage: the adapter {folder} had SHA-256 {adapter.get('sha256')} and {listed} in its manifest"


def _parents(lineage: Mapping[str, Any], depth: int, seen: tuple[str, ...]) -> Iterator[_Visit]:
    for name, role in ANCESTORS.items():
        other = lineage.get(name)
        if isinstance(other, dict):
            yield _Visit(role, str(other.get("outputUri")), str(other.get("manifestSha256")), depth, seen)


def _read_parent(visit: _Visit, storage: Storage) -> Manifest | str:
    if visit.uri in visit.seen:
        return f"{visit.role} {visit.uri} comes from itself"
    data = storage.read(join(visit.uri, Artifact.MANIFEST))
    if data is None:
        return f"{visit.role} {visit.uri}: {Artifact.MANIFEST} is missing, recorded was SHA-256 {visit.sha256}"
    found = hashlib.sha256(data).hexdigest()
    if found != visit.sha256:
        return (
            f"{visit.role} {visit.uri}: {Artifact.MANIFEST} has SHA-256 {found} instead of the recorded {visit.sha256}"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return f"{visit.role} {visit.uri}: {Artifact.MANIFEST} cannot be read"


def _base(lineage: Mapping[str, Any], depth: int) -> list[Link]:
    base = lineage["baseModel"]
    commit = f"@{base['revision']}" if base.get("revision") else ""
    return [Link(depth, "base", "", f"{base.get('uri')}{commit}", str(base.get("sha256")))]
