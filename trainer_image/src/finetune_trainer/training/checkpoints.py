"""Checkpoints in storage. Each manifest is written last and removed first, so that an incomplete one is not used."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from finetune_api.handoff import Artifact, CheckpointManifest, ExitCode, JobConfig, ManifestFile
from finetune_api.spec import Checkpoint, ResumePolicy
from finetune_api.status import CheckpointStatus, Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import ObjectMissing, StorageUnavailable, TrainerError
from finetune_trainer.storage.hub.uris import pinned_model_uri
from finetune_trainer.storage.protocol import Entry, confine_path, describe_files, join_uri, sha256_file
from finetune_trainer.storage.transfers import transfer_all
from finetune_trainer.training.stored_checkpoints import (
    FOLDER,
    BrokenCheckpoint,
    Stored,
    describe_stored,
    group_by_step,
    list_quietly,
    read_stored,
    remove_checkpoint,
    superseded,
)

logger = logging.getLogger(__name__)

LONGEST_GAP_SECONDS = 1800.0
"""Longest time between two checkpoints by default: the work that a killed run may lose."""
OPTIMISER_SHARDS = "optimizer"
"""Folder of the optimiser's state, one file for each process, if the weights were sharded."""
UPLOADED = TypeAdapter(list[ManifestFile])


@dataclass(frozen=True)
class Origin:
    """The origin that a checkpoint must have for this job to resume from it.

    As with the claim on the prefix, the uid may differ: the job may have been recreated unchanged.
    """

    config: JobConfig
    base_sha256: str
    rows: Mapping[str, str]
    """Digest of each file of rows."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digest of each other input, by its name in messages."""

    @property
    def base_model(self) -> str:
        """The URI of the base model, with its commit where it has one."""
        return pinned_model_uri(self.config.spec.model)

    def differences(self, manifest: CheckpointManifest) -> list[str]:
        """Return a sentence for each difference between the checkpoint's origin and this one."""
        found, digest = [], self.config.config_sha256
        if (manifest.namespace, manifest.name) != (self.config.namespace, self.config.name):
            found.append(f"it belongs to the FineTuneJob {manifest.namespace}/{manifest.name}")
        if manifest.config_sha256 != digest:
            found.append(f"its spec differs (configSHA256 {manifest.config_sha256[:12]}, not {digest[:12]})")
        if manifest.base_model != self.base_model:
            found.append(f"its base model is {manifest.base_model}, not {self.base_model}")
        if manifest.base_sha256 not in {None, self.base_sha256}:
            theirs, ours = str(manifest.base_sha256), self.base_sha256
            found.append(f"its base model's files differ (SHA-256 {theirs[:12]}, not {ours[:12]})")
        found += [f"its rows differ ({path}: {why})" for path, why in _compare(manifest.rows, self.rows)]
        if manifest.inputs:
            found += [f"its {name} differs ({why})" for name, why in _compare(manifest.inputs, self.inputs)]
        return found


