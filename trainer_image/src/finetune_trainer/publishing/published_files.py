"""What a push needs of a published result: its files on this machine, and the message if it fails."""

from pathlib import Path

from finetune_api.handoff import Artifact, Manifest, ManifestFile
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import StorageUnavailable, TrainerError, one_line
from finetune_trainer.storage.protocol import confine_path, join_uri, sha256_file

CAUSE_CHARACTERS = 500


def explain_failed_push(error: TrainerError | OSError) -> str:
    """Return why a published result was not pushed, with the fix."""
    cause = error.message if isinstance(error, TrainerError) else str(error)
    fix = "Fix that, delete the job and create it again: the published result is adopted and pushed"
    return f"{one_line(cause, CAUSE_CHARACTERS)}. {fix}."


def collect_files(run: RunContext, folder: Artifact, scratch: Path) -> dict[str, Path]:
    """Return local copies of the published files of a folder, by their path below it; they match the manifest."""
    prefix, data = f"{folder}/", run.storage.read(join_uri(run.config.output_key(), Artifact.MANIFEST))
    if data is None:
        raise StorageUnavailable(f"{run.config.output_key()}: the manifest is gone")
    published = [one for one in Manifest.model_validate_json(data).files if one.path.startswith(prefix)]
    if not published:
        raise StorageUnavailable(f"{run.config.output_key()}: the result has no {prefix}")
    return {one.path.removeprefix(prefix): _local_copy(run, one, scratch) for one in published}


def _local_copy(run: RunContext, file: ManifestFile, scratch: Path) -> Path:
    """Return the file that this pod has published, or download what another one has."""
    own = confine_path(run.workspace / "result", file.path)
    if own.is_file() and own.stat().st_size == file.size and sha256_file(own, run.on_bytes) == file.sha256:
        return own
    copy = confine_path(scratch, file.path)
    copy.parent.mkdir(parents=True, exist_ok=True)
    run.storage.download(join_uri(run.config.output_key(), file.path), copy, run.on_bytes)
    if sha256_file(copy, run.on_bytes) != file.sha256:
        raise StorageUnavailable(f"{run.config.output_key()}: {file.path} does not match its SHA-256 in the manifest")
    return copy
