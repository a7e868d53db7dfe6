"""What storage has of a job's checkpoints: find them, read their manifests and remove them."""

import hashlib
import logging
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from finetune_api.handoff import Artifact, CheckpointManifest, JobConfig
from finetune_api.status import CheckpointStatus
from finetune_trainer.distributed.rank_layout import MEASURING
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.protocol import Entry, ReadableStore, Store, join_uri
from finetune_trainer.training import interrupted_runs

logger = logging.getLogger(__name__)

FOLDER = "step-{:06d}"
Stored = tuple[str, CheckpointManifest, bytes]
"""The folder of a checkpoint, its manifest, and the manifest's bytes."""


class BrokenCheckpoint(Exception):  # noqa: N818 - it names the state of the checkpoint
    """The checkpoint is incomplete."""


def read_stored(uri: str, sizes: Mapping[str, int], storage: ReadableStore, step: int | None = None) -> Stored:
    """Return the checkpoint of that step, or of any step, by its manifest; raise if that is missing or invalid.

    `sizes` are those of the files that storage lists.
    """
    data = storage.read(join_uri(uri, Artifact.MANIFEST)) if Artifact.MANIFEST in sizes else None
    if data is None:
        raise BrokenCheckpoint("it has no manifest, so it was not saved completely")
    try:
        manifest = CheckpointManifest.model_validate_json(data)
    except ValidationError:
        raise BrokenCheckpoint("its manifest is invalid") from None
    if step is not None and manifest.step != step:
        raise BrokenCheckpoint(f"its manifest is of step {manifest.step}")
    return uri, manifest, data


def describe_stored(stored: Stored, seconds: float | None = None) -> CheckpointStatus:
    """Return the checkpoint for the status, with the time that it took to save."""
    uri, manifest, data = stored
    return CheckpointStatus(
        uri=uri,
        step=manifest.step,
        saved_time=manifest.saved_time,
        sha256=hashlib.sha256(data).hexdigest(),
        save_seconds=seconds,
    )


def find_trained(config: JobConfig, storage: Store) -> CheckpointStatus | None:
    """Return what this job's training stored for its merge, if every file of it has the size in its manifest."""
    uri = join_uri(config.output_key(), Artifact.TRAINED)
    sizes = {entry.key: entry.size for entry in storage.list(uri)}
    try:
        stored = read_stored(uri, sizes, storage)
    except BrokenCheckpoint:
        return None
    _, manifest, _ = stored
    if not manifest.is_of(config) or any(sizes.get(file.path) != file.size for file in manifest.files):
        return None
    return describe_stored(stored)


def group_by_step(entries: Iterable[Entry]) -> dict[int, dict[str, int]]:
    """Return the size of each file of each checkpoint; other files are ignored."""
    found: dict[int, dict[str, int]] = {}
    for entry in entries:
        folder, _, name = entry.key.partition("/")
        number = folder.removeprefix("step-")
        if name and number.isdecimal() and folder == FOLDER.format(int(number)):
            found.setdefault(int(number), {})[name] = entry.size
    return found


def superseded(steps: Iterable[int], whole: Iterable[int], kept: int) -> list[int]:
    """Return the checkpoints to remove: all except the newest `kept` complete ones."""
    return sorted(set(steps) - set(sorted(whole)[-kept:]))


def remove_checkpoints(config: JobConfig, storage: Store) -> None:
    """Remove every checkpoint of a job whose result is published, and the records of its interrupted runs."""
    uri = join_uri(config.output_key(), Artifact.CHECKPOINTS)
    found = list_quietly(uri, storage)
    for step, sizes in group_by_step(found).items():
        remove_checkpoint(join_uri(uri, FOLDER.format(step)), sizes, storage)
    remove_checkpoint(uri, [entry.key for entry in found if entry.key == MEASURING], storage)
    for name in (Artifact.TRAINED, Artifact.REFERENCE):
        stored = join_uri(config.output_key(), name)
        remove_checkpoint(stored, [entry.key for entry in list_quietly(stored, storage)], storage)
    interrupted_runs.remove(config, storage)


def list_quietly(uri: str, storage: Store) -> list[Entry]:
    """Return what is to be removed; if the store cannot list it, log a warning and return nothing."""
    try:
        return list(storage.list(uri))
    except TrainerError as error:
        logger.warning("cannot remove old checkpoints: %s", error.message)
        return []


def remove_checkpoint(uri: str, names: Iterable[str], storage: Store) -> None:
    """Remove a checkpoint, its manifest first; if the credentials do not allow it, log a warning."""
    try:
        for name in sorted(names, key=lambda name: (name != Artifact.MANIFEST, name)):
            storage.remove(join_uri(uri, name))
    except TrainerError as error:
        logger.warning("cannot remove %s: %s", uri, error.message)