def _compare(digests: Mapping[str, str], own: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each name with different digests, and both of them."""
    for name in sorted({*digests, *own}):
        theirs, ours = digests.get(name, "none"), own.get(name, "none")
        if theirs != ours:
            yield name, f"SHA-256 {theirs[:12]}, not {ours[:12]}"


@dataclass(frozen=True)
class Schedule:
    """When a checkpoint is due: every `steps` steps, and `seconds` after the last one."""

    steps: int
    seconds: float | None = None

    def is_due(self, step: int, seconds: float) -> bool:
        """Return whether a checkpoint is due after this step, `seconds` after the last one."""
        return step % self.steps == 0 or (self.seconds is not None and seconds >= self.seconds)


def build_schedule(requested: Checkpoint, settings: Resolved) -> Schedule:
    """Return the job's schedule; default: each evaluation or tenth of the training, and at least half-hourly."""
    if requested.steps:
        return Schedule(requested.steps)
    return Schedule(settings.eval_steps or max(1, (settings.total_steps or 0) // 10), LONGEST_GAP_SECONDS)


class Checkpoints:
    """The checkpoints of one job, under its output."""

    def __init__(
        self, run: RunContext, base_sha256: str, rows: Mapping[str, str], inputs: Mapping[str, str] | None = None
    ) -> None:
        config = run.config
        self.uri, self._trained, self._reference = (
            join_uri(config.output_key(), name) for name in (Artifact.CHECKPOINTS, Artifact.TRAINED, Artifact.REFERENCE)
        )
        self.schedule = build_schedule(config.spec.checkpoint, config.resolved or Resolved())
        self.last_step = 0
        """Step of the checkpoint that was last saved or resumed from; 0 = none."""
        self._is_off = config.spec.checkpoint.resume_policy is ResumePolicy.NEVER
        self._kept = config.spec.checkpoint.save_total_limit
        self._origin = Origin(config, base_sha256, rows, inputs or {})
        self._run = run
        self._last_time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether to save a checkpoint after this step."""
        return not self._is_off and self.schedule.is_due(step, time.monotonic() - self._last_time)

    def restore(self, only: int | None = None) -> Path | None:
        """Download the newest complete checkpoint and return its folder; None if the training starts at the first step.

        `only` is the step that the first of several processes resumes from, or 0 if it starts at the first step.
        Incomplete checkpoints are reported and removed; one of another origin is an OutputConflict.
        """
        self.last_step = 0
        if self._is_off or only == 0:
            return None
        folders = group_by_step(self._run.storage.list(self.uri))
        if only:
            return self._fetch(only, folders.get(only, {}))
        broken: dict[int, str] = {}
        found = None
        for step in sorted(folders, reverse=True):
            try:
                found = self._fetch(step, folders[step])
                break
            except BrokenCheckpoint as why:
                broken[step] = str(why)
        for step, problem in broken.items():
            logger.warning("%s is broken and is skipped: %s", self._folder(step), problem)
            remove_checkpoint(self._folder(step), folders[step], self._run.storage)
        if broken:
            skipped = "; ".join(f"{FOLDER.format(step)}: {problem}" for step, problem in broken.items())
            self._run.reporter.update(progress={"note": f"skipped broken checkpoints: {skipped}"[:1024]})
        return found

    def is_needed(self, step: int) -> bool:
        """Return whether checkpoints are saved and the last one is not of this step."""
        return not self._is_off and step != self.last_step

    def upload_shards(self, step: int, folder: Path) -> str:
        """Upload the optimiser's state that only this process has; return its files as JSON for `save`.

        Return an empty text if the store is unavailable. A stop does not interrupt the upload.
        """
        found = describe_files(folder / OPTIMISER_SHARDS, self._run.reporter.beat)
        files = [file.model_copy(update={"path": f"{OPTIMISER_SHARDS}/{file.path}"}) for file in found]
        try:
            self._upload_files(self._folder(step), folder, files)
        except StorageUnavailable as error:
            logger.warning("cannot save the shards of step %d: %s", step, error.message)
            return ""
        return UPLOADED.dump_json(files).decode()

    def note_saved(self, step: int) -> None:
        """Record the step of the checkpoint that the first process saved last, in another process."""
        self.last_step = step

    def save(self, step: int, write: Callable[[Path], None], uploaded: Sequence[str] = ()) -> None:
        """Write the files to a folder, upload them and then their manifest; remove the oldest checkpoints.

        `uploaded` is what `upload_shards` returned in each of the other processes. A stop does not interrupt it: the
        grace period after SIGTERM is for saving. If the store is unavailable, only this checkpoint is lost; after
        SIGTERM the error is raised, because no other checkpoint follows.
        """
        if not self.is_needed(step):
            return
        self._run.reporter.set_stage("Saving")
        began = time.monotonic()
        folder = self._run.workspace / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            if "" in uploaded:
                raise StorageUnavailable("another process could not upload its shards")
            write(folder)
            others = [file for text in uploaded for file in UPLOADED.validate_json(text)]
            stored = self._upload(self._folder(step), step, folder, others)
            self.last_step = step
            self._run.reporter.set_checkpoint(describe_stored(stored, time.monotonic() - began))
        except StorageUnavailable as error:
            if self._run.stop.is_set():
                raise
            self._run.reporter.count_checkpoint_failure()
            logger.warning("cannot save the checkpoint of step %d: %s", step, error.message)
        else:
            self._prune()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._last_time = time.monotonic()

    def save_trained(self, step: int, folder: Path) -> CheckpointStatus:
        """Store what the merge needs of a completed training, and return where; a stop does not interrupt it."""
        self._run.reporter.set_stage("Saving")
        remove_checkpoint(self._trained, [Artifact.MANIFEST], self._run.storage)
        return describe_stored(self._upload(self._trained, step, folder))

    def restore_trained(self) -> tuple[int, Path]:
        """Download what `save_trained` stored; return its step and folder.

        If it is broken, remove its manifest, so that no trainer finds it again, and raise StorageUnavailable.
        """
        sizes = {entry.key: entry.size for entry in self._run.storage.list(self._trained)}
        try:
            _, manifest, _ = self._download(self._trained, None, sizes, self._run.workspace / "trained")
        except BrokenCheckpoint as why:
            remove_checkpoint(self._trained, [Artifact.MANIFEST], self._run.storage)
            raise StorageUnavailable(
                f"{self._trained} cannot be used: {why}. Recreate the job: it trains from its last checkpoint"
            ) from None
        return manifest.step, self._run.workspace / "trained"

    def save_reference(self, file: Path) -> None:
        """Store the log-probabilities of a reference, of every row or of some; a stop does not interrupt it.

        If the store is unavailable, they are computed again.
        """
        if self._is_off:
            return
        folder = self._run.workspace / "saved-reference"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.link(file, folder / file.name)
        try:
            remove_checkpoint(self._reference, [Artifact.MANIFEST], self._run.storage)
            self._upload(self._reference, 0, folder)
        except StorageUnavailable as error:
            logger.warning("cannot save the log-probabilities of the reference: %s", error.message)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def restore_reference(self, file: Path) -> None:
        """Download to `file` what `save_reference` stored last, if that is complete."""
        if self._is_off:
            return
        sizes = {entry.key: entry.size for entry in self._run.storage.list(self._reference)}
        if not sizes:
            return
        folder = self._run.workspace / "saved-reference"
        try:
            self._download(self._reference, 0, sizes, folder)
        except BrokenCheckpoint as why:
            logger.warning("%s is broken and is skipped: %s", self._reference, why)
        else:
            shutil.copyfile(folder / file.name, file)

    def _fetch(self, step: int, sizes: Mapping[str, int]) -> Path:
        uri, directory = self._folder(step), self._run.workspace / "resumed"
        stored = self._download(uri, step, sizes, directory)
        self.last_step = step
        self._last_time = time.monotonic()
        self._run.reporter.set_checkpoint(describe_stored(stored))
        self._run.reporter.update(progress={"resumed_from_step": step, "step": step})
        logger.info("resuming from %s", uri)
        return directory

    def _download(self, uri: str, step: int | None, sizes: Mapping[str, int], directory: Path) -> Stored:
        stored = read_stored(uri, sizes, self._run.storage, step)
        _, manifest, _ = stored
        if differences := self._origin.differences(manifest):
            raise TrainerError(
                ExitCode.OUTPUT_CONFLICT,
                f"{uri} is not a checkpoint of this job: {'; '.join(differences)}. Remove {self.uri}, choose another "
                "output.uri, or set checkpoint.resumePolicy Never",
            )
        shutil.rmtree(directory, ignore_errors=True)
        on_bytes = self._run.on_bytes
        for file in manifest.files:
            if sizes.get(file.path) != file.size:
                raise BrokenCheckpoint(f"{file.path} is missing or differs in size from its manifest")
            path = confine_path(directory, file.path)
            try:
                self._run.storage.download_entry(uri, Entry(file.path, file.size), path, on_bytes)
            except ObjectMissing:
                raise BrokenCheckpoint(f"{file.path} is missing") from None
            if sha256_file(path, on_bytes) != file.sha256:
                raise BrokenCheckpoint(f"{file.path} differs from its SHA-256 in the manifest")
        return stored

    def _upload_files(self, uri: str, folder: Path, files: Iterable[ManifestFile]) -> None:
        upload, beat = self._run.storage.upload, self._run.reporter.beat
        transfer_all((file.size, partial(upload, folder / file.path, join_uri(uri, file.path), beat)) for file in files)

    def _upload(self, uri: str, step: int, folder: Path, uploaded: Sequence[ManifestFile] = ()) -> Stored:
        own = describe_files(folder, self._run.reporter.beat)
        self._upload_files(uri, folder, own)
        files = sorted([*own, *uploaded], key=lambda file: file.path)
        arrived = {entry.key: entry.size for entry in self._run.storage.list(uri)}
        torn = [file.path for file in files if arrived.get(file.path) != file.size]
        if torn:
            raise StorageUnavailable(f"{join_uri(uri, torn[0])} is missing or differs in size after its upload")
        origin = self._origin
        manifest = CheckpointManifest(
            **origin.config.identity(),
            base_model=origin.base_model,
            base_sha256=origin.base_sha256,
            rows=dict(origin.rows),
            inputs=dict(origin.inputs),
            step=step,
            saved_time=datetime.now(UTC),
            files=files,
        )
        data = manifest.model_dump_json(by_alias=True, indent=2).encode()
        self._run.storage.put(join_uri(uri, Artifact.MANIFEST), data)
        return uri, manifest, data

    def _prune(self) -> None:
        folders = group_by_step(list_quietly(self.uri, self._run.storage))
        whole = [step for step, sizes in folders.items() if Artifact.MANIFEST in sizes]
        for step in superseded(folders, whole, self._kept):
            remove_checkpoint(self._folder(step), folders[step], self._run.storage)

    def _folder(self, step: int) -> str:
        return join_uri(self.uri, FOLDER.format(step))
