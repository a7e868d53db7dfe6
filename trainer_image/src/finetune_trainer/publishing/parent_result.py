"""Read what another job has published, by the manifest that the operator recorded; does not need torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.handoff import Artifact, ExitCode, JobConfig, Manifest
from finetune_api.status import PublishedJob
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.protocol import ReadableStore, join_uri


@dataclass(frozen=True, slots=True)
class ParentResult:
    """A result's prefix and the SHA-256 of every file in it, by path."""

    uri: str
    digests: Mapping[str, str]

    def folder_digests(self, folder: str) -> dict[str, str]:
        """Return the digests of one folder's files, by name; none if it was not published."""
        prefix = f"{folder}/"
        return {path.removeprefix(prefix): digest for path, digest in self.digests.items() if path.startswith(prefix)}


def read_parent_result(job: PublishedJob, storage: ReadableStore) -> ParentResult:
    """Return the result of a complete job; raise if it was removed or replaced since."""
    uri = job.output_uri.rstrip("/")
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    if data is None:
        raise _result_error(
            uri,
            f"the result of {job.name} was removed after that job completed: restore it, or run {job.name} again "
            "and recreate this job",
        )
    found = hashlib.sha256(data).hexdigest()
    if found != job.manifest_sha256:
        raise _result_error(
            uri,
            f"the result of {job.name} was replaced after that job completed: its manifest has SHA-256 {found} "
            f"instead of {job.manifest_sha256}; restore the old one, or recreate this job to build on the "
            "new one",
        )
    return ParentResult(uri, _digests(uri, data))


def check_parents(config: JobConfig, storage: ReadableStore) -> None:
    """Raise if a parent's result is not the recorded one, even if this job reads none of its files: its lineage
    names it."""
    for job in (config.parent, config.reward_job):
        if job:
            read_parent_result(job, storage)


def find_result_at(uri: str, storage: ReadableStore) -> ParentResult | None:
    """Return the result under a prefix, or None if there is no manifest."""
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    return None if data is None else ParentResult(uri.rstrip("/"), _digests(uri, data))


def _digests(uri: str, data: bytes) -> dict[str, str]:
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _result_error(uri, f"{Artifact.MANIFEST} is not a valid manifest") from error
    return {file.path: file.sha256 for file in manifest.files}


def _result_error(uri: str, why: str) -> TrainerError:
    return TrainerError(ExitCode.MODEL_UNAVAILABLE, f"{uri}: {why}")
