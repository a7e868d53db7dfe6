"""Checkpoints in storage: the manifest of each is put last and removed first, so that a torn one is never taken for
whole."""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_api.handoff import Artifact, CheckpointManifest, ExitCode, JobConfig, ManifestFile
from finetune_api.spec import Checkpoint, ResumePolicy
from finetune_api.status import CheckpointStatus, Resolved
from finetune_trainer.config.run_context import RunContext
from finetune_trainer.errors import ObjectMissing, StorageUnavailable, TrainerError
from finetune_trainer.storage.hub.uris import model_location
from finetune_trainer.storage.protocol import Entry, Storage, confined, join, sha256_file
from finetune_trainer.training import interrupted_runs

logger = logging.getLogger(__name__)

LONGEST_GAP_SECONDS = 1800.0
"""Between two checkpoints of a job that does not say how often: what a run that dies without a word may lose."""
FOLDER = "step-{:06d}"


@dataclass(frozen=True)
class Origin:
    """What a checkpoint must have been made of for this job to go on from it.

    The uid may differ, as with the claim on the prefix: the job may have been deleted and created again unchanged.
    """

    namespace: str
    name: str
    uid: str
    config_sha256: str
    base_model: str
    base_sha256: str
    rows: Mapping[str, str]

    @classmethod
    def of(cls, config: JobConfig, base_sha256: str, rows: Mapping[str, str]) -> "Origin":
        """The job's own; `rows` has the digest of each file of rows, and the model its commit."""
        model = model_location(config.spec.model)
        return cls(config.namespace, config.name, config.uid, config.config_sha256, model, base_sha256, rows)

    def differences(self, manifest: CheckpointManifest) -> list[str]:
        """What the checkpoint was made of instead, in words."""
        found = []
        if (manifest.namespace, manifest.name) != (self.namespace, self.name):
            found.append(f"it is of the FineTuneJob {manifest.namespace}/{manifest.name}")
        if manifest.config_sha256 != self.config_sha256:
            found.append(
                f"its spec differs (configSha256 {manifest.config_sha256[:12]}, not {self.config_sha256[:12]})"
            )
        if manifest.base_model != self.base_model:
            found.append(f"its base model is {manifest.base_model}, not {self.base_model}")
        if manifest.base_sha256 not in {None, self.base_sha256}:
            theirs, ours = str(manifest.base_sha256), self.base_sha256
            found.append(f"its base model's files differ (SHA-256 {theirs[:12]}, not {ours[:12]})")
        for path in sorted({*manifest.rows, *self.rows}):
            theirs, ours = manifest.rows.get(path, "none"), self.rows.get(path, "none")
            if theirs != ours:
                found.append(f"its rows differ ({path}: SHA-256 {theirs[:12]}, not {ours[:12]})")
        return found


@dataclass(frozen=True)
class Schedule:
    """How often a checkpoint is due: every so many steps, and after so many seconds where that is given."""

    steps: int
    seconds: float | None = None

    def is_due(self, step: int, seconds: float) -> bool:
        """Whether one is due after this step, `seconds` after the last."""
        return step % self.steps == 0 or (self.seconds is not None and seconds >= self.seconds)


