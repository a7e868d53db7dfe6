"""Publish a result: upload every file, read everything back, then write the manifest, the proof of the files."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import Artifact, JobConfig, Manifest, ManifestFile, Outcome, Report
from finetune_api.status import Artifacts
from finetune_trainer.config.resolved_manifest import config_yaml
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import ObjectMissing, StorageUnavailable, one_line
from finetune_trainer.publishing.claim import claim_prefix
from finetune_trainer.publishing.unlisted import describe_unlisted, find_unlisted, remove_unlisted
from finetune_trainer.storage.protocol import OnBytes, ReadableStore, Store, describe_files, join_uri
from finetune_trainer.storage.transfers import transfer_all

logger = logging.getLogger(__name__)

OnFile = Callable[[ManifestFile], None]


def publish(run: RunContext, directory: Path, result: Report) -> Report:
    """Upload the local result folder and verify it; return the report with `artifacts`, read back from storage.

    A complete result of the same job is adopted, not overwritten: its pod may have been replaced by this one because
    its node was unreachable, or the other way round. Without one, models that an earlier attempt uploaded are removed.
    SIGTERM before the manifest raises Stopped; without its manifest the prefix is not a result.
    """
    config, storage, on_bytes = run.config, run.storage, run.on_bytes
    run.reporter.set_stage("Publishing")
    claim_prefix(config, storage)
    if done := adopt_result(config, storage, Outcome.PUBLISHED, on_bytes):
        return done
    if result.resolved and not (directory / Artifact.CONFIG).exists():
        (directory / Artifact.CONFIG).write_text(config_yaml(config, result.resolved), encoding="utf-8")
    files = describe_files(directory, on_bytes)
    transfer_all(
        (file.size, partial(storage.upload, directory / file.path, join_uri(config.output_key(), file.path), on_bytes))
        for file in files
    )
    files = sorted([*files, *_preflight_files(config, storage)], key=lambda file: file.path)
    kept = result.artifacts.kept_checkpoints if result.artifacts else None
    artifacts = build_artifacts(config.output_key(), files).model_copy(update={"kept_checkpoints": kept})
    report = result.model_copy(update={"artifacts": artifacts})
    _prove(config, files, storage, on_bytes)
    if unlisted := find_unlisted(config.output_key(), files, storage):
        if done := adopt_result(config, storage, Outcome.PUBLISHED, on_bytes):
            return done
        if left := remove_unlisted(config, unlisted, storage):
            message = f"{report.message}; {describe_unlisted(config.output_key(), left)}"
            report = report.model_copy(update={"message": one_line(message)})
    run.stop.raise_if_set()
    return _put_manifest(Manifest(**config.identity(), files=files, result=report), config, storage, on_bytes)


def adopt_result(
    config: JobConfig, storage: ReadableStore, outcome: Outcome, on_bytes: OnBytes | None = None
) -> Report | None:
    """Return the report of a complete result of another run of the same job, or None; reads every file."""
    data = storage.read(join_uri(config.output_key(), Artifact.MANIFEST))
    if data is None:
        return None
    manifest = _parse(data)
    if manifest is None or not manifest.is_of(config):
        logger.warning("%s: the manifest is not this job's; the result is published again", config.output_key())
        return None
    problems = find_file_faults(config.output_key(), manifest.files, storage, on_bytes=on_bytes)
    if problems:
        logger.warning("%s: the result is incomplete and is published again: %s", config.output_key(), problems[0])
        return None
    if manifest.result.outcome is Outcome.GATE_NOT_MET:  # an adopted failure remains a failure
        outcome = Outcome.GATE_NOT_MET
    elif manifest.uid != config.uid:
        outcome = Outcome.ADOPTED
    found = manifest.result.model_copy(update={"outcome": outcome, "reason": outcome.value, "job_uid": config.uid})
    return add_manifest_digest(found, data)


def find_file_faults(
    uri: str,
    files: Sequence[ManifestFile],
    storage: ReadableStore,
    *,
    on_bytes: OnBytes | None = None,
    on_file: OnFile | None = None,
) -> list[str]:
    """Return the differences in storage from these sizes and digests; call `on_file` for each file without one."""
    sizes = {entry.key: entry.size for entry in storage.list(uri)}
    problems = []
    for file in files:
        problem = _problem(uri, file, sizes.get(file.path), storage, on_bytes)
        if problem:
            problems.append(problem)
        elif on_file:
            on_file(file)
    return problems


def build_artifacts(uri: str, files: list[ManifestFile]) -> Artifacts:
    """Return the URIs of the published files, by kind."""
    names = {file.path for file in files}

    def file(name: Artifact) -> str | None:
        return join_uri(uri, name) if name in names else None

    def folder(name: Artifact) -> str | None:
        return join_uri(uri, name) if any(path.startswith(f"{name}/") for path in names) else None

    return Artifacts(
        uri=uri,
        adapter_uri=folder(Artifact.ADAPTER),
        merged_uri=folder(Artifact.MERGED),
        gguf_uri=folder(Artifact.GGUF),
        config_uri=file(Artifact.CONFIG),
        report_uri=file(Artifact.REPORT),
        lineage_uri=file(Artifact.LINEAGE),
        lineage_sha256=next((one.sha256 for one in files if one.path == Artifact.LINEAGE), None),
        manifest_uri=join_uri(uri, Artifact.MANIFEST),
        size_bytes=sum(one.size for one in files),
    )


def add_manifest_digest(report: Report, manifest: bytes) -> Report:
    """Return the report with the manifest's digest, which proves success."""
    artifacts = report.artifacts or Artifacts()
    digest = hashlib.sha256(manifest).hexdigest()
    return report.model_copy(update={"artifacts": artifacts.model_copy(update={"manifest_sha256": digest})})


