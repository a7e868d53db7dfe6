"""What another job has published, by a manifest that is the one the operator saw; torch is not needed."""

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
        """The digests of one folder's files, by their names in it; none where it was not published."""
        prefix = f"{folder}/"
        return {path.removeprefix(prefix): digest for path, digest in self.digests.items() if path.startswith(prefix)}


def read_parent_result(job: PublishedJob, storage: ReadableStore) -> ParentResult:
    """The result of a complete job; one that was removed or replaced since is refused."""
    uri = job.output_uri.rstrip("/")
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    if data is None:
        raise _lost(
            uri,
            f"the result of {job.name} was removed after that job was complete: put it back, or run {job.name} again "
            "and create this job anew",
        )
    found = hashlib.sha256(data).hexdigest()
    if found != job.manifest_sha256:
        raise _lost(
            uri,
            f"the result of {job.name} was replaced after that job was complete: its manifest has SHA-256 {found} "
            f"instead of {job.manifest_sha256}; put the old one back, or create this job anew to build on what is "
            "there",
        )
    return ParentResult(uri, _digests(uri, data))


def check_parents(config: JobConfig, storage: ReadableStore) -> None:
    """Refuses a job whose parents' results are not those that their status proved, also where it reads no file of
    theirs: its lineage names them."""
    for job in (config.parent, config.reward_job):
        if job:
            read_parent_result(job, storage)


def find_result_at(uri: str, storage: ReadableStore) -> ParentResult | None:
    """The result under a prefix; None where there is no manifest."""
    data = storage.read(join_uri(uri, Artifact.MANIFEST))
    return None if data is None else ParentResult(uri.rstrip("/"), _digests(uri, data))


def _digests(uri: str, data: bytes) -> dict[str, str]:
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _lost(uri, f"{Artifact.MANIFEST} is not a manifest") from error
    return {file.path: file.sha256 for file in manifest.files}


def _lost(uri: str, why: str) -> TrainerError:
    return TrainerError(ExitCode.MODEL_UNAVAILABLE, f"{uri}: {why}")