def build_schedule(asked: Checkpoint, settings: Resolved) -> Schedule:
    """As the job says, else with every evaluation or a tenth of the training, and not too long after the last."""
    if asked.steps:
        return Schedule(asked.steps)
    return Schedule(settings.eval_steps or max(1, (settings.total_steps or 0) // 10), LONGEST_GAP_SECONDS)


class Checkpoints:
    """The checkpoints of one job, below its output."""

    def __init__(self, run: RunContext, base_sha256: str, rows: Mapping[str, str]) -> None:
        config = run.config
        self.uri = join(config.output_key(), Artifact.CHECKPOINTS)
        self.schedule = build_schedule(config.spec.checkpoint, config.resolved or Resolved())
        self.last_step = 0
        """Step of the last one that was saved or gone on from; 0 = none."""
        self._is_off = config.spec.checkpoint.resume_policy is ResumePolicy.NEVER
        self._kept = config.spec.checkpoint.save_total_limit
        self._origin = Origin.of(config, base_sha256, rows)
        self._run = run
        self._last_time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after this step."""
        return not self._is_off and self.schedule.is_due(step, time.monotonic() - self._last_time)

    def restore(self, only: int | None = None) -> Path | None:
        """A folder with the newest checkpoint that is whole, or None where the training begins at the first step.

        `only` is the step that the first of several processes goes on from; 0 where it begins anew.

        Those that are not whole are named and removed; one that was made of something else is an OutputConflict.
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
            logger.warning("%s is passed over: %s", self._folder(step), problem)
            remove_quietly(self._folder(step), folders[step], self._run.storage)
        if broken:
            passed = "; ".join(f"{FOLDER.format(step)}: {problem}" for step, problem in broken.items())
            self._run.reporter.update(progress={"note": f"broken checkpoints were passed over: {passed}"[:1024]})
        return found

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Has the files written into a folder, uploads them and, last, their manifest; then the oldest are removed.

        A stop does not break it off, for this is what the time after SIGTERM is for. A store that is away costs this
        checkpoint and not the training, unless there is no time for another.
        """
        if self._is_off or step == self.last_step:
            return
        self._run.reporter.stage("Saving")
        began = time.monotonic()
        folder = self._run.workspace / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            write(folder)
            self._upload(step, folder, began)
        except StorageUnavailable as error:
            if self._run.stop.is_set():
                raise
            self._run.reporter.count_checkpoint_failure()
            logger.warning("the checkpoint of step %d is not saved: %s", step, error.message)
        else:
            self._thin_out()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._last_time = time.monotonic()

    def _fetch(self, step: int, sizes: Mapping[str, int]) -> Path:
        uri = self._folder(step)
        data = self._run.storage.read(join(uri, Artifact.MANIFEST)) if Artifact.MANIFEST in sizes else None
        manifest = parse_manifest(data, step)
        differences = self._origin.differences(manifest)
        if differences:
            raise TrainerError(
                ExitCode.OUTPUT_CONFLICT,
                f"{uri} was not made by this job as it is: {'; '.join(differences)}. Remove {self.uri}, choose another "
                "output.uri, or set checkpoint.resumePolicy Never",
            )
        directory = self._run.workspace / "resumed"
        shutil.rmtree(directory, ignore_errors=True)
        on_bytes = self._run.on_bytes
        for file in manifest.files:
            if sizes.get(file.path) != file.size:
                raise BrokenCheckpoint(f"{file.path} is missing or has another size than its manifest says")
            path = confined(directory, file.path)
            try:
                self._run.storage.download(join(uri, file.path), path, on_bytes)
            except ObjectMissing:
                raise BrokenCheckpoint(f"{file.path} is missing") from None
            if sha256_file(path, on_bytes) != file.sha256:
                raise BrokenCheckpoint(f"{file.path} has another content than its SHA-256 in the manifest")
        self.last_step = step
        self._last_time = time.monotonic()
        self._tell(manifest, data or b"")
        self._run.reporter.update(progress={"resumed_from_step": step, "step": step})
        logger.info("going on from %s", uri)
        return directory

    def _upload(self, step: int, folder: Path, began: float) -> None:
        uri, on_bytes = self._folder(step), self._run.reporter.beat
        files = [
            ManifestFile(path=path.name, size=path.stat().st_size, sha256=sha256_file(path, on_bytes))
            for path in sorted(folder.iterdir())
        ]
        for file in files:
            self._run.storage.upload(folder / file.path, join(uri, file.path), on_bytes)
        arrived = {entry.key: entry.size for entry in self._run.storage.list(uri)}
        torn = [file.path for file in files if arrived.get(file.path) != file.size]
        if torn:
            raise StorageUnavailable(f"{join(uri, torn[0])} is not there as it was uploaded")
        origin = self._origin
        manifest = CheckpointManifest(
            namespace=origin.namespace,
            name=origin.name,
            uid=origin.uid,
            config_sha256=origin.config_sha256,
            base_model=origin.base_model,
            base_sha256=origin.base_sha256,
            rows=dict(origin.rows),
            step=step,
            saved_time=datetime.now(UTC),
            files=files,
        )
        data = manifest.model_dump_json(by_alias=True, indent=2).encode()
        self._run.storage.put(join(uri, Artifact.MANIFEST), data)
        self.last_step = step
        self._tell(manifest, data, time.monotonic() - began)

    def _thin_out(self) -> None:
        folders = list_quietly(self.uri, self._run.storage)
        whole = [step for step, sizes in folders.items() if Artifact.MANIFEST in sizes]
        for step in superseded(folders, whole, self._kept):
            remove_quietly(self._folder(step), folders[step], self._run.storage)

    def _tell(self, manifest: CheckpointManifest, data: bytes, seconds: float | None = None) -> None:
        told = CheckpointStatus(
            uri=self._folder(manifest.step),
            step=manifest.step,
            saved_time=manifest.saved_time,
            sha256=hashlib.sha256(data).hexdigest(),
            save_seconds=seconds,
        )
        self._run.reporter.note_checkpoint(told)

    def _folder(self, step: int) -> str:
        return join(self.uri, FOLDER.format(step))


class BrokenCheckpoint(Exception):  # noqa: N818 - it says what the checkpoint is
    """A checkpoint that is not whole."""


def parse_manifest(data: bytes | None, step: int) -> CheckpointManifest:
    """The manifest of the checkpoint of that step."""
    if data is None:
        raise BrokenCheckpoint("it has no manifest, so that it was not saved to the end")
    try:
        manifest = CheckpointManifest.model_validate_json(data)
    except ValidationError:
        raise BrokenCheckpoint("its manifest cannot be read") from None
    if manifest.step != step:
        raise BrokenCheckpoint(f"its manifest is of step {manifest.step}")
    return manifest


def group_by_step(entries: Iterable[Entry]) -> dict[int, dict[str, int]]:
    """The size of each file of each checkpoint; whatever else lies there is nobody's business."""
    found: dict[int, dict[str, int]] = {}
    for entry in entries:
        folder, _, name = entry.key.partition("/")
        number = folder.removeprefix("step-")
        if name and number.isdecimal() and folder == FOLDER.format(int(number)):
            found.setdefault(int(number), {})[name] = entry.size
    return found


def superseded(steps: Iterable[int], whole: Iterable[int], kept: int) -> list[int]:
    """The checkpoints to remove: all but the newest `kept` that are whole."""
    return sorted(set(steps) - set(sorted(whole)[-kept:]))


def remove_checkpoints(config: JobConfig, storage: Storage) -> None:
    """Removes every checkpoint of a job whose result is published, and what its stopped runs left."""
    uri = join(config.output_key(), Artifact.CHECKPOINTS)
    for step, sizes in list_quietly(uri, storage).items():
        remove_quietly(join(uri, FOLDER.format(step)), sizes, storage)
    interrupted_runs.remove(config, storage)


def list_quietly(uri: str, storage: Storage) -> dict[int, dict[str, int]]:
    """The checkpoints that could be removed; where the store does not tell there are none."""
    try:
        return group_by_step(storage.list(uri))
    except TrainerError as error:
        logger.warning("old checkpoints are left behind: %s", error.message)
        return {}


def remove_quietly(uri: str, names: Iterable[str], storage: Storage) -> None:
    """Removes a checkpoint, its manifest first; keys that may not remove anything leave it behind, and that is all."""
    try:
        for name in sorted(names, key=lambda name: (name != Artifact.MANIFEST, name)):
            storage.remove(join(uri, name))
    except TrainerError as error:
        logger.warning("%s is left behind: %s", uri, error.message)