def _preflight_files(config: JobConfig, storage: ReadableStore) -> list[ManifestFile]:
    """Return the files that preflight uploaded; their digests are in its summary."""
    data = storage.read(join_uri(config.output_key(), Artifact.DATASET_SUMMARY))
    if data is None:
        return []
    own = ManifestFile(path=Artifact.DATASET_SUMMARY, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    return [own, *(ManifestFile.model_validate(file) for file in json.loads(data).get("files", []))]


def _prove(config: JobConfig, files: Sequence[ManifestFile], storage: ReadableStore, on_bytes: OnBytes) -> None:
    problems = find_file_faults(config.output_key(), files, storage, on_bytes=on_bytes)
    if problems:
        raise StorageUnavailable(f"{config.output_key()}: the uploaded files differ: {'; '.join(problems[:3])}")


def _put_manifest(manifest: Manifest, config: JobConfig, storage: Store, on_bytes: OnBytes) -> Report:
    """Write the manifest if absent: another run of this job may have been faster; its complete result is adopted.

    A manifest that does not match its files is replaced after this run's files are verified.
    """
    uri = join_uri(config.output_key(), Artifact.MANIFEST)
    data = manifest.model_dump_json(by_alias=True, exclude_none=True, indent=2).encode()
    if not storage.put_if_absent(uri, data):
        if done := adopt_result(config, storage, Outcome.PUBLISHED, on_bytes):
            return done
        claim_prefix(config, storage)
        _prove(config, manifest.files, storage, on_bytes)
        storage.put(uri, data)
    if storage.read(uri) != data:
        raise StorageUnavailable(f"{uri} differs from the manifest that was written")
    return add_manifest_digest(manifest.result, data)


def _problem(
    uri: str, file: ManifestFile, size: int | None, storage: ReadableStore, on_bytes: OnBytes | None
) -> str | None:
    if size is None:
        return f"{file.path} is missing"
    if size != file.size:
        return f"{file.path} has {size} bytes instead of {file.size}"
    try:
        found = storage.sha256(join_uri(uri, file.path), on_bytes)
    except ObjectMissing:
        return f"{file.path} is missing"
    return None if found == file.sha256 else f"{file.path} does not match its SHA-256 in the manifest"


def _parse(data: bytes) -> Manifest | None:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return None
