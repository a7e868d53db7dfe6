"""Publishing: every file, then the manifest, then everything read back; only that makes a result."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import Artifact, JobConfig, Manifest, ManifestFile, Outcome, Report
from finetune_api.status import Artifacts
from finetune_trainer.claim import claim
from finetune_trainer.config_file import config_yaml
from finetune_trainer.errors import ObjectMissing, StorageUnavailable
from finetune_trainer.progress import Reporter, transfer_beat
from finetune_trainer.stop import StopFlag
from finetune_trainer.storage import OnBytes, Storage, join, sha256_file

logger = logging.getLogger(__name__)

SMALL_FILE = 16 * 1024 * 1024


def publish(
    directory: Path, config: JobConfig, result: Report, storage: Storage, reporter: Reporter, *, stop: StopFlag
) -> Report:
    """Upload the local result folder and prove it: returns the report with `artifacts`, read back from storage.

    SIGTERM between files raises Stopped; without its manifest the prefix is not a result.
    """
    reporter.stage("Publishing")
    on_bytes = transfer_beat(reporter, stop)
    claim(config, storage)
    if result.resolved and not (directory / Artifact.CONFIG).exists():
        (directory / Artifact.CONFIG).write_text(config_yaml(config, result.resolved), encoding="utf-8")
    files = [_describe(path, directory, on_bytes) for path in sorted(directory.rglob("*")) if path.is_file()]
    for file in files:
        storage.upload(directory / file.path, join(config.output_key(), file.path), on_bytes)
    files = sorted([*files, *_preflight_files(config, storage)], key=lambda file: file.path)
    report = result.model_copy(update={"artifacts": build_artifacts(config.output_key(), files)})
    data = _manifest(config, files, report).model_dump_json(by_alias=True, exclude_none=True, indent=2).encode()
    stop.raise_if_set()
    _put_manifest(config, data, storage)
    problems = verify(config.output_key(), storage, on_bytes=on_bytes, expected=data)
    if problems:
        raise StorageUnavailable(f"{config.output_key()}: what was read back differs: {'; '.join(problems[:3])}")
    return with_digest(report, data)


def adopt(config: JobConfig, storage: Storage, outcome: Outcome, on_bytes: OnBytes | None = None) -> Report | None:
    """The report of a result that an earlier run of the same job published completely, or None.

    Every file must exist with its size, and files up to 16 MiB are read and compared with their digest; larger ones
    were read back when they were published.
    """
    data = storage.read(join(config.output_key(), Artifact.MANIFEST))
    if data is None:
        return None
    manifest = _parse(data)
    mine = (config.namespace, config.name, config.config_sha256)
    if manifest is None or (manifest.namespace, manifest.name, manifest.config_sha256) != mine:
        logger.warning("%s: the manifest there is not this job's; the result is made again", config.output_key())
        return None
    problems = verify(config.output_key(), storage, on_bytes=on_bytes, largest=SMALL_FILE)
    if problems:
        logger.warning("%s: the result there is not whole and is made again: %s", config.output_key(), problems[0])
        return None
    found = manifest.result.model_copy(update={"outcome": outcome, "reason": outcome.value, "job_uid": config.uid})
    return with_digest(found, data)


def verify(
    uri: str,
    storage: Storage,
    *,
    on_bytes: OnBytes | None = None,
    largest: int | None = None,
    expected: bytes | None = None,
    on_file: Callable[[ManifestFile], None] | None = None,
) -> list[str]:
    """What is wrong with a published prefix, by its manifest: an empty list is a proof.

    Files above `largest` bytes are compared by size alone; `expected` is what the manifest must be.
    """
    data = storage.read(join(uri, Artifact.MANIFEST))
    manifest = _parse(data) if data is not None else None
    if data is None or manifest is None:
        return [f"{Artifact.MANIFEST} is missing" if data is None else f"{Artifact.MANIFEST} cannot be read"]
    if expected is not None and data != expected:
        return [f"{Artifact.MANIFEST} is not the one that was written"]
    sizes = {entry.key: entry.size for entry in storage.list(uri)}
    problems = []
    for file in manifest.files:
        problem = _problem(uri, file, sizes.get(file.path), storage, on_bytes=on_bytes, largest=largest)
        if problem:
            problems.append(problem)
        elif on_file:
            on_file(file)
    return problems


def build_artifacts(uri: str, files: list[ManifestFile]) -> Artifacts:
    """Where each kind of file lies, for those that were published."""
    names = {file.path for file in files}

    def file(name: Artifact) -> str | None:
        return join(uri, name) if name in names else None

    def folder(name: Artifact) -> str | None:
        return join(uri, name) if any(path.startswith(f"{name}/") for path in names) else None

    return Artifacts(
        uri=uri,
        adapter_uri=folder(Artifact.ADAPTER),
        merged_uri=folder(Artifact.MERGED),
        config_uri=file(Artifact.CONFIG),
        report_uri=file(Artifact.REPORT),
        lineage_uri=file(Artifact.LINEAGE),
        manifest_uri=join(uri, Artifact.MANIFEST),
        size_bytes=sum(one.size for one in files),
    )


def with_digest(report: Report, manifest: bytes) -> Report:
    """The report with the manifest's digest, which proves success."""
    artifacts = report.artifacts or Artifacts()
    digest = hashlib.sha256(manifest).hexdigest()
    return report.model_copy(update={"artifacts": artifacts.model_copy(update={"manifest_sha256": digest})})


def _describe(path: Path, directory: Path, on_bytes: OnBytes) -> ManifestFile:
    relative = path.relative_to(directory).as_posix()
    return ManifestFile(path=relative, size=path.stat().st_size, sha256=sha256_file(path, on_bytes))


def _preflight_files(config: JobConfig, storage: Storage) -> list[ManifestFile]:
    """The rows that preflight wrote belong to the result; their digests stand in its summary."""
    data = storage.read(join(config.output_key(), Artifact.DATASET_SUMMARY))
    if data is None:
        return []
    own = ManifestFile(path=Artifact.DATASET_SUMMARY, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    return [own, *(ManifestFile.model_validate(file) for file in json.loads(data).get("files", []))]


def _manifest(config: JobConfig, files: list[ManifestFile], report: Report) -> Manifest:
    return Manifest(
        namespace=config.namespace,
        name=config.name,
        uid=config.uid,
        config_sha256=config.config_sha256,
        files=files,
        result=report,
    )


def _put_manifest(config: JobConfig, data: bytes, storage: Storage) -> None:
    """Conditional first; a manifest that is there already lies under our own claim, from an earlier run."""
    uri = join(config.output_key(), Artifact.MANIFEST)
    if not storage.put_if_absent(uri, data):
        claim(config, storage)
        storage.put(uri, data)


def _problem(
    uri: str, file: ManifestFile, size: int | None, storage: Storage, *, on_bytes: OnBytes | None, largest: int | None
) -> str | None:
    if size is None:
        return f"{file.path} is missing"
    if size != file.size:
        return f"{file.path} has {size} bytes instead of {file.size}"
    if largest is not None and size > largest:
        return None
    try:
        found = storage.sha256(join(uri, file.path), on_bytes)
    except ObjectMissing:
        return f"{file.path} is missing"
    return None if found == file.sha256 else f"{file.path} has another content than its SHA-256 in the manifest"


def _parse(data: bytes) -> Manifest | None:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return None
